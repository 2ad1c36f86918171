"""NSGA-II by pymoo: a population that spreads along the front."""

from __future__ import annotations

from typing import Any

from pymoo.algorithms.base.genetic import GeneticAlgorithm
from pymoo.algorithms.moo.nsga2 import NSGA2 as PymooNSGA2  # noqa: N811

from .pymoo_adapter import PymooSearcher


class NSGA2(PymooSearcher):
    """Non-dominated sorting genetic algorithm (Deb et al., IEEE Trans. Evol. Comput. 6(2), 2002).

    Survival by front, then by crowding distance within the front. Options and the steady state as
    :class:`Evolution`; limits and failures as :class:`PymooSearcher`.
    """

    def algorithm(self, **common: Any) -> GeneticAlgorithm:
        return PymooNSGA2(**common)
