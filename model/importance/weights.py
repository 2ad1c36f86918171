"""Importance read off the weights alone, and the random control."""

from __future__ import annotations

import zlib
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


# -- Scale of the batch-norms that a unit passes (Liu et al. 2017, "Network Slimming") ------------------


def batchnorm(group: Group, parameters: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Mean of |gamma| over a unit's normalisations, [units]; groups without one are scored by :func:`l1`."""
    scales = [m for m in group.members if m.role == "scale"]
    if not scales:
        return l1(group, parameters)
    gammas = [
        parameters[m.parameter].detach().abs().double().numpy()[m.positions].mean(axis=1) for m in scales
    ]
    return np.mean(gammas, axis=0)


# -- Random order: the control that every criterion should beat -----------------------------------------


class RandomOrder:
    """Uniform scores, the same for the same seed and group name."""

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, group: Group, parameters: Mapping[str, torch.Tensor]) -> np.ndarray:
        return np.random.default_rng([self.seed, zlib.crc32(group.name.encode())]).random(group.size)


random = RandomOrder()
