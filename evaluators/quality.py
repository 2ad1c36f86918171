"""Quality of a candidate on the task's validation data, and what is counted on the built module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..model.counter import counted
from ..spaces import Candidate, Space
from ..spaces.kinds.exits import Cascade
from .base import Evaluator, Measured, detail_of
from .batches import Inputs, batch_size, resize
from .metrics import right
from .task import Task


class Quality(Evaluator):
    """The task's metric, and the cross-entropy ``loss`` (nats) where outputs are class scores.

    Args:
        each: keep beside the scores which samples were right, for paired tests: ``detail["right"]``, one
            bit a sample in the order of the validation data, as ``[count, hexadecimal digits]``. Only
            where accuracy is the metric.
    """

    name = "quality"
    metrics = ("accuracy", "loss")
    only_runs = True
    of_network = True

    def __init__(self, *, each: bool = False) -> None:
        self.each = each

    def gives(self, task: Task | None) -> tuple[str, ...]:
        return task.metrics if task is not None else self.metrics

    def __call__(self, task: Task | None, model: nn.Module | None, candidate: Candidate) -> dict[str, float]:
        if task is None or model is None:
            raise ValueError("Quality needs a task and a model; a space without a model has other evaluators")
        with torch.inference_mode():
            if not self.each or task.metric != "accuracy":
                return task.measure(model(*args, **kwargs) for args, kwargs, _ in task.batches)
            outputs = [model(*args, **kwargs) for args, kwargs, _ in task.batches]
            pairs = zip(outputs, (targets for _, _, targets in task.batches), strict=True)
            bits = torch.cat([right(task.judge.class_scores(o, t), t) for o, t in pairs])
            return Measured(task.measure(outputs), detail={"right": pack(bits.tolist())})


def pack(bits: list[bool]) -> list[Any]:
    """``[count, hexadecimal digits]``, the first bit foremost."""
    return [len(bits), format(int("".join(map(str, map(int, bits))) or "0", 2), "x")]


# -- Costs counted on the built module. Searches use the space's analytic costs; this is the check on them


def count(model: nn.Module, example: Inputs) -> dict[str, float]:
    """``macs`` (per sample) and ``params`` by running ``model`` under torch's counter."""
    args, kwargs = resize(example, 1)
    samples = batch_size((args, kwargs)) or 1
    _, macs = counted(model, *args, **kwargs)
    return {
        "macs": macs / samples,
        "params": float(sum(p.numel() for p in model.parameters())),
    }


class Counted(Evaluator):
    """``macs`` per sample and ``params``, counted by :func:`count` on the task's example."""

    name = "counted"
    metrics = ("macs", "params")
    only_runs = True
    of_network = True

    def __call__(self, task: Task | None, model: nn.Module | None, candidate: Candidate) -> dict[str, float]:
        if task is None or model is None:
            raise ValueError("Counted needs a task and a model")
        return count(model, task.example)


# -- Costs that the data decide: how far samples go through a network with early exits ------------------

METRICS = ("macs", "flops")


class Reach(Evaluator):
    """``macs`` per sample as the validation data need them, ``flops`` (2 x macs), and another's scores.

    Of a cascade: the sum over stages of the share of samples that reach it times its multiply-accumulates;
    ``detail["exits"]`` keeps the share that left at each exit and at the end. Of other networks: as counted.

    Args:
        inner: runs the model over the validation data, so that it need not run twice; ``None``: nobody does.
    """

    only_runs = True
    of_network = True

    def __init__(self, inner: Quality | None = None) -> None:
        self.inner = inner
        self.name = "reach" if inner is None else inner.name
        self.metrics = (*(() if inner is None else inner.metrics), *METRICS)

    def gives(self, task: Task | None) -> tuple[str, ...]:
        return (*(() if self.inner is None else self.inner.gives(task)), *METRICS)

    def __call__(self, task: Task | None, model: nn.Module | None, candidate: Candidate) -> dict[str, float]:
        if task is None or model is None:
            raise ValueError("Reach needs a task and a model")
        if not isinstance(model, Cascade):
            given = {} if self.inner is None else self.inner(task, model, candidate)
            macs = count(model, task.example)["macs"]
            return Measured({**given, **_scores(macs)}, detail=detail_of(given))
        with model.recording():
            if self.inner is not None:
                given = self.inner(task, model, candidate)
            else:
                given = {}
                with torch.inference_mode():
                    for args, kwargs, _ in task.batches:
                        model(*args, **kwargs)
        total = sum(model.left)
        left = {name: n / total for name, n in zip((*model.names, "end"), model.left, strict=True)}
        detail = {**detail_of(given), "exits": left}
        return Measured({**given, **_scores(model.expected_macs)}, detail=detail)


def reached(space: Space, scorers: Sequence[Evaluator]) -> list[Evaluator]:
    """The evaluators as a space needs them whose costs depend on the data."""
    decided = {name for c in space.choices for name in c.measured}
    if not decided.intersection(METRICS) or any(set(METRICS) & set(s.metrics) for s in scorers):
        return list(scorers)
    quality = next((s for s in scorers if type(s) is Quality), None)
    if quality is None:
        return [*scorers, Reach()]
    made = Reach(quality)
    return [made if s is quality else s for s in scorers]


def _scores(macs: float) -> dict[str, float]:
    return {"macs": macs, "flops": 2 * macs}
