"""Diagonal Fisher information (LeCun et al. 1989, "Optimal Brain Damage"; Theis et al. 2018)."""

from __future__ import annotations

import numpy as np
import torch

from ..coupling import Group, Member
from .gradients import GradientCriterion, per_unit


class Fisher(GradientCriterion):
    """1/2 sum(F w^2) over the weights that make a unit, F the mean squared gradient of single samples.

    The increase of the loss when the weights become zero, at a minimum, with the empirical Fisher information
    for the diagonal of the Hessian (LeCun et al. 1989, NIPS 2, eq. 5; Theis et al. 2018, arXiv 1801.05787,
    eq. 5 to 8). With the network's own outputs as targets F is the true diagonal for Gaussian outputs.

    Arguments as in :class:`.gradients.GradientCriterion`.
    """

    name = "fisher"

    def members(self, group: Group) -> list[Member]:
        return group.makers()

    def of_sample(self, terms: list[tuple[Member, torch.Tensor]]) -> np.ndarray:
        return np.sum([per_unit(product.square(), member) for member, product in terms], axis=0) / 2
