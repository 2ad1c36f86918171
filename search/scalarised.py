"""Several objectives by many searches for one: weighted sums and Chebyshev norms over any searcher."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ..results.objective import Objective
from ..results.trial import Trial
from ..spaces import Candidate, Space
from .base import Searcher
from .evolutionary import ranking
from .evolutionary.evolution import Genetic, first_population

SCALAR = Objective("scalarised", "min")
MOVED = 0.1  # of the normalisation, by which it may have changed before the inner searches start again


def small_genetic(space: Space, objectives: Iterable[Objective | str], *, seed: int = 0) -> Searcher:
    """The default inner search: a population that suits one direction of the front."""
    return Genetic(space, objectives, seed=seed, population=8)


class Scalarised(Searcher):
    """Searches in several directions of the front at once, each for one number.

    Every weight vector has an inner single-objective searcher of its own; they propose in turn and all of
    them are told every trial, each as its own weighted norm of the losses (normalised by ideal point and
    nadir of the trials so far). Where the normalisation has moved by a tenth, the inner searchers are made
    anew and told all trials. The first population is that of :class:`Evolution`.

    Args:
        inner: makes a single-objective searcher of (space, objectives, seed=...); one that learns from trials
            it never asked for. It is not guarded against duplicates or limits: what contains this one is.
        weights: [directions, objectives], not negative, each row with a positive sum; by default an even
            lattice of at most ``directions``.
        directions: at least 1; unused where ``weights`` are given.
        population: size of the first population; at least 4.

    Raises:
        ValueError: an option out of its range, or weights that do not fit the objectives.
    """

    def __init__(
        self,
        space: Space,
        objectives: Iterable[Objective | str],
        *,
        seed: int = 0,
        inner: Callable[..., Searcher] = small_genetic,
        weights: Sequence[Sequence[float]] | np.ndarray | None = None,
        directions: int = 10,
        population: int = 16,
    ) -> None:
        super().__init__(space, objectives, seed=seed)
        if directions < 1 or population < 4:
            raise ValueError(
                f"directions must be at least 1 and population at least 4, got {directions} and {population}"
            )
        m = len(self.objectives)
        rows = ranking.simplex(directions, m) if weights is None else np.asarray(weights, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != m or not ((rows >= 0).all() and (rows.sum(axis=1) > 0).all()):
            raise ValueError(
                f"weights must be rows of {m} numbers (one for each objective), not negative and not all 0; "
                f"got {rows.tolist()}"
            )
        self.weights: np.ndarray = rows / rows.sum(axis=1, keepdims=True)  # [directions, objectives]
        self.population = population
        self._make = inner
        self._first = deque(first_population(space, self.rng, population))
        self._inner: list[Searcher] = []  # one for each direction; none until there are trials to tell
        self._turns = self.rng.permutation(len(self.weights)).tolist()  # neighbours not one after the other
        self._turn = 0
        self._trials: dict[Candidate, Trial] = {}
        self._under_way: set[Candidate] = set()
        self._front = np.zeros((0, m))  # losses of the best trials that keep all limits
        self._worst = np.full(m, -np.inf)  # losses, of those trials
        self._ideal, self._span = np.zeros(m), np.ones(m)

    @staticmethod
    @abstractmethod
    def norm(losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """One number [...] of normalised losses [..., objectives]."""

    def ask(self, n: int) -> list[Candidate]:
        if not self._under_way and len(self._trials) >= self.population:
            self._first.clear()  # earlier runs are as good as a first population
        asked: list[Candidate] = []
        while len(asked) < n:
            candidate = self._first.popleft() if self._first else self._next()
            if candidate is None:
                break
            if candidate not in self._under_way and candidate not in self._trials:
                asked.append(candidate)
                self._under_way.add(candidate)
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        super().tell(trials)
        new = [t for t in sorted(trials, key=lambda t: (t.number, t.candidate.indices)) if self._note(t)]
        if self._inner:
            self._normalise()
            for k, searcher in enumerate(self._inner):
                self._pass_on(k, searcher, new)

    @property
    def finished(self) -> bool:
        return bool(self._inner) and all(searcher.finished for searcher in self._inner)

    def _note(self, trial: Trial) -> bool:
        """Remember a trial; False for one that is known."""
        if trial.candidate in self._trials:
            return False
        self._trials[trial.candidate] = trial
        self._under_way.discard(trial.candidate)
        loss = self.loss(trial)
        if np.isfinite(loss).all() and self.violation(trial) <= 0.0:
            if not (self._front <= loss).all(axis=1).any():
                self._front = np.vstack([self._front[~(loss <= self._front).all(axis=1)], loss])
            self._worst = np.maximum(self._worst, loss)
        return True

    def _next(self) -> Candidate | None:
        """The proposal of the next inner searcher that has a new one; None when none has."""
        if not self._inner:
            if 2 * len(self._trials) < self.population and self._under_way:
                return None
            self._normalise()
            self._start()
        for _ in range(2 * len(self._inner)):
            searcher = self._inner[self._turns[self._turn % len(self._inner)]]
            self._turn += 1
            for candidate in searcher.ask(1):
                if candidate not in self._under_way and candidate not in self._trials:
                    return candidate
                if (known := self._trials.get(candidate)) is not None:
                    self._pass_on(self._inner.index(searcher), searcher, [known])
        return None

    def _start(self) -> None:
        """All inner searchers from the beginning, told all trials."""
        seeds = self.rng.integers(2**31, size=len(self.weights)).tolist()
        self._inner = [self._make(self.space, [SCALAR], seed=seed) for seed in seeds]
        for k, searcher in enumerate(self._inner):
            self._pass_on(k, searcher, list(self._trials.values()))

    def _normalise(self) -> None:
        """Follow the ideal point and the nadir, once they have moved enough."""
        if not len(self._front):
            return
        ideal, span = ranking.span_of_front(self._front, self._worst)
        moved = np.maximum(np.abs(ideal - self._ideal), np.abs(ideal + span - self._ideal - self._span))
        if (moved > MOVED * self._span).any():
            self._ideal, self._span = ideal, span
            if self._inner:
                self._start()

    def _pass_on(self, k: int, searcher: Searcher, trials: Sequence[Trial]) -> None:
        """Tell the searcher of direction ``k``, in its own number."""
        searcher.limits = self.limits
        searcher.tell([self._as_scalar(k, t) for t in trials])

    def _as_scalar(self, k: int, trial: Trial) -> Trial:
        loss = self.loss(trial)
        if trial.failed or not np.isfinite(loss).all():
            return Trial(trial.number, trial.candidate, error=trial.error or "an objective was not measured")
        value = self.norm((loss - self._ideal) / self._span, self.weights[k])
        return Trial(trial.number, trial.candidate, {**trial.scores, SCALAR.name: float(value)})


class WeightedSum(Scalarised):
    """sum_j w_j z_j for every direction w. Finds only points on the convex hull of the front."""

    norm = staticmethod(ranking.weighted_sum)


class Chebyshev(Scalarised):
    """max_j w_j z_j + rho sum_j z_j for every direction w. Finds every point of the front (Steuer and Choo,
    Math. Program. 26, 1983)."""

    norm = staticmethod(ranking.chebyshev)
