"""Genetic algorithm for one objective, and regularised (ageing) evolution."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from ...results.objective import Objective
from ...results.trial import Trial
from ...spaces import Space
from .evolution import MUTATED, Evolution, crossover
from .ranking import best_first, chebyshev, scaled


class Genetic(Evolution):
    """Steady-state genetic algorithm (Whitley, GENITOR, ICGA 1989), with tournaments of ``sample``.

    The best ``population`` trials survive, by front and crowding. With several objectives every mating draws
    a weight vector and picks both parents by the augmented Chebyshev norm under it (random weights: Ishibuchi
    and Murata, IEEE Trans. Syst. Man Cybern. C 28(3), 1998), so all directions of the front are bred for. The
    children are mixed by uniform crossover, and some of them mutated. Options as :class:`Evolution`.

    Args:
        sample: drawn for a tournament; at least 2.

    Raises:
        ValueError: ``sample`` too small.
    """

    def __init__(
        self, space: Space, objectives: Iterable[Objective | str], *, sample: int = 3, **options: Any
    ) -> None:
        super().__init__(space, objectives, **options)
        if sample < 2:
            raise ValueError(f"sample must be at least 2, got {sample}")
        self.sample = sample
        self._pool: list[tuple[Trial, np.ndarray, float]] = []  # survivors, and what was told since

    def learn(self, trial: Trial, loss: np.ndarray, violation: float) -> None:
        self._pool.append((trial, loss, violation))

    def breed(self, n: int) -> Iterable[np.ndarray]:
        losses, violations = (np.array([member[i] for member in self._pool]) for i in (1, 2))
        kept = best_first(losses, violations)[: self.population]
        self._pool = [self._pool[i] for i in kept]
        indices = np.array([trial.candidate.indices for trial, _, _ in self._pool])
        losses, violations = scaled(losses[kept], violations[kept]), violations[kept]
        children = []
        for _ in range(n):
            weights = self.rng.dirichlet(np.ones(len(self.objectives)))
            value = chebyshev(losses, weights)
            drawn = self.rng.integers(0, len(value), (2, self.sample))
            a, b = (row[np.lexsort((value[row], violations[row]))[0]] for row in drawn)
            children.append(crossover(self.rng, indices[a], indices[b]))
        return self.mutated(self.rng, np.array(children), probability=MUTATED)


# -- Regularised evolution: the oldest die, not the worst -----------------------------------------------


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
