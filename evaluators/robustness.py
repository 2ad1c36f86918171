"""How well a candidate does on corrupted inputs: noise, shift, contrast, blur and FGSM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..spaces import Candidate
from .base import Evaluator, Measured
from .batches import Batch, arguments, describe_call
from .corruptions import IMAGES, VECTORS, Scale, corrupted
from .errors import TaskError
from .judge import Judge
from .metrics import IGNORED, Classification
from .task import Task

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
        strengths: by corruption, in place of :data:`corruptions.IMAGES`; those named are all that is done.
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
