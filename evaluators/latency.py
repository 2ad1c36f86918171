"""Latency on this machine, measured against the unchanged model, because machines drift."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..spaces import Candidate
from ..spaces.threads import one_thread
from .base import Evaluator, Measured
from .batches import Inputs, batch_size, resize
from .machine import processor
from .task import Task

RUNTIMES = ("eager",)
MIN_REPEATS = 10


@dataclass(frozen=True, slots=True)
class LatencyRecord:
    """One latency with all that it depends on."""

    median_ms: float  # of `repeats` calls
    q25_ms: float
    q75_ms: float
    baseline_ms: float  # median of the unchanged model, its calls interleaved with ours
    repeats: int
    threads: int
    runtime: str  # one of RUNTIMES
    device: str  # processor's name
    batch: int  # samples per call

    @property
    def ratio(self) -> float:
        """Share of the unchanged model's time; compare this between sessions, not milliseconds."""
        return self.median_ms / self.baseline_ms

    def as_detail(self) -> dict[str, Any]:
        """Plain JSON values, the ratio among them."""
        return {**asdict(self), "ratio": self.ratio}


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
    """Wall time of ``model(*args, **kwargs)`` on one thread, calls alternating with ``baseline``'s.

    Args:
        inputs: ``(args, kwargs)``; the batch size is theirs.
        repeats: calls of each model; fewer (but at least 10) where they take longer than ``seconds``.
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
    ours, theirs = partial(model, *args, **kwargs), partial(baseline, *args, **kwargs)
    taken: list[int] = []
    reference: list[int] = []
    with one_thread(), torch.inference_mode():
        for _ in range(warmup):
            ours()
            theirs()
        with no_collection():
            end = time.perf_counter() + seconds
            while len(taken) < repeats and (len(taken) < MIN_REPEATS or time.perf_counter() < end):
                reference.append(_time(theirs))
                taken.append(_time(ours))
    milliseconds = [t / 1e6 for t in taken]
    q25, median, q75 = (
        statistics.quantiles(milliseconds, n=4, method="inclusive") if repeats > 1 else milliseconds * 3
    )
    return LatencyRecord(
        median_ms=median,
        q25_ms=q25,
        q75_ms=q75,
        baseline_ms=statistics.median(reference) / 1e6,
        repeats=len(taken),
        threads=1,
        runtime=runtime,
        device=processor(),
        batch=batch_size(inputs) or 1,
    )


class Latency(Evaluator):
    """``latency_ms``: median time of one call on one thread. Runs in the latency lane.

    The scores carry the whole :class:`LatencyRecord` as ``detail``. Options as in
    :func:`measure_latency`.
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

    def measure(self, task: Task, model: nn.Module) -> LatencyRecord:
        """The full record for ``model``, against ``task.model``."""
        return measure_latency(
            model,
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
        record = self.measure(task, model)
        return Measured({"latency_ms": record.median_ms}, detail=record.as_detail())


def _time(call: Callable[[], Any]) -> int:
    start = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - start


@contextmanager
def no_collection() -> Iterator[None]:
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
