"""Judge of outputs: the metric, its direction, the output that it looks at, and the loss to train with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..results.objective import METRICS
from .batches import Outputs, Targets, describe
from .errors import TaskError, first_line
from .metrics import IGNORED, Classification, Meter, Running, Summed, Whole, class_scores, classes_second
from .outputs import Choice, choose, detached, listed, pick

Metric = str | Callable[[Any, Any], Any] | Running
Loss = str | Callable[[Any, Any], Any]

CROSS_ENTROPY = "cross_entropy"


@dataclass(frozen=True)
class Judge:
    """How outputs are scored. Built by :meth:`of`; see :class:`Task` for what the arguments mean."""

    metric: Metric
    name: str  # of the metric
    goal: str  # "min", "max", or "" where nobody has said
    loss: Loss | None
    output: Choice | None  # the tensor that is judged: as named, else as found on the first batch
    named: bool  # whether the task names the output
    last: bool = False  # whether classes are the last axis where the shapes allow both

    @classmethod
    def of(cls, metric: Metric, output: Choice | None, goal: str | None, loss: Loss | None) -> Judge:
        """
        Raises:
            TaskError: one of them is nothing that can be used.
        """
        name = _metric_name(metric)
        if output is not None and not (isinstance(output, str | int) or callable(output)):
            raise TaskError(f"output must be a name, a position or a function of the outputs, got {output!r}")
        if (
            loss is not None
            and loss != CROSS_ENTROPY
            and (isinstance(loss, str | type) or not callable(loss))
        ):
            cure = (
                f"{loss.__name__} is a class, make an instance" if isinstance(loss, type) else f"got {loss!r}"
            )
            raise TaskError(
                f"loss must be {CROSS_ENTROPY!r} or a function (outputs, targets) -> scalar tensor; {cure}"
            )
        return cls(metric, name, _goal(metric, name, goal), loss, output, output is not None)

    @property
    def classifies(self) -> bool:
        """Are outputs class scores, and targets class indices? Only where the task says so."""
        return isinstance(self.metric, str) or self.loss == CROSS_ENTROPY

    def fitted(self, outputs: Outputs, targets: Targets) -> Judge:
        """The judge that knows which of these outputs, of one batch, is judged.

        Raises:
            TaskError: several tensors that could be class scores; a named output that is not there.
        """
        if self.named:
            pick(outputs, self.output)
            return self
        if self.classifies:
            return replace(self, output=choose(outputs, lambda t: not Classification.refusal(t, targets)))
        try:
            return replace(self, output=choose(outputs, lambda t: False))
        except TaskError:
            return self  # the metric takes all; what needs one tensor asks then

    def unsettled(self, outputs: Outputs, targets: Targets) -> bool:
        """Could both the second and the last axis of these class scores be the classes?"""
        if not self.classifies:
            return False
        scores = self.judged(outputs)
        both = (classes_second(scores, targets, last=last) for last in (False, True))
        return scores.dim() > 2 and scores.shape[1] == scores.shape[-1] and all(s is not None for s in both)

    def judged(self, outputs: Outputs) -> Tensor:
        """The one tensor that is judged, of what the model returns for a batch.

        Raises:
            TaskError: several tensors, and the task names none.
        """
        return outputs if isinstance(outputs, Tensor) and not self.named else pick(outputs, self.output)

    def seen(self, outputs: Outputs, by: object) -> Any:
        """What a metric or a loss is given.

        Functions: all that the model returns. Running metrics and the losses of ``torch.nn``, which take a
        tensor: the named output, where the task names one, a loss beside a built-in metric what that judges.
        """
        if isinstance(by, nn.Module) and not isinstance(by, Running) and self.classifies:
            return self.judged(outputs)
        return pick(outputs, self.output) if self.named and isinstance(by, nn.Module | Running) else outputs

    def class_scores(self, outputs: Outputs, targets: Targets) -> Tensor:
        """Scores [N, C, ...] for class indices [N, ...].

        Raises:
            TaskError: they are not class scores.
        """
        if not self.classifies:
            raise TaskError(
                f"the metric {self.name!r} does not say that outputs are class scores; "
                f"where they are, give Task(loss={CROSS_ENTROPY!r})"
            )
        return class_scores(self.judged(outputs), targets, last=self.last)

    def meter(self) -> Meter:
        """A new one for the metric."""
        if isinstance(self.metric, str):
            return Classification(last=self.last)
        return (
            Summed(self.metric, self.name)
            if isinstance(self.metric, Running)
            else Whole(self.metric, self.name)
        )

    def measure(self, batches: Iterable[tuple[Any, Any, int | None]]) -> dict[str, float]:
        """Scores of ``(outputs, targets, samples)``, one per batch.

        Returns:
            The metric, and ``loss`` (mean cross-entropy in nats) where outputs are class scores.

        Raises:
            TaskError: outputs and targets do not fit, or the metric raises.
        """
        meter, classes = self.meter(), Classification(last=self.last)
        own = not isinstance(self.metric, str)
        for outputs, targets, count in batches:
            if own:
                meter.add(detached(self.seen(outputs, self.metric)), targets, count)
            if self.classifies:
                classes.add(self.judged(outputs), targets)
        if not own:
            return classes.scores()
        return ({"loss": classes.scores()["loss"]} if self.classifies else {}) | meter.scores()

    def training_loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        """The loss of a batch, to be minimised.

        Raises:
            TaskError: the task has none, or it raises or gives no scalar tensor.
        """
        if self.loss is None or isinstance(self.loss, str):
            if not self.classifies:
                raise TaskError(f"there is no loss to train with beside the metric {self.name!r}; {_DECLARE}")
            try:
                scores = self.class_scores(outputs, targets)
            except TaskError as error:
                raise TaskError(
                    f"fine-tuning minimises cross-entropy, which does not fit: {error}; {_DECLARE}"
                ) from None
            return cross_entropy(scores, targets.long(), ignore_index=IGNORED)
        seen = self.seen(outputs, self.loss)
        try:
            value = self.loss(seen, targets)
        except Exception as error:
            raise TaskError(
                f"the loss raises {first_line(error)}; it was called with outputs {listed(seen)} and targets "
                f"{listed(targets)}"
            ) from error
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            raise TaskError(f"the loss must return a scalar tensor, got {describe(value)}")
        return value.reshape(())


_DECLARE = (
    f"give Task(loss={CROSS_ENTROPY!r}) where they are class scores, or a function, "
    "Task(loss=lambda outputs, targets: ...)"
)


def _metric_name(metric: object) -> str:
    if isinstance(metric, str):
        if metric not in ("accuracy", "loss"):
            raise TaskError(
                f"unknown metric {metric!r}: known are 'accuracy' and 'loss'; or give a function "
                "(outputs, targets) -> float"
            )
        return metric
    if isinstance(metric, type):
        raise TaskError(f"the metric is a class, make an instance: {metric.__name__}(...)")
    if not callable(metric) and not isinstance(metric, Running):
        raise TaskError(
            "metric must be a name or a function (outputs, targets) -> float, or have update, compute and "
            f"reset; got {metric!r}"
        )
    plain = metric.func if isinstance(metric, functools.partial) else metric
    name = getattr(plain, "__name__", type(plain).__name__)
    name = "metric" if name == "<lambda>" else name
    if name in METRICS and name != "accuracy":
        raise TaskError(f"the metric function is called {name!r}, which netcarve itself reports; rename it")
    return name


def _goal(metric: object, name: str, goal: object) -> str:
    """Which way is better: as known, as said, or as a metric of torchmetrics says of itself."""
    if goal not in (None, "min", "max"):
        raise TaskError(f"goal must be 'min' or 'max', got {goal!r}")
    known: str = METRICS[name][0] if name in METRICS else ""
    if known and goal not in (None, known):
        raise TaskError(f"goal={goal!r} contradicts the metric {name!r}, of which {known} is better")
    higher = getattr(metric, "higher_is_better", None)
    return known or goal or ("" if higher is None else "max" if higher else "min")
