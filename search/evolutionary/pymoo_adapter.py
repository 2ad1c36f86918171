"""pymoo's genetic algorithms as searchers: its selection and survival, our integers, ask and tell."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
from pymoo.algorithms.base.genetic import GeneticAlgorithm
from pymoo.config import Config
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.ux import UniformCrossover

from ...results.objective import Objective
from ...results.trial import Trial
from ...spaces import Space
from .evolution import MUTATED, Evolution

Config.warnings["not_compiled"] = False  # else it prints an advertisement

FAILED = 1e9  # constraint violation of a failed trial: worse than breaking any limit


class PymooSearcher(Evolution):
    """A pymoo :class:`GeneticAlgorithm` behind :class:`Evolution`.

    Integers are varied as integers (uniform crossover, :meth:`mutated`), never rounded. Limits and failures
    are one constraint (feasible first, then the least violating). Duplicates are left out by
    :class:`Evolution`. pymoo's random numbers come from a generator of its own, seeded with ``seed``.
    """

    def __init__(self, space: Space, objectives: Iterable[Objective | str], **options: Any) -> None:
        super().__init__(space, objectives, **options)
        self._fresh: list[tuple[Trial, np.ndarray, float]] = []  # told since the last breeding
        d = len(space)
        problem = Problem(
            n_var=d,
            n_obj=len(self.objectives),
            n_ieq_constr=1,
            xl=np.zeros(d),
            xu=space.counts - 1,
            vtype=int,
        )
        self._algorithm = self.algorithm(
            pop_size=self.population,
            n_offsprings=self.brood,
            sampling=None,
            crossover=UniformCrossover(prob=0.9),
            mutation=_Step(self),
            eliminate_duplicates=False,
            output=None,
        )
        self._algorithm.termination = NoTermination()
        self._algorithm.setup(problem, seed=self.seed)

    @abstractmethod
    def algorithm(self, **common: Any) -> GeneticAlgorithm:
        """The algorithm, made with the arguments that all have in common."""

    def learn(self, trial: Trial, loss: np.ndarray, violation: float) -> None:
        self._fresh.append((trial, loss, violation))

    def breed(self, n: int) -> Iterable[np.ndarray]:
        with warnings.catch_warnings(), np.errstate(all="ignore"):  # pymoo changes the filters of warnings
            if self._fresh:
                self._algorithm.tell(infills=self._population())
                self._fresh = []
            self._algorithm.n_offsprings = n
            return self._algorithm.ask().get("X")

    def _population(self) -> Population:
        trials, losses, broken = zip(*self._fresh, strict=True)
        violation = np.minimum(broken, FAILED)[:, None]
        # Of an infeasible individual only the violation is compared, and pymoo cannot bear infinities.
        loss = np.where(np.isfinite(violation) & (violation < FAILED), np.array(losses), 0.0)
        indices = np.array([t.candidate.indices for t in trials], dtype=np.int64)
        return Population.new("X", indices, "F", loss, "G", violation, "H", np.zeros((len(trials), 0)))


class _Step(Mutation):
    """:meth:`Evolution.mutated` as a pymoo operator."""

    def __init__(self, searcher: Evolution) -> None:
        super().__init__()
        self.searcher = searcher

    def _do(self, problem: Problem, indices: np.ndarray, *_: Any, random_state: Any, **__: Any) -> np.ndarray:
        return self.searcher.mutated(random_state, indices, probability=MUTATED)
