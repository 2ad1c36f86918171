"""Importance criteria: how much each unit of a coupled group matters.

A criterion is any callable ``(group, parameters) -> scores`` with scores [units] (larger matters more) and
parameters the model's tensors by name; it is shared by all groups of a model. Scores compare units of one
group; they say nothing across groups, where they grow with the weights of a unit.

Criteria that have to run the network are objects with ``measure(evidence) -> criterion`` (:mod:`.measured`):
activations (:class:`.activations.ActivationMean`, :class:`.activations.ZeroFraction`) need inputs;
gradients (:class:`.gradients.Taylor`, :class:`.gradients.Gradient`, :class:`.gradients.Fisher`) need
inputs, and take targets with a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

import numpy as np
import torch

from ..coupling import Group
from ..repair import Calibration
from .measured import Evidence, Measure

Criterion = Callable[[Group, Mapping[str, torch.Tensor]], np.ndarray]

_BUILT_IN = {
    "l1": ".weights:l1",
    "l2": ".weights:l2",
    "batchnorm": ".weights:batchnorm",
    "cluster": ".cluster:cluster",
    "random": ".weights:random",
}

# These run the network on the calibration inputs; without arguments.
_MEASURED = {
    "taylor": ".gradients:Taylor",
    "gradient": ".gradients:Gradient",
    "fisher": ".gradients:Fisher",
    "activation_mean": ".activations:ActivationMean",
    "zero_fraction": ".activations:ZeroFraction",
}

CALIBRATED = frozenset((*_MEASURED, "reconstruction"))  # names whose order depends on the calibration


def check_name(name: str) -> None:
    """
    Raises:
        ValueError: there is no criterion of this name.
    """
    known = (*_BUILT_IN, *_MEASURED, "reconstruction")
    if name not in known:
        raise ValueError(f"unknown importance {name!r}; known are {', '.join(known)}, or give a function")


def criterion(
    name: str | Criterion | Measure,
    calibration: Calibration | None = None,
    evidence: Evidence | None = None,
) -> Criterion:
    """Criterion by name, or the one given, measured where it has to be.

    Raises:
        ValueError: unknown name, or no calibration where there has to be.
    """
    if name == "reconstruction":
        if calibration is None:
            raise ValueError(
                "importance 'reconstruction' needs calibration data: give space(..., calibration=batches) "
                "with batches = [(args, kwargs), ...], or another importance such as 'l1'"
            )
        from .reconstruction import Reconstruction

        return Reconstruction(calibration)
    if isinstance(name, str):
        check_name(name)
        module, _, attribute = {**_BUILT_IN, **_MEASURED}[name].partition(":")
        found = getattr(import_module(module, __name__), attribute)
        name = found() if name in _MEASURED else found
    if isinstance(name, Measure):
        if evidence is None:
            raise RuntimeError(
                "this copy of the blueprint holds no captured graph to measure; use the original"
            )
        return name.measure(evidence)
    if not callable(name):
        raise TypeError(f"importance is a name, a function or a criterion, got {type(name).__name__}")
    return name


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
