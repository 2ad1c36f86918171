"""Baselines: searchers that learn nothing, the lines to beat."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import numpy as np

from ..results.objective import Objective
from ..spaces import Candidate, Space
from .base import Searcher
from .generator import diagonal


class Random(Searcher):
    """Candidates drawn uniformly and independently (Bergstra and Bengio, JMLR 13, 2012)."""

    def ask(self, n: int) -> list[Candidate]:
        return self.space.sample(self.rng, n)


# -- Grid search: every candidate of a regular grid, in an order of which any beginning covers the grid


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


# -- Latin hypercube sampling: random, but every option of every choice equally often -------------------


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


# -- Uniform-ratio ladder: all choices compressed alike -------------------------------------------------


class Ladder(Searcher):
    """Every rung of the diagonal from the unchanged to the most compressed candidate, then it has finished.

    What is usually done by hand ("prune 30 % everywhere"), and the line that any search has to beat. The
    ends come first, then halves, quarters, ..., so that a short run covers the whole range. Learns nothing
    from trials. There are as many rungs as the finest choice has options, or some more where the numbers of
    options differ.
    """

    def __init__(self, space: Space, objectives: Iterable[Objective | str], *, seed: int = 0) -> None:
        super().__init__(space, objectives, seed=seed)
        rungs = diagonal(space)
        self._left = [rungs[i] for i in halving(len(rungs))]

    def ask(self, n: int) -> list[Candidate]:
        asked, self._left = self._left[:n], self._left[n:]
        return asked

    @property
    def finished(self) -> bool:
        return not self._left


def halving(n: int) -> list[int]:
    """0..n-1, first the two ends, then ever finer halves (van der Corput order)."""
    order = dict.fromkeys([0, n - 1] if n else [])
    parts = 2
    while len(order) < n:
        order.update(dict.fromkeys(round((n - 1) * k / parts) for k in range(1, parts, 2)))
        parts *= 2
    return list(order)
