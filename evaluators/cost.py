"""Costs counted on the built module. Searches use the space's analytic costs; this is the check on them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..spaces import Candidate
from .base import Evaluator
from .batches import Inputs, batch_size, resize
from .task import Task


def count(model: nn.Module, example: Inputs) -> dict[str, float]:
    """``macs`` (per sample) and ``params`` by running ``model`` under torch's own counter.

    Attention runs unfused meanwhile: the counter reads zero for the fused CPU kernel.
    """
    args, kwargs = resize(example, 1)
    samples = batch_size((args, kwargs)) or 1
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*args, **kwargs)
    return {
        "macs": counter.get_total_flops() / 2 / samples,
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
