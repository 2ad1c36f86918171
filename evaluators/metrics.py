"""Metrics of quality: outputs against targets, fed batch by batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.nn.functional import cross_entropy

from .batches import Outputs, Targets, describe
from .errors import TaskError, first_line
from .outputs import joined, listed

IGNORED = -100  # targets of this class are left out, as torch's cross_entropy does


class Meter(Protocol):
    """Collects batches, then gives scores. Made anew for each measurement."""

    def add(self, outputs: Outputs, targets: Targets, count: int | None) -> None:
        """One batch of ``count`` samples, ``None`` where that cannot be told."""

    def scores(self) -> dict[str, float]:
        """Scores of all that was added, by metric name."""


@runtime_checkable
class Running(Protocol):
    """A metric that keeps sums and not samples, as those of torchmetrics do."""

    def update(self, outputs: Outputs, targets: Targets) -> Any:
        """Take in a batch."""

    def compute(self) -> Any:
        """The metric of all batches so far: one number."""

    def reset(self) -> Any:
        """Forget them."""


class Classification:
    """Accuracy (fraction in [0, 1]) and mean cross-entropy (nats) for class indices as targets.

    Outputs are scores [N, C, ...] with targets [N, ...], or [N, ..., C] with targets [N, ...].

    Args:
        last: whether classes are the last axis where the shapes allow both.
    """

    def __init__(self, *, last: bool = False) -> None:
        self.last = last
        self.correct = 0
        self.nats = 0.0
        self.count = 0

    @staticmethod
    def refusal(outputs: Tensor, targets: Targets, *, last: bool = False) -> str:
        """Why these are not class scores and class indices; empty when they are."""
        got = f"outputs {describe(outputs)}, targets {describe(targets)}"
        if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
            return f"targets must be class indices (integers); got {got}"
        if not outputs.is_floating_point() or outputs.dim() < 2:
            return f"outputs must be scores per class [batch, classes]; got {got}"
        scores = classes_second(outputs, targets, last=last)
        if scores is None:
            return f"outputs [batch, classes] and targets [batch] do not fit; got {got}"
        classes = scores.shape[1]
        if classes < 2:
            return f"outputs must have at least two classes; got {got}"
        kept = targets[targets != IGNORED].long()
        if kept.numel() and not 0 <= int(kept.min()) <= int(kept.max()) < classes:
            return f"the model scores {classes} classes, but the targets run {kept.min()}..{kept.max()}"
        return ""

    def add(self, outputs: Tensor, targets: Targets, count: int | None = None) -> None:
        """One batch.

        Raises:
            TaskError: see :meth:`refusal`.
        """
        scores = class_scores(outputs.detach(), targets, last=self.last).float()
        targets = targets.long()
        kept = targets != IGNORED
        self.correct += int(((scores.argmax(1) == targets) & kept).sum())
        self.nats += float(cross_entropy(scores, targets, reduction="sum", ignore_index=IGNORED))
        self.count += int(kept.sum())

    def scores(self) -> dict[str, float]:
        """``{"accuracy", "loss"}``; NaN when every target was ignored."""
        if not self.count:
            return {"accuracy": float("nan"), "loss": float("nan")}
        return {"accuracy": self.correct / self.count, "loss": self.nats / self.count}


class Whole:
    """A user's ``metric(outputs, targets)``, called once on all samples, as AUC or F1 need it."""

    def __init__(self, metric: Callable[[Any, Any], Any], name: str) -> None:
        self.metric = metric
        self.name = name
        self.batches: list[tuple[Any, Any, int | None]] = []

    def add(self, outputs: Outputs, targets: Targets, count: int | None) -> None:
        self.batches.append((outputs, targets, count))

    def scores(self) -> dict[str, float]:
        """
        Raises:
            TaskError: the metric raises or gives no number.
        """
        outputs, targets, counts = zip(*self.batches, strict=True)
        given, wanted = joined(outputs, counts), joined(targets, counts)
        try:
            value = self.metric(given, wanted)
        except Exception as error:
            raise TaskError(
                f"the metric {self.name!r} raises {first_line(error)}; it was called with outputs "
                f"{listed(given)} and targets {listed(wanted)}"
            ) from error
        return {self.name: _number(value, self.name)}


class Summed:
    """A user's running metric: ``update`` on each batch, ``compute`` at the end. Theirs stays as it is."""

    def __init__(self, metric: Running, name: str) -> None:
        self.metric = copy.deepcopy(metric)
        self.metric.reset()
        self.name = name

    def add(self, outputs: Outputs, targets: Targets, count: int | None) -> None:
        """
        Raises:
            TaskError: the metric raises.
        """
        try:
            self.metric.update(outputs, targets)
        except Exception as error:
            raise TaskError(
                f"the metric {self.name!r} raises {first_line(error)}; it was updated with outputs "
                f"{listed(outputs)} and targets {listed(targets)}"
            ) from error

    def scores(self) -> dict[str, float]:
        """
        Raises:
            TaskError: the metric raises or gives no number.
        """
        try:
            value = self.metric.compute()
        except Exception as error:
            raise TaskError(f"the metric {self.name!r} raises {first_line(error)} in compute()") from error
        return {self.name: _number(value, self.name)}


def class_scores(outputs: Tensor, targets: Targets, *, last: bool = False) -> Tensor:
    """Scores [N, C, ...] for targets [N, ...].

    Raises:
        TaskError: see :meth:`Classification.refusal`.
    """
    if why := Classification.refusal(outputs, targets, last=last):
        raise TaskError(why)
    scores = classes_second(outputs, targets, last=last)
    assert scores is not None
    return scores


def right(scores: Tensor, targets: Tensor) -> Tensor:
    """Which targets the scores [N, C, ...] of one batch hit, bool [targets that count]."""
    return (scores.argmax(1) == targets)[targets != IGNORED]


def classes_second(outputs: Tensor, targets: Tensor, *, last: bool = False) -> Tensor | None:
    """Scores as [N, C, ...], the order that torch's losses want; ``None`` if the shapes do not fit."""
    second = outputs.shape[:1] + outputs.shape[2:] == targets.shape
    if outputs.shape[:-1] == targets.shape and (last or not second):
        return outputs.movedim(-1, 1)
    return outputs if second else None


def _number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TaskError(f"the metric {name!r} must return one number, got {describe(value)}") from None
