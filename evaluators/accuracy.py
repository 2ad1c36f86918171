"""How good a candidate is on the task's validation data."""

from __future__ import annotations

import torch
from torch import nn

from ..spaces import Candidate
from .base import Evaluator
from .task import Task


class Quality(Evaluator):
    """The task's metric, and the cross-entropy ``loss`` (nats) where targets are class indices."""

    name = "quality"
    metrics = ("accuracy", "loss")

    def gives(self, task: Task | None) -> tuple[str, ...]:
        return task.metrics if task is not None else self.metrics

    def __call__(self, task: Task | None, model: nn.Module | None, candidate: Candidate) -> dict[str, float]:
        if task is None or model is None:
            raise ValueError("Quality needs a task and a model; a space without a model has other evaluators")
        with torch.inference_mode():
            return task.measure(model(*args, **kwargs) for args, kwargs, _ in task.batches)
