"""How often a unit is not zero (Hu et al. 2016, "Network Trimming", arXiv 1607.03250, eq. 1)."""

from __future__ import annotations

import numpy as np
import torch

from .activations import ActivationCriterion, Statistic, balanced


class ZeroFraction(ActivationCriterion):
    """One less the fraction of exact zeros among a unit's activations, in [0, 1]; mean over readers.

    Groups whose activations are never zero (GELU and the like) are scored by the mean of |activation|, as
    :class:`.activation_mean.ActivationMean` does: a constant fraction would tell nothing.

    Arguments as in :class:`.activations.ActivationCriterion`.
    """

    name = "zero_fraction"

    def statistics(self) -> tuple[Statistic, ...]:
        return (lambda x: x != 0, torch.abs)

    def combine(self, readers: list[np.ndarray]) -> np.ndarray:
        alive = np.mean([fraction for fraction, _ in readers], axis=0)
        return alive if (alive < 1).any() else balanced([mean for _, mean in readers])
