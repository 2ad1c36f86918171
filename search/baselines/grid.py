"""Grid search: every candidate of a regular grid, in an order of which any beginning covers the grid."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from ...results.objective import Objective
from ...spaces import Candidate, Space
from ..base import Searcher


class Grid(Searcher):
    """All combinations of ``levels`` options per choice, evenly spaced; each once, then it has finished.

    Counting through a grid changes the first choice last, so a grid that is not gone through to its end
    never leaves one corner. Here candidate number k is the one at position (k stride) mod size of that
    count, with the stride nearest to the golden section of the size that shares no factor with it (a rank-1
    lattice): a permutation of the grid of which every beginning is spread out. Learns nothing from trials.

    Args:
        levels: options per choice, at least 2; ``None`` for all of them: the whole space.
    """

    def __init__(
        self, space: Space, objectives: Iterable[Objective | str], *, seed: int = 0, levels: int | None = None
    ) -> None:
        super().__init__(space, objectives, seed=seed)
        if levels is not None and levels < 2:
            raise ValueError(f"levels must be at least 2 or None, got {levels}")
        self.options = [
            sorted({round(x) for x in np.linspace(0, count - 1, min(levels or count, count)).tolist()})
            for count in space.counts.tolist()
        ]
        self.size = math.prod(map(len, self.options))
        self.stride = _coprime_near(_golden(self.size), self.size)
        self.asked = 0

    def ask(self, n: int) -> list[Candidate]:
        positions = range(self.asked, min(self.asked + n, self.size))
        self.asked += len(positions)
        return [self._at(k * self.stride % self.size) for k in positions]

    @property
    def finished(self) -> bool:
        return self.asked >= self.size

    def _at(self, position: int) -> Candidate:
        """The candidate at a position of the count in which the first choice changes last."""
        indices = []
        for options in reversed(self.options):
            position, digit = divmod(position, len(options))
            indices.append(options[digit])
        return Candidate(tuple(reversed(indices)), self.space.choices)


def _golden(size: int) -> int:
    """size (sqrt(5) - 1) / 2, rounded down; in whole numbers, since sizes may exceed floating point."""
    return (math.isqrt(5 * size * size) - size) // 2


def _coprime_near(wanted: int, size: int) -> int:
    """The number nearest to ``wanted`` that shares no factor with ``size``."""
    for away in range(size + 1):
        for k in (wanted + away, wanted - away):
            if k >= 1 and math.gcd(k, size) == 1:
                return k
    return 1
