"""Times of a network's calls and of stages, as they run here on one thread."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import fx

from ...evaluators.batches import Inputs
from ...spaces.capture import flat_inputs, fresh
from ...spaces.stages import Stage
from ...spaces.stages.cuts import Order

WARMUP, LEAST, MOST = 2, 5, 50  # runs


def _clock() -> Callable[[], int]:
    """Nanoseconds of this thread alone, so that others disturb little; of the wall where that is coarse."""
    fine = time.get_clock_info("thread_time").resolution <= 1e-6
    return time.thread_time_ns if fine else time.perf_counter_ns


now = _clock()


def call_times(order: Order, inputs: Inputs, *, seconds: float = 1.0) -> np.ndarray:
    """Median milliseconds of every call of a network, one after the other, warm, float64 [calls].

    What belongs to no side of a cut (sizes, values made of parameters alone) counts for the next call.

    Args:
        inputs: ``(args, kwargs)``; the batch is theirs.
        seconds: about how long to measure; at least five runs.
    """
    graph = order.network.graph
    nodes = [n for n in graph.nodes if n.op == "call_function"]
    state = {n: order.network.state[str(n.target)] for n in graph.nodes if n.op == "get_attr"}
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    last = {i: n for n in graph.nodes for i in n.all_input_nodes}
    dead = {n: [i for i in n.all_input_nodes if last[i] is n and i not in state] for n in nodes}
    counts_for = _counts_for(order, nodes)

    def run() -> np.ndarray:
        values: dict[fx.Node, Any] = dict(state)
        given = flat_inputs(order.network.captured.graph_module, *inputs)
        values.update(zip(placeholders, given, strict=True))
        taken = np.zeros(len(order.calls) + 1)
        for n, at in zip(nodes, counts_for, strict=True):
            args, kwargs = fx.node.map_arg((n.args, n.kwargs), values.__getitem__)
            start = now()
            values[n] = n.target(*args, **kwargs)
            taken[at] += now() - start
            for i in dead[n]:
                del values[i]
        return taken / 1e6

    with _undisturbed():
        for _ in range(WARMUP):
            run()
        runs: list[np.ndarray] = []
        end = time.perf_counter() + seconds
        while len(runs) < LEAST or (len(runs) < MOST and time.perf_counter() < end):
            runs.append(run())
    return np.median(runs, axis=0)[:-1]


def stage_times(
    plans: Sequence[Sequence[Stage]], inputs: Inputs, *, seconds: float = 1.0
) -> list[np.ndarray]:
    """Median milliseconds of every stage of several plans, float64 [stages] each; the plans take turns.

    Tensors go from stage to stage in dense form, as over a wire; copying them is not counted.
    """
    taken: list[list[list[float]]] = [[] for _ in plans]

    def run(stages: Sequence[Stage]) -> list[float]:
        args, kwargs = fresh(inputs)
        times = []
        for stage in stages:
            start = now()
            out = stage.module(*args, **kwargs)
            times.append((now() - start) / 1e6)
            if stage is not stages[-1]:
                args, kwargs = tuple(t.contiguous() for t in out), {}
        return times

    with _undisturbed():
        for stages in plans:
            for _ in range(WARMUP):
                run(stages)
        rounds, end = 0, time.perf_counter() + seconds
        while rounds < LEAST or (rounds < MOST and time.perf_counter() < end):
            for stages, times in zip(plans, taken, strict=True):
                times.append(run(stages))
            rounds += 1
    return [np.median(times, axis=0) for times in taken]


def _counts_for(order: Order, nodes: Sequence[fx.Node]) -> list[int]:
    """For every call the position among those of a side that it counts for; the number of these: for none."""
    positions, following = [], len(order.calls)
    for n in reversed(nodes):
        following = order.at.get(n, following)
        positions.append(following)
    return positions[::-1]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No gradients, no random state used up, no garbage collected within."""
    was = gc.isenabled()
    gc.disable()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        if was:
            gc.enable()
