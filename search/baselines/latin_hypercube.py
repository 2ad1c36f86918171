"""Latin hypercube sampling: random, but every option of every choice equally often."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

from ...results.objective import Objective
from ...spaces import Candidate, Space
from ..base import Searcher


class LatinHypercube(Searcher):
    """Blocks of ``points`` candidates, independent of each other.

    In a block each choice's range is cut into ``points`` equal strata, and each stratum is drawn from once,
    in an order that is random and independent per choice (McKay, Beckman and Conover, Technometrics 21(2),
    1979). Where ``points`` is a multiple of a choice's options, a block takes each option equally often.
    Learns nothing from trials.

    Args:
        points: per block, at least 1; by default the least multiple of all option counts, where that is at
            most 64, else the largest count, or 16 if that is more.
    """

    def __init__(
        self, space: Space, objectives: Iterable[Objective | str], *, seed: int = 0, points: int | None = None
    ) -> None:
        super().__init__(space, objectives, seed=seed)
        if points is not None and points < 1:
            raise ValueError(f"points must be at least 1, got {points}")
        self.points = points or _points(space.counts)
        self._block: deque[Candidate] = deque()

    def ask(self, n: int) -> list[Candidate]:
        while len(self._block) < n:
            self._block.extend(self._draw())
        return [self._block.popleft() for _ in range(n)]

    def _draw(self) -> list[Candidate]:
        strata = np.tile(np.arange(self.points), (len(self.space), 1))  # [choices, points]
        strata = self.rng.permuted(strata, axis=1)
        at = (strata + self.rng.random(strata.shape)) / self.points  # in [0, 1)
        # Whole numbers where strata nest in options: rounding must not carry a point across a border.
        nested = self.points % self.space.counts == 0
        exact = strata * self.space.counts[:, None] // self.points
        drawn = np.minimum((at * self.space.counts[:, None]).astype(np.int64), self.space.counts[:, None] - 1)
        indices = np.where(nested[:, None], exact, drawn).T
        return [Candidate(tuple(row), self.space.choices) for row in indices.tolist()]


def _points(counts: np.ndarray) -> int:
    multiple = int(np.lcm.reduce(np.unique(counts[counts <= 64]), initial=1))
    if multiple <= 64 and counts.max() <= 64:
        return max(multiple, 16 // multiple * multiple)
    return max(int(counts.max()), 16)
