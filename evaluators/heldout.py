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
from .batches import Batch, batch_size
from .metrics import IGNORED, right
from .outputs import joined, rows_of
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
    value, was = (task.measure_on(given, batches) for given in (outputs, baseline))
    if task.metric == "accuracy" and all(targets.dim() == 1 for _, _, targets in batches):
        ours, theirs = (_right(task, batches, given) for given in (outputs, baseline))
        low, high = wilson(int(ours.sum()), ours.size)
        return Figure(value, low, high, ours.size, "wilson", baseline=was, paired=mcnemar(ours, theirs))
    metric, count = metric_on_rows(task, batches, outputs)
    low, high = bootstrap(metric, count)
    return Figure(value, low, high, count, "bootstrap", baseline=was)


def _right(task: Task, batches: Sequence[Batch], outputs: Sequence[Any]) -> np.ndarray:
    """Which samples that count are right, bool [samples]."""
    pairs = zip(outputs, (targets for _, _, targets in batches), strict=True)
    return torch.cat([right(task.judge.class_scores(o, t), t) for o, t in pairs]).cpu().numpy()


def metric_on_rows(
    task: Task, batches: Sequence[Batch], outputs: Sequence[Any]
) -> tuple[Callable[[np.ndarray], float], int]:
    """The metric as a function of rows (int64, repeats allowed), and how many rows there are.

    A row is a sample; a batch, where the samples of a batch cannot be counted.
    """
    judge, targets = task.judge, [batch[2] for batch in batches]
    if isinstance(task.metric, str):
        sums, counts = _by_sample(task, targets, outputs)

        def mean(rows: np.ndarray) -> float:
            return float(sums[rows].sum() / counts[rows].sum()) if counts[rows].any() else math.nan

        return mean, len(sums)
    seen, lengths = (
        [judge.seen(given, task.metric) for given in outputs],
        [batch_size(batch[:2]) for batch in batches],
    )
    known = [n for n in lengths if n]
    if len(known) < len(lengths):

        def of_batches(rows: np.ndarray) -> float:
            return task.measure_on([outputs[i] for i in rows], [batches[i] for i in rows])

        return of_batches, len(outputs)
    given, wanted, count = joined(seen, lengths), joined(targets, lengths), sum(known)

    def metric(rows: np.ndarray) -> float:
        meter, at = judge.meter(), torch.from_numpy(rows)
        meter.add(rows_of(given, at, count), rows_of(wanted, at, count), len(rows))
        return meter.scores()[task.metric_name]

    return metric, count


def _by_sample(
    task: Task, targets: Sequence[Tensor], outputs: Sequence[Any]
) -> tuple[np.ndarray, np.ndarray]:
    """What a mean over targets is made of: per sample the sum of hits (or nats), and how many count."""
    sums, counts = [], []
    for given, wanted in zip(outputs, targets, strict=True):
        scores, kept = task.judge.class_scores(given, wanted), wanted != IGNORED
        if task.metric == "accuracy":
            values = ((scores.argmax(1) == wanted) & kept).double()
        else:
            values = cross_entropy(scores.double(), wanted.long(), ignore_index=IGNORED, reduction="none")
        sums.append(values.reshape(len(values), -1).sum(1).detach().cpu())
        counts.append(kept.reshape(len(kept), -1).sum(1).cpu())
    return torch.cat(sums).numpy(), torch.cat(counts).numpy()
