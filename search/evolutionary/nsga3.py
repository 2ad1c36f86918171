"""NSGA-III by pymoo: one survivor for every direction in which a front may lie."""

from __future__ import annotations

from typing import Any

import numpy as np
from pymoo.algorithms.base.genetic import GeneticAlgorithm
from pymoo.algorithms.moo.nsga3 import NSGA3 as PymooNSGA3  # noqa: N811
from pymoo.operators.selection.tournament import TournamentSelection

from .pymoo_adapter import PymooSearcher
from .ranking import simplex


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
