"""Mean activation (Molchanov et al. 2017, arXiv 1611.06440, section 2.2, "activation")."""

from __future__ import annotations

import numpy as np
import torch

from .activations import ActivationCriterion, Statistic, balanced


class ActivationMean(ActivationCriterion):
    """Mean of |activation|, over samples and places, as the layers that read a unit see it.

    The absolute value matters only where activations may be negative (the source has ReLU). Readers count
    alike: each one's means are scaled to mean 1 over the group.

    Arguments as in :class:`.activations.ActivationCriterion`.
    """

    name = "activation_mean"

    def statistics(self) -> tuple[Statistic, ...]:
        return (torch.abs,)

    def combine(self, readers: list[np.ndarray]) -> np.ndarray:
        return balanced([mean for (mean,) in readers])
