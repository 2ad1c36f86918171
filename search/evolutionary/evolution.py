"""What the evolutionary searchers share: the first population, variation, and breeding without a barrier."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

from ...results.objective import Objective
from ...results.trial import Trial
from ...spaces import Candidate, Space
from ..base import Searcher
from .boundaries import boundaries, jump

MUTATED = 0.3  # share of the children of two parents that are mutated too (always: 1 % less hypervolume)
ATTEMPTS = 16  # children bred in a row without one that is unseen, after which a random candidate is taken


class Evolution(Searcher):
    """Starts from :func:`first_population`, then breeds children from all that has been told.

    Trials that were never asked for (the unchanged model, earlier runs, repaired candidates) join the
    population like any other; where they make a whole population before the first ask, nothing is spent on
    another. Children are candidates neither asked for nor told before.

    Steady state (the default): a brood is bred whenever candidates are wanted and none are left, from the
    trials known by then, so that nobody waits for a generation to end. What is bred depends on which trials
    are known when, and so on the sequence of calls; a sweep makes the same calls whatever the number of
    workers. With ``steady=False`` a brood is bred only when all that was asked for is known.

    Args:
        population: survivors, and size of the first population; at least 4.
        brood: children bred at a time; at least 1. Without ``steady``, ``population`` unless given.
        steady: breed without waiting for what is under way.

    Raises:
        ValueError: ``population`` or ``brood`` too small.
    """

    def __init__(
        self,
        space: Space,
        objectives: Iterable[Objective | str],
        *,
        seed: int = 0,
        population: int = 16,
        brood: int | None = None,
        steady: bool = True,
    ) -> None:
        super().__init__(space, objectives, seed=seed)
        self.population = population
        self.steady = steady
        self.brood = brood if brood is not None else (1 if steady else population)
        if population < 4 or self.brood < 1:
            raise ValueError(
                f"population must be at least 4 and brood at least 1, got {population} and {self.brood}"
            )
        self._queue = deque(first_population(space, self.rng, population))
        self._boundaries = boundaries(space)
        self._asked: set[Candidate] = set()
        self._told: set[Candidate] = set()
        self._answered = 0  # how many of the asked have been told

    @abstractmethod
    def learn(self, trial: Trial, loss: np.ndarray, violation: float) -> None:
        """Take in one trial, told for the first time.

        Args:
            loss: [objectives], minimised; finite where ``violation`` is.
            violation: of the limits, 0 when all are kept; inf when failed or without an objective.
        """

    @abstractmethod
    def breed(self, n: int) -> Iterable[np.ndarray]:
        """``n`` children, option indices [choices] each; seen ones are left out by the caller."""

    def ask(self, n: int) -> list[Candidate]:
        if not self._asked and len(self._told) >= self.population:
            self._queue.clear()
        asked: list[Candidate] = []
        while len(asked) < n:
            if not self._queue and self._may_breed():
                self._queue.extend(self._children())
            if not self._queue:
                break
            candidate = self._queue.popleft()
            if not self.seen(candidate):  # else told meanwhile
                asked.append(candidate)
                self._asked.add(candidate)
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        super().tell(trials)
        for trial in sorted(trials, key=lambda t: (t.number, t.candidate.indices)):
            if trial.candidate not in self._told:
                self._told.add(trial.candidate)
                self._answered += trial.candidate in self._asked
                loss, violation = self.loss(trial), self.violation(trial)
                self.learn(trial, loss, violation if np.isfinite(loss).all() else np.inf)

    def mutated(
        self, rng: np.random.Generator, indices: np.ndarray, *, probability: float = 1.0
    ) -> np.ndarray:
        """Rows of option indices after :func:`mutate`, and boundaries between stages after :func:`jump`."""
        rows = mutate(rng, indices, self.space.counts, probability=probability)
        return jump(rng, rows, self._boundaries, self.space.counts)

    def seen(self, candidate: Candidate) -> bool:
        """Asked for or told before."""
        return candidate in self._asked or candidate in self._told

    def _may_breed(self) -> bool:
        """Half of the first population is known, or all that was asked for is; without ``steady``, all."""
        if not self._told:
            return False
        enough = min(self.population // 2, len(self._asked)) if self.steady else len(self._asked)
        return self._answered >= enough or (self.steady and len(self._told) >= self.population)

    def _children(self) -> list[Candidate]:
        new: dict[Candidate, None] = {}
        for _ in range(ATTEMPTS):
            for indices in self.breed(self.brood - len(new)):
                child = Candidate(tuple(np.asarray(indices).tolist()), self.space.choices)
                if not self.seen(child):
                    new[child] = None
            if len(new) >= self.brood:
                break
        if not new:
            return [c for c in self.space.sample(self.rng, ATTEMPTS) if not self.seen(c)][:1]
        return list(new)[: self.brood]


def first_population(space: Space, rng: np.random.Generator, n: int) -> list[Candidate]:
    """A ladder of uniform compression, both corners included, and random candidates of random intensity.

    At most ``n``, distinct; denser towards the unchanged model (squared), where a front is useful. It decides
    more than the algorithm that follows.
    """
    ladder = [space.decode(np.full(len(space), t**2)) for t in np.linspace(0.0, 1.0, n // 2)]
    drawn = rng.binomial(space.counts - 1, rng.random((2 * n, 1)) ** 2, size=(2 * n, len(space)))
    scattered = [Candidate(tuple(row), space.choices) for row in drawn.tolist()]
    return list(dict.fromkeys([*ladder, *scattered]))[:n]


def crossover(
    rng: np.random.Generator, a: np.ndarray, b: np.ndarray, *, probability: float = 0.9
) -> np.ndarray:
    """Uniform crossover (Syswerda 1989): every choice from either parent; int [..., choices].

    With 1 - ``probability`` the first parent as it is.
    """
    mixed = np.where(rng.random(a.shape) < 0.5, a, b)
    return np.where(rng.random((*a.shape[:-1], 1)) < probability, mixed, a)


def mutate(
    rng: np.random.Generator, indices: np.ndarray, counts: np.ndarray, *, probability: float = 1.0
) -> np.ndarray:
    """Moves one option index or a few, by one mostly: options are ordered, and near ones are alike.

    Args:
        indices: int [n, choices].
        counts: options of every choice, int [choices].
        probability: of every row to be moved at all.

    Returns:
        Int64 [n, choices]. At least one choice of a row moves, away from the border where it stands at one; a
        choice with one option never does.
    """
    n, d = indices.shape
    free = np.flatnonzero(counts > 1)
    moved = rng.random((n, d)) < 1.0 / d
    if len(free):
        moved[np.arange(n), rng.choice(free, n)] = True
    way = rng.choice((-1, 1), (n, d))
    way = np.where(indices <= 0, 1, np.where(indices >= counts - 1, -1, way))
    step = rng.geometric(0.5, (n, d)) * way
    moved &= rng.random((n, 1)) < probability
    return np.clip(indices + moved * step, 0, counts - 1).astype(np.int64)
