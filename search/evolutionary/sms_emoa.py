"""SMS-EMOA by pymoo: a population that keeps what adds hypervolume."""

from __future__ import annotations

from typing import Any

from pymoo.algorithms.base.genetic import GeneticAlgorithm
from pymoo.algorithms.moo.sms import SMSEMOA as PymooSMSEMOA  # noqa: N811
from pymoo.algorithms.soo.nonconvex.ga import FitnessSurvival

from .pymoo_adapter import PymooSearcher


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
