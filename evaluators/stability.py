"""Would other data have ranked the candidates alike? Kendall's tau over halves of the data."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..spaces import Candidate, Space
from ..spaces.threads import one_thread
from .accuracy import Quality
from .batches import part
from .heldout import answers, metric_on_rows
from .pool import Job
from .task import Task

if TYPE_CHECKING:
    from collections.abc import Iterator

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
