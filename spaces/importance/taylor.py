"""First-order Taylor expansion of the loss in a unit's presence (Molchanov et al. 2017 and 2019)."""

from __future__ import annotations

import numpy as np
import torch

from ..coupling import Group, Member
from .gradients import GradientCriterion, per_unit


class Taylor(GradientCriterion):
    """Squared change of the loss, to first order, when a unit goes; mean over samples.

    A unit goes when the layers that read it stop reading it: a sample's loss changes by -sum(g w) over all
    weights that read the unit, in all layers at once. The sum comes before the square (Molchanov et al. 2019,
    arXiv 1906.10771, eq. 8, whose gate has this gradient; for activations 2017, arXiv 1611.06440, eq. 8).
    Units that no weight reads (a product of activations does) are judged by the weights that make them.

    Arguments as in :class:`.gradients.GradientCriterion`.
    """

    name = "taylor"

    def members(self, group: Group) -> list[Member]:
        return [m for m in group.members if m.role == "in"] or group.makers()

    def of_sample(self, terms: list[tuple[Member, torch.Tensor]]) -> np.ndarray:
        return np.sum([per_unit(product, member) for member, product in terms], axis=0) ** 2
