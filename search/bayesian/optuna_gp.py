"""Gaussian processes by Optuna: a model of every objective."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .optuna_adapter import STARTUP, OptunaSearcher

if TYPE_CHECKING:
    import optuna


class OptunaGP(OptunaSearcher):
    """Matern Gaussian processes, one for each objective and one for measured limits, and log expected
    (hypervolume) improvement (Ament et al., NeurIPS 2023; Daulton, Balandat and Bakshy, NeurIPS 2020).

    It knows nothing of the space: analytic costs are modelled like accuracy. Takes 1 to 2 seconds a candidate
    (12 choices, two objectives, one core, 15 others under way), bounded by ``history``. Options as
    :class:`OptunaSearcher`.
    """

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        from optuna.samplers import GPSampler

        return GPSampler(seed=seed, n_startup_trials=STARTUP, warn_independent_sampling=False)
