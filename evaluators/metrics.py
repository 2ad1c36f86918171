"""Quality of outputs against targets, summed over batches so that memory stays small."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .batches import describe
from .errors import TaskError, first_line

IGNORED = -100  # targets of this class are left out, as torch's cross_entropy does


def tensor_of(outputs: Any) -> Tensor:
    """The tensor to score: the output itself, ``"logits"`` or the first tensor of a dict or tuple.

    Raises:
        TaskError: no tensor in it.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping) and isinstance(outputs.get("logits"), Tensor):
        return outputs["logits"]
    parts = outputs.values() if isinstance(outputs, Mapping) else outputs
    if isinstance(outputs, Mapping | tuple | list):
        for part in parts:
            if isinstance(part, Tensor):
                return part
    raise TaskError(
        f"the model returns {describe(outputs)} without a tensor in it; it must return a tensor, "
        "a tuple, or a dict with 'logits'"
    )


class Classification:
    """Accuracy (fraction in [0, 1]) and mean cross-entropy (nats) for class indices as targets.

    Outputs are scores [N, C, ...] with targets [N, ...], or [N, ..., C] with targets [N, ...].
    """

    def __init__(self) -> None:
        self.correct = 0
        self.nats = 0.0
        self.count = 0

    @staticmethod
    def refusal(outputs: Tensor, targets: Any) -> str:
        """Why these are not class scores and class indices; empty when they are."""
        got = f"outputs {describe(outputs)}, targets {describe(targets)}"
        if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
            return f"targets must be class indices (integers); got {got}"
        if not outputs.is_floating_point() or outputs.dim() < 2:
            return f"outputs must be scores per class [batch, classes]; got {got}"
        scores = classes_second(outputs, targets)
        if scores is None:
            return f"outputs [batch, classes] and targets [batch] do not fit; got {got}"
        classes = scores.shape[1]
        if classes < 2:
            return f"outputs must have at least two classes; got {got}"
        kept = targets[targets != IGNORED].long()
        if kept.numel() and not 0 <= int(kept.min()) <= int(kept.max()) < classes:
            return f"the model scores {classes} classes, but the targets run {kept.min()}..{kept.max()}"
        return ""

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """One batch.

        Raises:
            TaskError: see :meth:`refusal`.
        """
        if why := self.refusal(outputs, targets):
            raise TaskError(why)
        scores = classes_second(outputs, targets).float()  # type: ignore[union-attr]
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


def right(outputs: Any, targets: Tensor) -> Tensor:
    """Which targets the outputs of one batch hit, bool [targets that count]."""
    scores = classes_second(tensor_of(outputs), targets)
    assert scores is not None  # `Classification` has refused what does not fit
    return (scores.argmax(1) == targets)[targets != IGNORED]


class Custom:
    """A user's ``metric(outputs, targets)``, called once on all samples, as AUC or F1 need it.

    Where the batches cannot be joined (ragged shapes), the mean over batches weighted by their sizes.
    """

    def __init__(self, metric: Callable[[Any, Any], Any], name: str) -> None:
        self.metric = metric
        self.name = name
        self.outputs: list[Tensor] = []
        self.targets: list[Any] = []

    def add(self, outputs: Tensor, targets: Any) -> None:
        """One batch."""
        self.outputs.append(outputs)
        self.targets.append(targets)

    def scores(self) -> dict[str, float]:
        """``{name: value}``.

        Raises:
            TaskError: the metric raises or gives no number.
        """
        if _joinable(self.outputs) and _joinable(self.targets):
            return {self.name: self._call(torch.cat(self.outputs), torch.cat(self.targets))}
        values = [self._call(o, t) for o, t in zip(self.outputs, self.targets, strict=True)]
        weights = [len(o) if o.dim() else 1 for o in self.outputs]
        return {self.name: sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)}

    def _call(self, outputs: Tensor, targets: Any) -> float:
        try:
            value = self.metric(outputs, targets)
        except Exception as error:
            raise TaskError(
                f"the metric {self.name!r} raises {first_line(error)}; it was called with outputs "
                f"{describe(outputs)} and targets {describe(targets)}"
            ) from error
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            raise TaskError(
                f"the metric {self.name!r} must return one number, got {describe(value)}"
            ) from None


def _joinable(values: list[Any]) -> bool:
    first = values[0]
    return all(isinstance(v, Tensor) and v.dim() and v.shape[1:] == first.shape[1:] for v in values)


def classes_second(outputs: Tensor, targets: Tensor) -> Tensor | None:
    """Scores as [N, C, ...], the order that torch's losses want; ``None`` if the shapes do not fit."""
    if outputs.shape[:1] + outputs.shape[2:] == targets.shape:
        return outputs
    if outputs.shape[:-1] == targets.shape:
        return outputs.movedim(-1, 1)
    return None
