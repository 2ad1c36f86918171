"""Genetic algorithms of pymoo as searchers: NSGA-II, NSGA-III, SMS-EMOA."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
from pymoo.algorithms.base.genetic import GeneticAlgorithm
from pymoo.algorithms.moo.nsga2 import NSGA2 as PymooNSGA2  # noqa: N811
from pymoo.algorithms.moo.nsga3 import NSGA3 as PymooNSGA3  # noqa: N811
from pymoo.algorithms.moo.sms import SMSEMOA as PymooSMSEMOA  # noqa: N811
from pymoo.algorithms.soo.nonconvex.ga import FitnessSurvival
from pymoo.config import Config
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.ux import UniformCrossover
from pymoo.operators.selection.tournament import TournamentSelection

from ...results.objective import Objective
from ...results.trial import Trial
from ...spaces import Space
from .evolution import MUTATED, Evolution
from .ranking import simplex

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

    def _do(
        self, problem: Problem, indices: np.ndarray, *_: Any, random_state: np.random.Generator, **__: Any
    ) -> np.ndarray:
        return self.searcher.mutated(random_state, indices, probability=MUTATED)


# -- NSGA-II by pymoo: a population that spreads along the front ----------------------------------------


class NSGA2(PymooSearcher):
    """Non-dominated sorting genetic algorithm (Deb et al., IEEE Trans. Evol. Comput. 6(2), 2002).

    Survival by front, then by crowding distance within the front. Options and the steady state as
    :class:`Evolution`; limits and failures as :class:`PymooSearcher`.
    """

    def algorithm(self, **common: Any) -> GeneticAlgorithm:
        return PymooNSGA2(**common)


# -- NSGA-III by pymoo: one survivor for every direction in which a front may lie -----------------------


class NSGA3(PymooSearcher):
    """Reference-point based NSGA (Deb and Jain, IEEE Trans. Evol. Comput. 18(4), 2014), unified for one and
    two objectives (U-NSGA-III: Seada and Deb, IEEE Trans. Evol. Comput. 20(3), 2016).

    Survivors are those nearest to reference directions spread evenly over the simplex, at most
    ``population`` of them; parents of one niche are compared by rank, then by distance to their direction.
    Made for three objectives and more. Options and the steady state as :class:`Evolution`.
    """

    def algorithm(self, **common: Any) -> GeneticAlgorithm:
        directions = simplex(self.population, len(self.objectives))
        common["pop_size"] = max(self.population, len(directions))
        return PymooNSGA3(directions, selection=TournamentSelection(func_comp=_better), **common)


def _better(pop: Any, pairs: np.ndarray, *, random_state: Any, **_: Any) -> np.ndarray:
    """Winners of the tournaments, int [n, 1] of ``pairs`` [n, 2].

    pymoo's own comparison fails where two individuals break the limits by the same (it draws without a
    generator).
    """
    won = random_state.permuted(pairs, axis=1)[:, 0]
    for i, (a, b) in enumerate(pairs):
        keys = [_key(pop[a]), _key(pop[b])]
        if keys[0][0] != keys[1][0] or (keys[0][0] == 0.0 and keys[0][1] == keys[1][1]):
            won[i] = won[i] if keys[0] == keys[1] else (a if keys[0] < keys[1] else b)
    return won[:, None]


def _key(individual: Any) -> tuple[float, ...]:
    """Violation, niche, rank in it, distance to its direction; the violation alone where it is not 0."""
    violation = float(individual.CV[0])
    if violation > 0.0:
        return (violation,)
    niche, rank, distance = individual.get("niche", "rank", "dist_to_niche")
    return (0.0, float(niche), float(rank), float(distance))


# -- SMS-EMOA by pymoo: a population that keeps what adds hypervolume -----------------------------------


class SMSEMOA(PymooSearcher):
    """S-metric selection (Beume, Naujoks and Emmerich, Eur. J. Oper. Res. 181(3), 2007).

    Of the last front that fits, the survivor dropped is the one that adds least to the hypervolume of the
    normalised front. Options and the steady state as :class:`Evolution`.
    """

    def algorithm(self, **common: Any) -> GeneticAlgorithm:
        # Without `normalize` the ideal and nadir points are those of the feasible alone, as they should be;
        # with it they would take in failed trials too.
        if len(self.objectives) == 1:  # pymoo's contributions need two; here they are the losses
            common["survival"] = FitnessSurvival()
        return PymooSMSEMOA(normalize=False, **common)
