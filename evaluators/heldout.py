"""A network's figure on data, with its interval and a paired test: what an export states."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..results.significance import Figure, bootstrap, mcnemar, wilson
from .batches import Batch
from .metrics import IGNORED, classes_second, tensor_of
from .task import Task


def answers(model: nn.Module, batches: Sequence[Batch]) -> list[Any]:
    """The outputs of ``model`` on each batch, in eval mode as it stands."""
    with torch.inference_mode():
        return [model(*args, **kwargs) for args, kwargs, _ in batches]


def figure(task: Task, batches: Sequence[Batch], outputs: Sequence[Any], baseline: Sequence[Any]) -> Figure:
    """The task's metric of ``outputs`` with a 95 % interval, against the unchanged model's.

    Accuracy with one target a sample: Wilson's interval and McNemar's exact test. Anything else, pixels of
    images among it, which are not independent: a bootstrap over the samples (over the batches, where those
    cannot be joined).

    Args:
        outputs, baseline: of this network and of the unchanged one, one per batch.

    Raises:
        TaskError: the metric raises on them.
    """
    targets = [batch[2] for batch in batches]
    value, was = (task.measure_on(given, targets) for given in (outputs, baseline))
    if task.metric == "accuracy" and all(t.dim() == 1 for t in targets):
        ours, theirs = (_right(given, targets) for given in (outputs, baseline))
        low, high = wilson(int(ours.sum()), ours.size)
        return Figure(value, low, high, ours.size, "wilson", baseline=was, paired=mcnemar(ours, theirs))
    metric, count = metric_on_rows(task, targets, outputs)
    low, high = bootstrap(metric, count)
    return Figure(value, low, high, count, "bootstrap", baseline=was)


def _right(outputs: Sequence[Any], targets: Sequence[Tensor]) -> np.ndarray:
    """Which samples that count are right, bool [samples]."""
    hits = []
    for given, wanted in zip(outputs, targets, strict=True):
        scores = classes_second(tensor_of(given), wanted)
        assert scores is not None  # `Classification` has refused what does not fit
        hits.append((scores.argmax(1) == wanted)[wanted != IGNORED])
    return torch.cat(hits).numpy()


def metric_on_rows(
    task: Task, targets: Sequence[Any], outputs: Sequence[Any]
) -> tuple[Callable[[np.ndarray], float], int]:
    """The metric as a function of rows (int64, repeats allowed), and how many rows there are.

    A row is a sample; a batch, where the batches of outputs and targets cannot be joined.
    """
    tensors = [tensor_of(given).detach() for given in outputs]
    if not (_joinable(tensors) and _joinable(targets) and _even(tensors, targets)):
        return lambda rows: task.measure_on([tensors[i] for i in rows], [targets[i] for i in rows]), len(
            tensors
        )
    scores, wanted = torch.cat(tensors), torch.cat(list(targets))
    if isinstance(task.metric, str):
        sums, counts = _by_sample(scores, wanted, task.metric)

        def mean(rows: np.ndarray) -> float:
            return float(sums[rows].sum() / counts[rows].sum()) if counts[rows].any() else math.nan

        return mean, len(sums)

    def metric(rows: np.ndarray) -> float:
        at = torch.from_numpy(rows)
        return task.measure_on([scores[at]], [wanted[at]])

    return metric, len(scores)


def _by_sample(outputs: Tensor, targets: Tensor, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """What a mean over targets is made of: per sample the sum of hits (or nats), and how many count."""
    scores = classes_second(outputs, targets)
    assert scores is not None  # `Classification` has refused what does not fit
    kept = targets != IGNORED
    if metric == "accuracy":
        values = ((scores.argmax(1) == targets) & kept).double()
    else:
        values = cross_entropy(scores.double(), targets.long(), ignore_index=IGNORED, reduction="none")
    return values.reshape(len(values), -1).sum(1).numpy(), kept.reshape(len(kept), -1).sum(1).numpy()


def _joinable(values: Sequence[Any]) -> bool:
    return all(isinstance(v, Tensor) and v.dim() and v.shape[1:] == values[0].shape[1:] for v in values)


def _even(outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> bool:
    return all(len(o) == len(t) for o, t in zip(outputs, targets, strict=True))
