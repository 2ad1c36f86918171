"""BatchNorm statistics after surgery: without this, accuracy after pruning is noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from .batches import Inputs, batch_size


def reestimate_batchnorm(model: nn.Module, batches: Sequence[Inputs]) -> None:
    """Replace the running statistics by the average over ``batches``, in place.

    Only BatchNorm runs in training mode (dropout does not), and every flag is put back, also after an
    error. A batch of n samples enters with momentum n / (samples so far), which makes the exponential
    average a plain one (Yu & Huang 2019, arXiv 1903.05134, section 3). No-op without BatchNorm.

    Args:
        batches: ``(args, kwargs)`` each; calibration inputs.
    """
    layers = _layers(model)
    if not layers or not batches:
        return
    seen = 0
    with _training(layers), torch.no_grad():
        for args, kwargs in batches:
            samples = batch_size((args, kwargs)) or 1
            seen += samples
            for layer in layers:
                setattr(layer, _momentum(layer), samples / seen)
            model(*args, **kwargs)


def _layers(model: nn.Module) -> list[nn.Module]:
    """BatchNorm modules with running statistics, and captured graphs that hold BatchNorm as functions."""
    return [
        m
        for m in model.modules()
        if (isinstance(m, BatchNorm) and m.running_mean is not None) or hasattr(m, "batch_norm_momentum")
    ]


def _momentum(layer: nn.Module) -> str:
    return "momentum" if isinstance(layer, BatchNorm) else "batch_norm_momentum"


def _flag(layer: nn.Module) -> str:
    return "training" if isinstance(layer, BatchNorm) else "batch_norm_training"


@contextmanager
def _training(layers: list[nn.Module]) -> Iterator[None]:
    before: list[tuple[Any, Any]] = [(getattr(m, _flag(m)), getattr(m, _momentum(m))) for m in layers]
    try:
        for layer in layers:
            # Through the attribute, not .train(), which would reach submodules.
            setattr(layer, _flag(layer), True)
        yield
    finally:
        for layer, (flag, momentum) in zip(layers, before, strict=True):
            setattr(layer, _flag(layer), flag)
            setattr(layer, _momentum(layer), momentum)
