"""NSGA-II by pymoo: a population that spreads along the front."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2 as PymooNSGA2  # noqa: N811
from pymoo.config import Config
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.ux import UniformCrossover

from ..results.objective import Objective
from ..results.trial import Trial
from ..spaces import Candidate, Space
from .base import Searcher

Config.warnings["not_compiled"] = False  # else it prints an advertisement

FAILED = 1e9  # constraint violation of a failed trial: worse than breaking any limit


class NSGA2(Searcher):
    """Non-dominated sorting genetic algorithm (Deb et al., IEEE Trans. Evol. Comput. 6(2), 2002).

    Steady state: whenever candidates are wanted and none are left, ``brood`` children are bred from the best
    ``population`` trials told so far, so that workers never wait for a generation to end. Limits and failures
    are constraint violations (Deb's rule: feasible first, then the least violating). The first population
    decides more than the algorithm does: half of it is a ladder of uniform compression from unchanged to
    most compressed, the rest are random candidates of random mean compression.

    Args:
        population: survivors, and size of the first population; at least 4.
        brood: children bred at a time; at least 1.
    """

    def __init__(
        self,
        space: Space,
        objectives: Iterable[Objective | str],
        *,
        seed: int = 0,
        population: int = 16,
        brood: int = 8,
    ) -> None:
        super().__init__(space, objectives, seed=seed)
        if population < 4 or brood < 1:
            raise ValueError(
                f"population must be at least 4 and brood at least 1, got {population} and {brood}"
            )
        self.population = population
        self._queue = deque(first_population(space, self.rng, population))
        self._asked: set[Candidate] = set()
        self._told: set[Candidate] = set()
        self._fresh: list[Trial] = []  # told since the last breeding
        self._algorithm = _pymoo(space, len(self.objectives), population, brood, seed, self._asked)

    def ask(self, n: int) -> list[Candidate]:
        if len(self._queue) < n and self._may_breed():
            self._queue.extend(self._breed())
        asked = [self._queue.popleft() for _ in range(min(n, len(self._queue)))]
        self._asked.update(asked)
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        super().tell(trials)
        for trial in sorted(trials, key=lambda t: (t.number, t.candidate.indices)):
            if trial.candidate not in self._told:
                self._told.add(trial.candidate)
                self._fresh.append(trial)

    def _may_breed(self) -> bool:
        """Half of the first population is known, or all that was asked for is."""
        enough = min(self.population // 2, len(self._asked))
        return len(self._told) >= max(1, enough)

    def _breed(self) -> list[Candidate]:
        if self._fresh:
            self._algorithm.tell(infills=self._as_population(self._fresh))
            self._fresh = []
        children = self._algorithm.ask()
        if children is None or not len(children):  # no unseen child in many matings: leave the population
            self._algorithm.termination.force_termination = False
            return self.space.sample(self.rng, 1)
        return [Candidate(tuple(x), self.space.choices) for x in children.get("X").tolist()]

    def _as_population(self, trials: list[Trial]) -> Population:
        loss = np.array([self.loss(t) for t in trials])  # [n, objectives]
        violation = np.array([self.violation(t) for t in trials])  # [n]
        unusable = ~np.isfinite(loss).all(axis=1)
        violation[unusable] = FAILED
        loss[unusable] = 0.0  # never compared: an infeasible individual is ranked by its violation alone
        indices = np.array([t.candidate.indices for t in trials], dtype=np.int64)
        none = np.zeros((len(trials), 0))
        return Population.new("X", indices, "F", loss, "G", violation[:, None], "H", none)


def first_population(space: Space, rng: np.random.Generator, n: int) -> list[Candidate]:
    """A ladder of uniform compression, both corners included, and random candidates of random intensity.

    At most ``n``, distinct; denser towards the unchanged model (squared), where a front is useful.
    """
    ladder = [space.decode(np.full(len(space), t**2)) for t in np.linspace(0.0, 1.0, n // 2)]
    drawn = rng.binomial(space.counts - 1, rng.random((2 * n, 1)) ** 2, size=(2 * n, len(space)))
    scattered = [Candidate(tuple(row), space.choices) for row in drawn.tolist()]
    return list(dict.fromkeys([*ladder, *scattered]))[:n]


class _Step(Mutation):
    """Moves one option index or a few, by one mostly: options are ordered, and near ones are alike."""

    def _do(self, problem: Problem, indices: np.ndarray, *_: Any, random_state: Any, **__: Any) -> np.ndarray:
        n, d = indices.shape
        moved = random_state.random((n, d)) < 1.0 / d
        moved[np.arange(n), random_state.integers(0, d, n)] = True  # at least one
        step = random_state.geometric(0.5, (n, d)) * random_state.choice((-1, 1), (n, d))
        return np.clip(indices + moved * step, problem.xl, problem.xu).astype(np.int64)


class _Unseen(DuplicateElimination):
    """Drops children that were asked for before, or twice in one brood."""

    def __init__(self, seen: set[Candidate]) -> None:
        super().__init__()
        self.seen = seen

    def do(self, pop: Population, *others: Population, **_: Any) -> Population:
        taken = {tuple(x) for other in others if len(other) for x in other.get("X").tolist()}
        keep = []
        for x in pop.get("X").tolist():
            indices = tuple(x)
            keep.append(indices not in taken and Candidate(indices) not in self.seen)
            taken.add(indices)
        return pop[np.array(keep, dtype=bool)]


def _pymoo(
    space: Space, objectives: int, population: int, brood: int, seed: int, seen: set[Candidate]
) -> PymooNSGA2:
    d = len(space)
    problem = Problem(
        n_var=d, n_obj=objectives, n_ieq_constr=1, xl=np.zeros(d), xu=space.counts - 1, vtype=int
    )
    algorithm = PymooNSGA2(
        pop_size=population,
        n_offsprings=brood,
        sampling=None,
        crossover=UniformCrossover(prob=0.9),
        mutation=_Step(),
        eliminate_duplicates=_Unseen(seen),
        output=None,
    )
    algorithm.termination = NoTermination()
    algorithm.mating.n_max_iterations = 10
    return algorithm.setup(problem, seed=seed)
