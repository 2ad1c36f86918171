"""Magnitude of the weights that make a unit (Li et al. 2017, "Pruning Filters for Efficient ConvNets")."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ..coupling import Group


def l1(group: Group, parameters: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Sum of |w| over a unit's filters, [units]."""
    return _magnitude(group, parameters, 1)


def l2(group: Group, parameters: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Euclidean norm of a unit's filters, [units]."""
    return _magnitude(group, parameters, 2)


def _magnitude(group: Group, parameters: Mapping[str, torch.Tensor], p: int) -> np.ndarray:
    """Mean over the layers that make the units; each layer is scaled to mean 1 so that all have a voice."""
    total = np.zeros(group.size)
    for member in group.makers():
        weight = parameters[member.parameter].detach().double()
        rows = weight.movedim(member.axis, 0).flatten(1).abs().pow(p).sum(1).numpy()
        score = rows[member.positions].sum(axis=1) ** (1 / p)
        total += score / max(float(score.mean()), 1e-30)
    return total / max(len(group.makers()), 1)
