"""How good a candidate is on the task's validation data."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..spaces import Candidate
from .base import Evaluator, Measured
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
