"""Robustness: quality on corrupted inputs: noise, shift, contrast, blur and FGSM."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy

from ..spaces import Candidate
from .base import Evaluator, Measured
from .batches import Batch, arguments, describe_call
from .errors import TaskError
from .judge import Judge
from .metrics import IGNORED, Classification
from .task import Task

# Strengths by default, in units of the data, so that they mean the same for [0, 1] and standardised inputs.
IMAGES: dict[str, float] = {
    "noise": 0.25,  # standard deviation of Gaussian noise, in standard deviations of the data
    "shift": 0.125,  # share of height and width that an image is moved, at least a pixel
    "contrast": 0.5,  # share of the contrast that is lost
    "blur": 1 / 64,  # standard deviation of a Gaussian kernel, as a share of the width; at least half a pixel
    "fgsm": 0.1,  # step in the direction of the gradient's sign, in standard deviations of the data
}
VECTORS: dict[str, float] = {name: IMAGES[name] for name in ("noise", "fgsm")}


@dataclass(frozen=True, slots=True)
class Scale:
    """What numbers the data have: noise and FGSM stay in their range."""

    deviation: float
    low: float
    high: float

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Scale:
        """Of all values together; a deviation of 0 (constant data) counts as 1."""
        count = sum(t.numel() for t in tensors)
        mean = sum(float(t.sum(dtype=torch.float64)) for t in tensors) / count
        squares = sum(float(((t.double() - mean) ** 2).sum()) for t in tensors)
        low, high = min(float(t.min()) for t in tensors), max(float(t.max()) for t in tensors)
        return cls(math.sqrt(squares / count) or 1.0, low, high)


def corrupted(name: str, x: Tensor, strength: float, scale: Scale, generator: torch.Generator) -> Tensor:
    """``x`` [batch, ...] under one of :data:`IMAGES`, FGSM excepted.

    Args:
        generator: of noise and directions, seeded by the caller.
    """
    if name == "noise":
        drawn = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)
        return (x + strength * scale.deviation * drawn).clamp(scale.low, scale.high)
    if name == "shift":
        return shifted(x, strength, generator)
    if name == "contrast":
        return contrast(x, strength)
    if name == "blur":
        return blurred(x, strength)
    raise ValueError(f"unknown corruption {name!r}")


def shifted(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Each image [n, c, h, w] moved along one of the 8 directions drawn for it; the edge is repeated."""
    n, _, h, w = x.shape
    down, right = max(1, round(share * h)), max(1, round(share * w))
    ways = torch.tensor([(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)])
    way = ways[torch.randint(0, 8, (n,), generator=generator)]
    rows = (torch.arange(h) - way[:, :1] * down).clamp(0, h - 1)  # [n, h]
    columns = (torch.arange(w) - way[:, 1:] * right).clamp(0, w - 1)
    # Advanced indices apart from the channels' slice put theirs first: [n, h, w, c].
    return x[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def contrast(x: Tensor, share: float) -> Tensor:
    """Each image drawn to its mean by ``share`` of the distance."""
    mean = x.mean(dim=tuple(range(1, x.dim())), keepdim=True)
    return mean + (1 - min(share, 1.0)) * (x - mean)


def blurred(x: Tensor, share: float) -> Tensor:
    """Each channel [n, c, h, w] under a Gaussian kernel; the edge is repeated."""
    sigma = max(0.5, share * x.shape[-1])
    reach = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(x.dtype)
    channels = x.shape[1]
    padded = functional.pad(x, (reach, reach, reach, reach), mode="replicate")
    across = functional.conv2d(padded, kernel.expand(channels, 1, 1, -1), groups=channels)
    return functional.conv2d(across, kernel[:, None].expand(channels, 1, -1, 1), groups=channels)


# -- How well a candidate does on corrupted inputs: noise, shift, contrast, blur and FGSM ---------------

METRIC = "robust_accuracy"


class Robustness(Evaluator):
    """``robust_accuracy``: the mean of the task's metric over corruptions of its validation data.

    The metric is accuracy where the targets are class indices, else the task's own, which must then be the
    better the larger. ``detail["robustness"]`` holds the metric under each corruption, and on the data as
    they are (``clean``). Equal for all candidates but FGSM are the corrupted inputs themselves, so that
    differences between candidates are not those of the noise.

    Inputs: one floating-point tensor [batch, channels, height, width] gets all of them; a vector or sequence
    [batch, ...] noise and FGSM alone, since shifts and blur mean nothing there. Other inputs (masks, lengths)
    stay as they are. FGSM (Goodfellow et al. 2015, arXiv 1412.6572, section 4) needs class indices.

    Args:
        strengths: by corruption, in place of :data:`IMAGES`; those named are all that is done.
        seed: of the noise.

    Raises:
        ValueError: a corruption that is unknown, or a strength that is not a positive number.
    """

    name = "robustness"
    metrics = (METRIC,)
    only_runs = False  # FGSM takes gradients

    def __init__(self, *, strengths: Mapping[str, float] | None = None, seed: int = 0) -> None:
        for name, strength in (strengths or {}).items():
            if name not in IMAGES:
                raise ValueError(f"unknown corruption {name!r}: known are {', '.join(IMAGES)}")
            if not strength > 0:
                raise ValueError(f"the strength of {name} must be more than 0, got {strength}")
        if strengths is not None and not strengths:
            raise ValueError(f"strengths names no corruption; known are {', '.join(IMAGES)}")
        self.strengths = None if strengths is None else dict(strengths)
        self.seed = seed

    def applied(self, task: Task) -> dict[str, float]:
        """What this task's inputs are put through, by name with its strength.

        Raises:
            TaskError: no floating-point input, several of them, or a corruption asked for that does not fit.
        """
        _, value = corrupted_input(task)
        fitting = dict(IMAGES if value.dim() == 4 else VECTORS)
        if not classifies(task):
            del fitting["fgsm"]
        if self.strengths is None:
            return fitting
        if strays := [name for name in self.strengths if name not in fitting]:
            raise TaskError(
                f"{strays[0]} does not fit this task, whose input is {describe_call(task.example)}"
                f"{'' if classifies(task) else ' and whose targets are not class indices'}; "
                f"fitting are {', '.join(fitting)}"
            )
        return self.strengths

    def __call__(self, task: Task | None, model: nn.Module | None, candidate: Candidate) -> dict[str, float]:
        if task is None or model is None:
            raise ValueError("robust_accuracy needs a task and a model")
        key, _ = corrupted_input(task)
        scale = Scale.of([arguments(batch[:2])[key] for batch in task.batches])
        score = _scoring(task)
        found = {"clean": score(model, task.batches)}
        for name, strength in self.applied(task).items():
            batches = [
                self._batch(task.judge, model, batch, number, key, name, strength, scale)
                for number, batch in enumerate(task.batches)
            ]
            found[name] = score(model, batches)
        hurt = [value for name, value in found.items() if name != "clean"]
        return Measured({METRIC: sum(hurt) / len(hurt)}, detail={"robustness": found})

    def _batch(
        self,
        judge: Judge,
        model: nn.Module,
        batch: Batch,
        number: int,
        key: str,
        name: str,
        strength: float,
        scale: Scale,
    ) -> Batch:
        x = arguments(batch[:2])[key]
        if name == "fgsm":
            worse = fgsm(model, batch, key, strength * scale.deviation, judge).clamp(scale.low, scale.high)
        else:
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + number)
            worse = corrupted(name, x, strength, scale, generator)
        return replaced(batch, key, worse)


def fgsm(model: nn.Module, batch: Batch, key: str, step: float, judge: Judge) -> Tensor:
    """``x + step * sign(d loss / d x)``, the loss being cross-entropy with the targets.

    Args:
        key: name of the input to change, as :func:`batches.arguments` gives it.
    """
    x = arguments(batch[:2])[key].detach().clone().requires_grad_()
    args, kwargs, targets = replaced(batch, key, x)
    with torch.enable_grad():
        scores = judge.class_scores(model(*args, **kwargs), targets)
        # Summed, so that the step of a sample does not depend on its batch; its sign would not anyway.
        loss = cross_entropy(scores, targets.long(), ignore_index=IGNORED, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
    return (x + step * gradient.sign()).detach()


def corrupted_input(task: Task) -> tuple[str, Tensor]:
    """Name and example of the input that is corrupted.

    Raises:
        TaskError: the model takes no floating-point tensor with a batch axis and features, or several.
    """
    found = {
        key: value
        for key, value in arguments(task.example).items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1
    }
    if len(found) != 1:
        what = "no floating-point input" if not found else f"several of them ({', '.join(found)})"
        raise TaskError(
            f"robust_accuracy corrupts one floating-point input, and the model takes {what}: "
            f"{describe_call(task.example)}; leave it out, or give an evaluator of your own"
        )
    return next(iter(found.items()))


def classifies(task: Task) -> bool:
    """Are outputs class scores, so that there is an accuracy, and a loss to attack?"""
    return task.judge.classifies


def replaced(batch: Batch, key: str, value: Tensor) -> Batch:
    """The batch with one input changed."""
    args, kwargs, targets = batch
    names = list(arguments((args, kwargs)))
    position = names.index(key)
    if position < len(args):
        return (*args[:position], value, *args[position + 1 :]), kwargs, targets
    name = list(kwargs)[position - len(args)]
    return args, {**kwargs, name: value}, targets


def _scoring(task: Task) -> Callable[[nn.Module, list[Batch]], float]:
    """Accuracy where there is one, else the task's metric."""

    def score(model: nn.Module, batches: list[Batch]) -> float:
        with torch.no_grad():
            outputs: list[Any] = [model(*args, **kwargs) for args, kwargs, _ in batches]
        if task.metric == "loss":  # less is better there, and the name says accuracy
            found = Classification(last=task.judge.last)
            for given, (_, _, targets) in zip(outputs, batches, strict=True):
                found.add(task.judge.judged(given), targets)
            return found.scores()["accuracy"]
        return task.measure_on(outputs, batches)

    return score
