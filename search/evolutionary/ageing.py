"""Regularised evolution: the oldest die, not the worst."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from ...results.objective import Objective
from ...results.trial import Trial
from ...spaces import Space
from .evolution import Evolution
from .ranking import best_first


class Ageing(Evolution):
    """Ageing evolution (Real, Aggarwal, Huang and Le, AAAI 2019, algorithm 1).

    The latest ``age`` trials are alive; the best of ``sample`` of them, drawn at random, is
    mutated. Whatever was told, everybody dies of age, so a lucky score does not live on. With several
    objectives the best has the lowest non-dominated rank among the living, then the largest crowding
    distance; limits and failures rank behind. Options as :class:`Evolution`.

    Args:
        age: trials after which one dies; at least 2.
        sample: drawn for a tournament; at least 2.

    Raises:
        ValueError: ``age`` or ``sample`` too small.
    """

    def __init__(
        self,
        space: Space,
        objectives: Iterable[Objective | str],
        *,
        age: int = 32,
        sample: int = 8,
        **options: Any,
    ) -> None:
        super().__init__(space, objectives, **options)
        if sample < 2 or age < 2:
            raise ValueError(f"age and sample must be at least 2, got {age} and {sample}")
        self.sample = sample
        self._alive: deque[tuple[Trial, np.ndarray, float]] = deque(maxlen=age)
        self._place = np.zeros(0, dtype=np.int64)  # of the living, 0 for the best; empty: to be found

    def learn(self, trial: Trial, loss: np.ndarray, violation: float) -> None:
        self._alive.append((trial, loss, violation))
        self._place = np.zeros(0, dtype=np.int64)

    def breed(self, n: int) -> Iterable[np.ndarray]:
        if not len(self._place):
            losses, violations = (np.array([a[i] for a in self._alive]) for i in (1, 2))
            self._place = np.argsort(best_first(losses, violations))
        drawn = self.rng.integers(0, len(self._alive), (n, self.sample))
        parents = [row[np.argmin(self._place[row])] for row in drawn]
        indices = np.array([self._alive[i][0].candidate.indices for i in parents])
        return self.mutated(self.rng, indices)
