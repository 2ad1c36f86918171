"""Gradient times weight, weight by weight (Lee et al. 2019, "SNIP", arXiv 1810.02340, eq. 6)."""

from __future__ import annotations

import numpy as np
import torch

from ..coupling import Group, Member
from .gradients import GradientCriterion, per_unit


class Gradient(GradientCriterion):
    """Sum of |g w| over the weights that make a unit; mean over samples.

    Unlike :class:`.taylor.Taylor`, effects of opposite sign do not cancel. The absolute value is taken
    sample by sample, so that samples do not cancel either.

    Arguments as in :class:`.gradients.GradientCriterion`.
    """

    name = "gradient"

    def members(self, group: Group) -> list[Member]:
        return group.makers()

    def of_sample(self, terms: list[tuple[Member, torch.Tensor]]) -> np.ndarray:
        return np.sum([per_unit(product.abs(), member) for member, product in terms], axis=0)
