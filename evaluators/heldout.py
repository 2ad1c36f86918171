"""Held-out figures: a network's quality on other data, with intervals, and the stability of rankings."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..model.threads import one_thread
from ..results.significance import Figure, bootstrap, mcnemar, wilson
from ..spaces import Candidate, Space
from .batches import Batch, batch_size, part
from .metrics import IGNORED, right
from .outputs import joined, rows_of
from .pool import Job
from .quality import Quality
from .task import Task

if TYPE_CHECKING:
    from collections.abc import Iterator


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


# -- Would other data have ranked the candidates alike? Kendall's tau over halves of the data -----------

HALVES = 100  # pairs of halves that are drawn
SEEDS = 3  # draws of calibration data, for each of which every candidate is built again


@dataclass(frozen=True, slots=True)
class Stability:
    """Agreement of rankings: 1 for the same order, 0 for none, -1 for the reverse; None where all tie."""

    candidates: int
    data: tuple[float, ...]  # tau between the orders on two halves of the validation data, per draw
    seeds: tuple[float, ...]  # tau between the orders under two draws of calibration data, per pair
    level: float = 0.9  # of the interval

    @property
    def across_data(self) -> tuple[float, float, float] | None:
        """Mean, and the ends of the interval that holds :attr:`level` of the draws."""
        return self._summary(self.data)

    @property
    def across_seeds(self) -> tuple[float, float, float] | None:
        """The same over pairs of calibration draws."""
        return self._summary(self.seeds)

    def line(self) -> str:
        """What came out, as a sentence."""
        parts = []
        for summary, what in (
            (self.across_data, "halves of the validation data"),
            (self.across_seeds, "halves of the calibration data"),
        ):
            if summary is not None:
                mean, low, high = summary
                parts.append(f"tau {mean:.2f} ({low:.2f} to {high:.2f}) between {what}")
        found = "; ".join(parts) or "every candidate has the same metric, so that there is no order"
        return f"Order of {self.candidates} candidates: {found}"

    def _summary(self, taus: tuple[float, ...]) -> tuple[float, float, float] | None:
        if not taus:
            return None
        low, high = np.quantile(taus, [(1 - self.level) / 2, (1 + self.level) / 2])
        return float(np.mean(taus)), float(low), float(high)


def ranking_stability(
    task: Task,
    space: Space,
    candidates: Sequence[Candidate],
    *,
    halves: int = HALVES,
    seeds: int = SEEDS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Stability:
    """Kendall's tau-b of the candidates' metric between random disjoint halves of the data.

    Two causes of chance: which samples were validated on, and which repair and BatchNorm were calibrated
    with. A candidate is built ``1 + seeds`` times; the scores of the search are not used.

    Args:
        candidates: at least 3, for example those of a front: ``[trial.candidate for trial in run.front]``.
        halves: draws of two halves of the validation data, at least 1.
        seeds: draws of half the calibration batches; 0 leaves that out.
        progress: told how many networks of all are scored.

    Raises:
        ValueError: too few candidates, samples or draws, or a space without a model.
    """
    if len(candidates) < 3 or halves < 1 or seeds < 0 or space.model is None:
        raise ValueError(
            f"need a space with a model, at least 3 candidates, halves >= 1 and seeds >= 0; got "
            f"{len(candidates)} candidates, {halves}, {seeds}"
        )
    # Candidates that were read from a ledger know their options, but not how to edit a model.
    candidates = [space.from_values(candidate.values) for candidate in candidates]
    rng = np.random.default_rng(seed)
    variants = [(task, space), *_recalibrated(task, space, seeds, rng)]
    total, done = len(variants) * len(candidates), 0
    metrics = []  # of each candidate: from rows of the validation data to its metric there
    whole = np.full((seeds, len(candidates)), math.nan)  # its metric on all of them, by calibration draw
    count = 0
    for draw, variant in enumerate(variants):
        for position, candidate in enumerate(candidates):
            with one_thread(), Job(*variant, (Quality(),)).lend(candidate) as model:
                outputs = answers(model, task.batches)
            metric, count = metric_on_rows(task, task.batches, outputs)
            if draw == 0:
                metrics.append(metric)
            else:
                whole[draw - 1, position] = metric(np.arange(count))
            done += 1
            if progress is not None:
                progress(done, total)
    if count < 2:
        raise ValueError("the validation data are a single sample or batch, which has no halves")
    with one_thread():  # a user's metric too
        across_data = _taus(_on_halves(metrics, count, halves, rng))
    return Stability(len(candidates), across_data, _taus(_pairs(whole)))


def _on_halves(
    metrics: Sequence[Callable[[np.ndarray], float]], count: int, halves: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for _ in range(halves):
        order = rng.permutation(count)
        a, b = order[: count // 2], order[count // 2 :]
        yield np.array([m(a) for m in metrics]), np.array([m(b) for m in metrics])


def _pairs(values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for i in range(len(values)):
        for j in range(i):
            yield values[j], values[i]


def _taus(pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> tuple[float, ...]:
    from scipy.stats import kendalltau

    taus = [float(kendalltau(a, b).statistic) for a, b in pairs]
    return tuple(t for t in taus if not math.isnan(t))  # NaN: all tie in one of the two


def _recalibrated(
    task: Task, space: Space, seeds: int, rng: np.random.Generator
) -> Iterator[tuple[Task, Space]]:
    """The task with half of its calibration data, drawn anew each time, and the space that repairs by it."""
    for _ in range(seeds):
        light = copy.copy(task)
        calls = [(args, kwargs, None) for args, kwargs in task.calibration_batches]
        light.calibration_batches = [batch[:2] for batch in part(calls, 0.5, int(rng.integers(2**31)))]
        yield light, Space(space.choices, model=space.side.recalibrated(light.calibration_batches))
