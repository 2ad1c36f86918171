"""Scale of the batch-norms that a unit passes (Liu et al. 2017, "Network Slimming")."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ..coupling import Group
from .magnitude import l1


def batchnorm(group: Group, parameters: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Mean of |gamma| over a unit's normalisations, [units]; groups without one are scored by :func:`l1`."""
    scales = [m for m in group.members if m.role == "scale"]
    if not scales:
        return l1(group, parameters)
    gammas = [
        parameters[m.parameter].detach().abs().double().numpy()[m.positions].mean(axis=1) for m in scales
    ]
    return np.mean(gammas, axis=0)
