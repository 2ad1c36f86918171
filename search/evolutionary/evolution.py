"""Evolution: first population, variation within limits, breeding without a barrier; ``ga`` and ``ageing``."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ...results.objective import Objective
from ...results.trial import Trial
from ...spaces import Candidate, Space
from ...spaces.kinds.splits.plan import boundary_columns
from ..base import Searcher
from .ranking import best_first, chebyshev, scaled

EXCHANGE = 0.5  # share of variations that compress one choice more and another less
SHARES = np.linspace(0.0, 1.0, 9)[1:]  # of the way to an extreme that is tried to keep a limit


def vary(rng: np.random.Generator, parents: np.ndarray, counts: np.ndarray, n: int) -> np.ndarray:
    """``n`` rows, each a parent with one to a few options moved, mostly by one step.

    In half of them one choice moves up and another down: where costs and damages trade off, a better
    candidate of equal cost is one exchange away.
    """
    d = len(counts)
    rows = parents[rng.integers(len(parents), size=n)]
    each = np.arange(n)
    moves = np.zeros((n, d), dtype=np.int64)
    first, second = rng.integers(d, size=(2, n))
    sign = rng.choice((-1, 1), n)
    moves[each, first] = sign * rng.geometric(0.6, n)
    exchange = rng.random(n) < EXCHANGE
    moves[each[exchange], second[exchange]] = -(sign * rng.geometric(0.6, n))[exchange]
    more = rng.random((n, d)) < 0.5 / d
    moves += more * rng.choice((-1, 1), (n, d))
    return np.clip(rows + moves, 0, counts - 1)


def scattered(rng: np.random.Generator, counts: np.ndarray, n: int) -> np.ndarray:
    """``n`` random rows of random mean compression, which uniform ones do not have."""
    return rng.binomial(counts - 1, rng.random((n, 1)), size=(n, len(counts)))


def kept(rows: np.ndarray, counts: np.ndarray, violation: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The rows that keep the limits, and the others moved towards an extreme until they do.

    Each goes the least of eight equal shares of the way to the most compressed candidate, else to the
    unchanged one; those for which neither helps are left out.

    Args:
        violation: float64 [n] of rows [n, choices], 0 where all limits are kept.
    """
    ok = violation(rows) <= 0.0
    out, left = [rows[ok]], rows[~ok]
    for end in (counts - 1, np.zeros_like(counts)):
        if not len(left):
            break
        way = left[:, None, :] + SHARES[:, None] * (end - left)[:, None, :]  # [n, shares, choices]
        way = np.floor(way + 0.5).astype(np.int64)
        good = violation(way.reshape(-1, len(counts))).reshape(len(left), -1) <= 0.0
        found = good.any(axis=1)
        out.append(way[found, good[found].argmax(axis=1)])
        left = left[~found]
    return np.concatenate(out)


# -- Merge and split moves: boundaries between stages that jump, where mutation moves them step by step

SHARE = 0.3  # of children in which one boundary jumps


def boundaries(space: Space) -> np.ndarray:
    """Columns of the choices that place a boundary, first boundary first, int [b].

    None where every place has a choice of its own: there a mutation flips it, which merges or splits.
    """
    return np.array(boundary_columns(space.choices), dtype=np.int64)


def jump(rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Rows in a share of which one boundary goes elsewhere at once; int64 [n, choices].

    In half of them it goes to its neighbour's place, or to the end of the network on that side: the stage
    between is merged away. In the others it goes to any place, which splits the stage there.

    Args:
        rows: option indices [n, choices].
        columns: of :func:`boundaries`; where there are none nothing is drawn.
        counts: options of every choice, int [choices].
    """
    if not len(columns):
        return rows
    n, b = len(rows), len(columns)
    which = rng.integers(b, size=n)
    beside = which + rng.choice((-1, 1), n)  # -1: the start, the last option; b: the end, the first one
    near = rows[np.arange(n), columns[np.clip(beside, 0, b - 1)]]
    near = np.where(beside < 0, counts[columns[0]] - 1, np.where(beside == b, 0, near))
    anywhere = rng.integers(counts[columns[which]])
    to = np.where(rng.random(n) < 0.5, near, anywhere)
    jumps = rng.random(n) < SHARE
    out = rows.copy()
    out[jumps, columns[which[jumps]]] = to[jumps]
    return out


# -- What the evolutionary searchers share: the first population, variation, and breeding without a barrier

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


# -- Genetic algorithm for one objective, and regularised (ageing) evolution ----------------------------


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
