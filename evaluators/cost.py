"""Costs counted on the built module. Searches use the space's analytic costs; this is the check on them."""

from __future__ import annotations

from torch import nn

from ..spaces import Candidate
from ..spaces.costing.counter import counted
from .base import Evaluator
from .batches import Inputs, batch_size, resize
from .task import Task


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
