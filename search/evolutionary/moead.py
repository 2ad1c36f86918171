"""MOEA/D: one subproblem for every direction of the front, each helped by its neighbours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ...results.objective import Objective
from ...results.trial import Trial
from ...spaces import Space
from .evolution import MUTATED, Evolution, crossover
from .ranking import chebyshev, scaled, simplex


class MOEAD(Evolution):
    """Decomposition into Chebyshev subproblems (Zhang and Li, IEEE Trans. Evol. Comput. 11(6), 2007).

    Every weight vector of an even lattice keeps the best trial for it. Parents are, with probability
    ``near``, of neighbouring weights, else any (Li and Zhang, IEEE Trans. Evol. Comput. 13(2), 2009); a told
    trial goes to the weights that it serves best and replaces at most ``replace`` incumbents (Wang et al.,
    IEEE Trans. Cybern. 46(2), 2016), so it does not matter who asked for it. Objectives are normalised by the
    ideal and nadir of the incumbents; an incumbent that breaks limits gives way to one that breaks them less.
    Written here: pymoo's asks one at a time, waits for it, and rejects limits. Options as :class:`Evolution`,
    where ``population`` is the greatest number of weights (with one objective, of incumbents).

    Args:
        neighbours: weights in a neighbourhood, itself included; at least 2.
        near: probability in [0, 1].
        replace: incumbents that one trial may replace; at least 1.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        space: Space,
        objectives: Iterable[Objective | str],
        *,
        neighbours: int = 5,
        near: float = 0.9,
        replace: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(space, objectives, **options)
        if neighbours < 2 or not 0.0 <= near <= 1.0 or replace < 1:
            raise ValueError(
                "neighbours must be at least 2, near between 0 and 1 and replace at least 1, got "
                f"{neighbours}, {near} and {replace}"
            )
        m = len(self.objectives)
        self.weights = simplex(self.population, m) if m > 1 else np.ones((self.population, 1))  # [k, m]
        apart = ((self.weights[:, None] - self.weights[None]) ** 2).sum(axis=-1)
        self.near, self.replace = near, replace
        self.neighbourhood = np.argsort(apart, axis=1, kind="stable")[:, :neighbours]  # [k, neighbours]
        k = len(self.weights)
        self._indices = np.zeros((k, len(space)), dtype=np.int64)  # incumbents
        self._losses = np.zeros((k, m))
        self._violations = np.full(k, np.inf)
        self._filled = np.zeros(k, dtype=bool)
        self._turn: list[int] = []  # subproblems still to breed for in this round

    def learn(self, trial: Trial, loss: np.ndarray, violation: float) -> None:
        losses = np.vstack([self._losses, loss])
        violations = np.append(self._violations, violation)
        norms = scaled(losses, violations)
        values = chebyshev(norms[:-1], self.weights)  # [k], of the incumbents
        new = chebyshev(norms[-1], self.weights)
        better = (violation < self._violations) | ((violation == self._violations) & (new < values))
        better |= ~self._filled
        # First the weights for which it is best, by how much it improves on them where that is known.
        served = new if np.isfinite(new).all() else self.rng.random(len(new))
        for k in [k for k in np.argsort(served, kind="stable") if better[k]][: self.replace]:
            self._indices[k], self._losses[k], self._violations[k] = trial.candidate.indices, loss, violation
            self._filled[k] = True

    def breed(self, n: int) -> Iterable[np.ndarray]:
        return [self._child() for _ in range(n)]

    def _child(self) -> np.ndarray:
        if not self._turn:
            self._turn = self.rng.permutation(len(self.weights)).tolist()
        k = self._turn.pop()
        everyone = np.flatnonzero(self._filled)
        pool = self.neighbourhood[k] if self.rng.random() < self.near else everyone
        pool = pool[self._filled[pool]]
        a, b = self.rng.choice(pool if len(pool) else everyone, 2)
        child = crossover(self.rng, self._indices[a], self._indices[b], probability=1.0)
        return self.mutated(self.rng, child[None], probability=MUTATED)[0]
