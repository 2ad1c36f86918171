"""Importance criteria: how much each unit of a coupled group matters. One small file each.

A criterion is any callable ``(group, parameters) -> scores`` with scores [units] (larger matters more) and
parameters the model's tensors by name; it is shared by all groups of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

import numpy as np
import torch

from ..coupling import Group
from ..repair import Calibration

Criterion = Callable[[Group, Mapping[str, torch.Tensor]], np.ndarray]

_BUILT_IN = {
    "l1": ".magnitude:l1",
    "l2": ".magnitude:l2",
    "batchnorm": ".batchnorm:batchnorm",
    "random": ".random:random",
}


def criterion(name: str | Criterion, calibration: Calibration | None = None) -> Criterion:
    """Criterion by name, or the callable given.

    Raises:
        ValueError: unknown name, or ``"reconstruction"`` without calibration.
    """
    if callable(name):
        return name
    if name == "reconstruction":
        if calibration is None:
            raise ValueError(
                "importance 'reconstruction' needs calibration data: give space(..., calibration=batches) "
                "with batches = [(args, kwargs), ...], or another importance such as 'l1'"
            )
        from .reconstruction import Reconstruction

        return Reconstruction(calibration)
    if name not in _BUILT_IN:
        known = ", ".join((*_BUILT_IN, "reconstruction"))
        raise ValueError(f"unknown importance {name!r}; known are {known}, or give a function")
    module, _, attribute = _BUILT_IN[name].partition(":")
    return getattr(import_module(module, __name__), attribute)


def order(group: Group, parameters: Mapping[str, torch.Tensor], by: Criterion) -> np.ndarray:
    """Units of ``group`` from most to least important, [units]; ties keep the network's order.

    Raises:
        ValueError: the criterion returned a wrong shape or numbers that are not finite.
    """
    scores = np.asarray(by(group, parameters), dtype=np.float64)
    if scores.shape != (group.size,) or not np.isfinite(scores).all():
        raise ValueError(
            f"importance of group {group.name!r} must be {group.size} finite numbers, "
            f"got shape {scores.shape}"
        )
    return np.argsort(-scores, kind="stable")
