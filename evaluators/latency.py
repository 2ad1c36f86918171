"""Latency on this machine, measured against the unchanged model, because machines drift.

Three things keep other programs out of the figures. A call is timed by what its thread computed, so time that
others took from it does not count. A latency is the median of ratios to calls of the unchanged model a moment
before, so whatever slows both cancels. And networks to be compared take turns in the same rounds.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ..model.threads import one_thread
from ..spaces import Candidate
from .base import Evaluator, Measured
from .batches import Inputs, batch_size, resize
from .machine import processor
from .task import Task

RUNTIMES = ("eager",)
MIN_REPEATS = 10
PRECISION = 0.01  # no further rounds once the 95 % intervals of all ratios are this narrow, either way
FLOOR = 0.01  # half of the narrowest interval: what two windows differ by on a quiet machine
SHORT_NS = 2_000_000  # a call below this is timed after one that brings weights and code into the caches

# Nanoseconds that this thread computed; those on the wall where that clock is coarse.
_FINE = time.get_clock_info("thread_time").resolution <= 1e-6
thread_ns = time.thread_time_ns if _FINE else time.perf_counter_ns


@dataclass(frozen=True, slots=True)
class LatencyRecord:
    """One latency with all that it depends on."""

    median_ms: float  # of `repeats` calls; the time that the calling thread computed
    q25_ms: float
    q75_ms: float
    baseline_ms: float  # median of the unchanged model, its calls interleaved with ours
    ratio: float  # share of the unchanged model's time: median over the rounds; compare this between sessions
    ratio_low: float  # 95 % interval of `ratio`
    ratio_high: float
    drift: float  # by how much the unchanged model differed from itself meanwhile, as a share of its time
    repeats: int
    threads: int
    runtime: str  # one of RUNTIMES
    device: str  # processor's name
    batch: int  # samples per call

    def as_detail(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def measure_latency(
    model: nn.Module,
    baseline: nn.Module,
    inputs: Inputs,
    *,
    runtime: str = "eager",
    repeats: int = 50,
    warmup: int = 5,
    seconds: float = 3.0,
) -> LatencyRecord:
    """Latency of one network: :func:`measure_latencies` of a single one."""
    (record,) = measure_latencies(
        [model], baseline, inputs, runtime=runtime, repeats=repeats, warmup=warmup, seconds=seconds
    )
    return record


def measure_latencies(
    models: Sequence[nn.Module],
    baseline: nn.Module,
    inputs: Inputs,
    *,
    runtime: str = "eager",
    repeats: int = 50,
    warmup: int = 5,
    seconds: float = 3.0,
) -> list[LatencyRecord]:
    """Time of ``model(*args, **kwargs)`` on one thread, all networks and ``baseline`` taking turns.

    Rounds end when every ratio is known to 1 % (95 % intervals), after ``repeats``, or when time is up. The
    time of a call is what its thread computed; on the wall where a network waits (for a device, for threads
    of its own).

    Args:
        inputs: ``(args, kwargs)``; the batch size is theirs.
        repeats: most rounds. Where they take longer than ``seconds``, fewer, but at least 10.
        warmup: calls of each before timing.
        seconds: bound on the timed part.

    Raises:
        ValueError: an unknown runtime, or numbers below one.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"unknown runtime {runtime!r}: known are {', '.join(RUNTIMES)}")
    if repeats < 1 or warmup < 0 or seconds <= 0:
        raise ValueError(f"need repeats >= 1, warmup >= 0, seconds > 0; got {repeats}, {warmup}, {seconds}")
    args, kwargs = inputs
    calls = [partial(network, *args, **kwargs) for network in (baseline, *models)]
    rounds: list[list[int]] = []  # nanoseconds [rounds][baseline, *models]
    with one_thread(), torch.inference_mode(), no_collection():
        clock = _warmed_clock(calls, warmup)
        end = time.perf_counter() + seconds
        while len(rounds) < repeats and (len(rounds) < MIN_REPEATS or time.perf_counter() < end):
            rounds.append([_time(call, clock) for call in calls])
            if len(rounds) % MIN_REPEATS == 0 and _precise(np.array(rounds)):
                break
    times = np.array(rounds, dtype=np.float64) / 1e6
    drift = _drift(times[:, 0])
    ratios = times[:, 1:] / times[:, :1]
    low, high = _interval(ratios)
    quartiles = np.quantile(times, (0.25, 0.5, 0.75), axis=0)  # [3, networks]
    return [
        LatencyRecord(
            median_ms=float(quartiles[1, i + 1]),
            q25_ms=float(quartiles[0, i + 1]),
            q75_ms=float(quartiles[2, i + 1]),
            baseline_ms=float(quartiles[1, 0]),
            ratio=float(np.median(ratios[:, i])),
            ratio_low=float(low[i]),
            ratio_high=float(high[i]),
            drift=drift,
            repeats=len(rounds),
            threads=1,
            runtime=runtime,
            device=processor(),
            batch=batch_size(inputs) or 1,
        )
        for i in range(len(models))
    ]


class Latency(Evaluator):
    """``latency_ms``: median time of one call on one thread. Runs in the latency lane.

    The scores carry the whole :class:`LatencyRecord` as ``detail``. Options as in
    :func:`measure_latencies`.
    """

    name = "latency"
    metrics = ("latency_ms",)
    lane = True
    of_network = True

    def __init__(
        self,
        *,
        batch: int = 1,
        runtime: str = "eager",
        repeats: int = 50,
        warmup: int = 5,
        seconds: float = 3.0,
    ) -> None:
        self.batch = batch
        self.runtime = runtime
        self.repeats = repeats
        self.warmup = warmup
        self.seconds = seconds

    def measure(self, task: Task, models: Sequence[nn.Module]) -> list[LatencyRecord]:
        """The full records for ``models`` in turns, against ``task.model``."""
        return measure_latencies(
            models,
            task.model,
            resize(task.example, self.batch),
            runtime=self.runtime,
            repeats=self.repeats,
            warmup=self.warmup,
            seconds=self.seconds,
        )

    def __call__(self, task: Task | None, model: nn.Module | None, candidate: Candidate) -> dict[str, float]:
        if task is None or model is None:
            raise ValueError("Latency needs a task and a model")
        (record,) = self.measure(task, [model])
        return Measured({"latency_ms": record.median_ms}, detail=record.as_detail())


@contextmanager
def no_collection() -> Iterator[None]:
    """No garbage is collected inside, where a collection would fall into somebody's time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _time(call: Callable[[], Any], clock: Callable[[], int]) -> int:
    start = clock()
    call()
    taken = clock() - start
    if taken >= SHORT_NS:
        return taken
    start = clock()
    call()
    return clock() - start


def _warmed_clock(calls: Sequence[Callable[[], Any]], warmup: int) -> Callable[[], int]:
    """Warm up, and find the clock: the thread's, or the wall's where calls wait for something.

    A call that waits gives up its core by itself. Where the system does not count that, time tells, though a
    very busy machine then looks like waiting.
    """
    waits = False
    for call in calls:
        before, start, computed = _given_up(), time.perf_counter_ns(), thread_ns()
        for _ in range(warmup):
            call()
        times, wall, own = _given_up(), time.perf_counter_ns() - start, thread_ns() - computed
        asked = warmup > 0 if before is None or times is None else times - before >= max(warmup, 1)
        waits |= asked and wall > 2 * own
    return time.perf_counter_ns if waits else thread_ns


def _given_up() -> int | None:
    """How often this thread has given up its core by itself; None where the system does not tell."""
    import resource

    who = getattr(resource, "RUSAGE_THREAD", None)
    return None if who is None else resource.getrusage(who).ru_nvcsw


def _precise(times: np.ndarray) -> bool:
    ratios = times[:, 1:] / times[:, :1]
    low, high = _interval(ratios, floor=0.0)
    middle = np.median(ratios, axis=0)
    return bool((high - low <= 2 * PRECISION * middle).all())


def _interval(ratios: np.ndarray, *, floor: float = FLOOR) -> tuple[np.ndarray, np.ndarray]:
    """95 % intervals of the medians of ``ratios`` [rounds, networks], from their order statistics.

    The k-th smallest and largest of n values with ``P(Binomial(n, 1/2) < k) <= 0.025``, whatever the
    distribution (e.g. Conover, Practical Nonparametric Statistics, 3rd ed., section 3.2); the extremes where
    there are fewer than six. At least ``floor`` of the median to either side.
    """
    n, k, below = len(ratios), 0, 1
    while 40 * below <= 2**n:  # below: sum of the binomial coefficients up to k
        k += 1
        below += math.comb(n, k)
    k = max(k, 1)
    ordered = np.sort(ratios, axis=0)
    middle = np.median(ordered, axis=0)
    return np.minimum(ordered[k - 1], (1 - floor) * middle), np.maximum(ordered[n - k], (1 + floor) * middle)


def _drift(times: np.ndarray) -> float:
    """How far medians of up to four stretches of one network's times [rounds] lie apart, as a share."""
    parts = np.array_split(times, max(1, min(4, len(times) // 5)))
    medians = [float(np.median(part)) for part in parts]
    return (max(medians) - min(medians)) / float(np.median(times))
