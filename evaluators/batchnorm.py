"""BatchNorm re-estimation: the part of repair that is kept where it brings the original's outputs nearer.

What counts as nearer is the distance to the original's outputs on calibration inputs. It needs no labels, it
means the same for every kind of output, and it is what the layer-by-layer repair brings down; on the digits
network it ordered each of 42 candidates, before and after re-estimation, as the cross-entropy on validation
data did or within 0.02 nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from ..model.capture import tensors_of
from ..model.model_copy import plain_copy
from .batches import Inputs, batch_size, spread

if TYPE_CHECKING:
    from .task import Task

COMPARED = 128  # calibration samples, about, on which outputs are compared
SCREENED = 64  # calibration samples, at most, by which a clear misfit is told from a clear fit
NOTICEABLE = 0.25  # of the spread of the original's outputs
CLEAR = 2 * NOTICEABLE  # more than the noise of statistics of so few samples


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


def reestimate_if_better(model: nn.Module, task: Task) -> bool:
    """Re-estimate in place where that brings the outputs nearer to those of the task's model.

    Both are compared on some of the calibration inputs; statistics that do not help are put back. No-op
    without BatchNorm.

    Returns:
        Whether the statistics were changed.
    """
    if not _layers(model) or not task.calibration_batches:
        return False
    reference = _reference(task)
    before = reference.distance(model)
    statistics = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    reestimate_batchnorm(model, task.calibration_batches)
    if reference.distance(model) < before or math.isnan(before):
        return True
    with torch.no_grad():
        for buffer, old in statistics:
            buffer.copy_(old)
    return False


def misfit(task: Task) -> str:
    """What to say where the unchanged model's statistics are not those of the calibration data, else "".

    That is, where re-estimating would move its outputs by more than a quarter of their spread: the data are
    few, or unlike those that the model was trained on. Repair, which learns from them, suffers too.
    """
    if not _layers(task.model) or not task.calibration_batches:
        return ""
    # Statistics of few samples move outputs further, by their noise: what hardly moves fits, and what moves
    # far does not. Only between the two are all samples needed.
    few = spread([(*call, None) for call in task.calibration_batches], SCREENED)
    off = _moved(task.model, few, _Reference(task.model, few))
    if not (off <= NOTICEABLE or off > CLEAR):
        off = _moved(task.model, task.calibration_batches, _reference(task))
    if not off > NOTICEABLE:
        return ""
    return (
        "the model's BatchNorm statistics do not fit the calibration data: re-estimated on them, its outputs "
        f"would move by {off:.0%} of their spread. More of them, or data more like those it was trained on, "
        "make repair better: Task(calibration=...)"
    )


class _Reference:
    """A network's outputs on given inputs, and how far those of another are off."""

    def __init__(self, model: nn.Module, batches: Sequence[Inputs]) -> None:
        self._batches = batches
        self._outputs = list(map(self._joined, zip(*self._answers(model), strict=True)))

    def distance(self, model: nn.Module) -> float:
        """Mean over the output tensors of the mean squared difference by the original's variance."""
        off = [
            float((got - was).square().mean() / was.var(correction=0).clamp_min(1e-30))
            for got, was in zip(
                map(self._joined, zip(*self._answers(model), strict=True)), self._outputs, strict=True
            )
        ]
        return sum(off) / len(off) if off else 0.0

    def _answers(self, model: nn.Module) -> list[list[Tensor]]:
        with torch.no_grad():
            outputs = [model(*args, **kwargs) for args, kwargs in self._batches]
        return [[t for t in tensors_of(output) if t.is_floating_point()] for output in outputs]

    @staticmethod
    def _joined(batches: tuple[Tensor, ...]) -> Tensor:
        """One output over all batches as a row of numbers: its shape may differ from batch to batch."""
        return torch.cat([t.detach().reshape(-1) for t in batches]).double()


_REFERENCES: WeakKeyDictionary[Task, _Reference] = WeakKeyDictionary()  # one a task: a worker has one


def _reference(task: Task) -> _Reference:
    """The original's outputs on about :data:`COMPARED` of the calibration samples, computed once."""
    if task not in _REFERENCES:
        batches = task.calibration_batches
        total = sum(batch_size(b) or 1 for b in batches)
        # Batches spread over all of them, since their order may mean something.
        some = batches[:: max(1, min(len(batches), total // COMPARED))]
        _REFERENCES[task] = _Reference(task.model, some)
    return _REFERENCES[task]


def _moved(model: nn.Module, batches: Sequence[Inputs], reference: _Reference) -> float:
    """How far re-estimation on ``batches`` moves the outputs, as a share of their spread."""
    moved = plain_copy(model)
    reestimate_batchnorm(moved, batches)
    return reference.distance(moved) ** 0.5


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
