"""Times of real stages, each alone on one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..model.stages import Stage
from ..model.threads import one_thread
from .batches import Inputs
from .latency import no_collection, thread_ns

LEAST_ROUNDS = 5
WARM_MS = 2.0


def taking_turns(
    timers: Sequence[Callable[[], np.ndarray | float]], *, seconds: float = 3.0, rounds: int = 50
) -> list[np.ndarray]:
    """Medians of what each timer returns, all taking turns, on one thread.

    In its turn a timer first runs for 2 ms, at least once, and then counts: its weights and its code are
    where they are on a device that does nothing else. No random state is used up.

    Args:
        seconds: no further round after this time, and at least 5.
        rounds: at most.

    Raises:
        ValueError: numbers that are not positive.
    """
    if seconds <= 0 or rounds < 1:
        raise ValueError(f"need seconds above 0 and rounds of at least 1, got {seconds} and {rounds}")
    taken: list[list[Any]] = [[] for _ in timers]
    with one_thread(), torch.inference_mode(), torch.random.fork_rng(devices=[]), no_collection():
        end = time.perf_counter() + seconds
        done = 0
        while done < rounds and (done < LEAST_ROUNDS or time.perf_counter() < end):
            for timer, times in zip(timers, taken, strict=True):
                warm = 0.0
                while warm < WARM_MS:
                    warm += float(np.sum(timer())) or WARM_MS
                times.append(timer())
            done += 1
    return [np.median(times, axis=0) for times in taken]


def stopwatch(job: Callable[[], Any]) -> Callable[[], float]:
    """Runs ``job`` and returns the milliseconds that this thread computed.

    Of one thread on a quiet machine that is the time on the clock; on a busy one the clock runs on while
    others compute.
    """

    def timer() -> float:
        start = thread_ns()
        job()
        return (thread_ns() - start) / 1e6

    return timer


def stage_jobs(stages: Sequence[Stage], inputs: Inputs) -> list[Callable[[], Any]]:
    """For each stage a call of it, on what the stages before make of the inputs: dense, as after a wire."""

    def job(stage: Stage, args: Sequence[Any], kwargs: dict[str, Any]) -> Callable[[], Any]:
        return lambda: stage.module(*args, **kwargs)

    args, kwargs = inputs
    jobs = []
    with torch.inference_mode():
        for k, stage in enumerate(stages):
            jobs.append(job(stage, args, kwargs))
            if k < len(stages) - 1:
                args, kwargs = tuple(t.contiguous() for t in stage.module(*args, **kwargs)), {}
    return jobs


def stage_times(
    plans: Sequence[Sequence[Stage]], inputs: Inputs, *, seconds: float = 3.0
) -> list[np.ndarray]:
    """Median milliseconds of every stage of several plans, float64 [stages] each; all take turns."""
    jobs = [stage_jobs(stages, inputs) for stages in plans]
    found = np.array(taking_turns([stopwatch(job) for of in jobs for job in of], seconds=seconds))
    return np.split(found, np.cumsum([len(of) for of in jobs])[:-1])
