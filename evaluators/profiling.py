"""Profiling of this machine: times of a network's calls, measured where they run, at several widths."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from ..devices import Device, Profile
from ..devices.profile import fit_affine, moved_bytes, operator_of
from ..model.capture import capture, flat_inputs
from ..model.liveness import constants
from ..model.stages import Functional, Stage, find_cuts, functionalise, split
from ..model.stages.cuts import Order, macs
from ..model.threads import one_thread
from .batches import Inputs, resize
from .latency import thread_ns
from .machine import environment, processor
from .stage_timing import stage_jobs, stopwatch, taking_turns

if TYPE_CHECKING:
    from ..spaces import Blueprint
    from .task import Task


LONG_NS = 100_000  # a call for which the dearer clock, half a microsecond to read, is worth it


@dataclass(frozen=True)
class Call:
    """One call of a functional graph and its work for one sample."""

    name: str
    operator: str
    macs: float
    moved: float  # bytes of all tensors that it reads and writes; 0: a view, made for nothing


def calls_of(network: Functional) -> list[Call]:
    """The calls that belong to a side of a cut, in their order (see :class:`Order`)."""
    work, samples, order = macs(network), network.captured.batch, Order(network)
    constant = constants(network.graph)

    def moved(n: fx.Node) -> float:
        return 0.0 if order.is_view(n) else moved_bytes(n, samples, constant)

    return [Call(n.name, operator_of(n), work.get(n.name, 0.0), moved(n)) for n in order.calls]


class Clocked:
    """The network as one stage, with the clock read after every call.

    So a call is timed with the caches as the calls before leave them, and with all that its line does beside
    it: looking up its weights, freeing what is no longer needed. The times add up to that of the whole.

    Args:
        batch: samples of one call; of no effect where the batch axis is fixed.
    """

    def __init__(self, network: Functional, *, batch: int = 1) -> None:
        self.calls = calls_of(network)
        (stage,) = split(network, [], check=False)
        captured = network.captured
        self.samples = batch if captured.dynamic_batch else captured.batch  # of one call
        self.inputs: Inputs = captured.args, captured.kwargs
        if captured.dynamic_batch:
            self.inputs = resize(self.inputs, batch)
        self._flat = flat_inputs(captured.graph_module, *self.inputs)
        self._stage = stage
        self._now = self._clock()
        graph = fx.Graph()
        graph.graph_copy(stage.module.graph, {})
        known = {call.name: i for i, call in enumerate(self.calls) if call.moved}
        marks: list[fx.Node] = []
        self._of: list[int | None] = []  # for each mark the call before it; None: a helper or a view
        for node in list(graph.nodes):
            if node.op == "call_function":
                with graph.inserting_after(node):
                    marks.append(graph.call_function(self._now))
                self._of.append(known.get(node.name))
        graph.output(tuple(marks))
        self._module = fx.GraphModule(stage.module, graph)

    @torch.inference_mode()
    def _clock(self) -> Callable[[], int]:
        """The time that this thread computed where calls are long, so that others' work does not count."""
        self.whole()
        start = thread_ns()
        self.whole()
        mean = (thread_ns() - start) / max(len(self.calls), 1)
        return thread_ns if mean > LONG_NS else time.perf_counter_ns

    def whole(self) -> Any:
        """The network as it is, without clocks."""
        args, kwargs = self.inputs
        return self._stage.module(*args, **kwargs)

    def run(self) -> np.ndarray:
        """float64 [calls]: milliseconds of each call, for one sample; to be called within inference mode.

        What a helper or a view takes counts for the call that it prepares.
        """
        laps = np.diff([self._now(), *self._module(*self._flat)])
        out, waiting = np.zeros(len(self.calls)), 0
        for call, lap in zip(self._of[1:], laps[1:].tolist(), strict=True):  # the first checks the entry
            waiting += lap
            if call is not None:
                out[call] += waiting
                waiting = 0
        return out / 1e6 / self.samples


# -- Measuring a profile of this machine: how long the operators of a task's network take at several widths

RATIOS = (0.0, 0.25, 0.5, 0.75, 0.875)  # that each group is pruned by, in turn
HELD_OUT = 2  # networks that only check
PARTS = 3  # that each network is split into
MOST_ROUNDS = 60
LEAST_MS = 1e-5  # of a call: below what the clock tells
PACKAGES = ("netcarve", "torch", "numpy")


@dataclass(frozen=True)
class Line:
    """What one operator takes in the unchanged network, for one sample."""

    operator: str
    calls: int
    ms: float  # of all its calls


@dataclass(frozen=True)
class Profiled:
    """A measured profile, and what it was measured on."""

    profile: Profile
    lines: tuple[Line, ...]  # most time first
    ms: float  # of the unchanged network as one stage, measured
    held_out: tuple[tuple[float, float], ...]  # ms of stages: by the profile, measured
    checked: bool  # are these of networks that it was not fitted on?


@dataclass(frozen=True)
class _Net:
    """One network of the measurement."""

    clocked: Clocked
    stages: list[Stage]  # it, split at random
    ends: list[int]  # of each stage but the last, its last call

    def parts(self) -> list[list[Call]]:
        """The calls of the whole, then of each stage."""
        calls, edges = self.clocked.calls, [0, *(end + 1 for end in self.ends), None]
        return [calls, *(calls[a:b] for a, b in pairwise(edges))]

    def jobs(self) -> list[Callable[[], Any]]:
        """A call of the whole, then of each stage."""
        return [self.clocked.whole, *stage_jobs(self.stages, self.clocked.inputs)]


@one_thread()
def measure_profile(
    task: Task,
    blueprint: Blueprint,
    *,
    seconds: float = 5.0,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> Profiled:
    """Time the operators of the task's network on this machine, on one thread, at several widths.

    The unchanged network, one pruned to an eighth, and four in which every group has 3/4, 1/2, 1/4 and 1/8 of
    its units once, combined at random, run in turns with a clock between their calls. In the same rounds each
    of them is also timed whole, and split into three stages at random, for the correction ``scale x sum +
    per_stage_ms``; and so are two further networks, on which the error of the profile is measured. Nothing
    else may run meanwhile.

    Args:
        blueprint: of the task's model; a model of which nothing may be pruned is measured as it is.
        seconds: of timing, on top of making the networks (about a second each); more where five rounds
            take longer.
        seed: of the widths and splits.

    Raises:
        CutError: the model keeps state between calls.
    """
    tell = say or (lambda _: None)
    rng = np.random.default_rng(seed)
    tell("measuring this machine: making networks of several widths")
    nets = [_network(network, rng) for network in _networks(task, blueprint, rng)]
    shared_names(nets[0].clocked.calls, [net.clocked.calls for net in nets[1:]])
    check = nets[-HELD_OUT:] if len(nets) > HELD_OUT else []
    train = nets[: len(nets) - len(check)]
    tell("measuring this machine: timing operators and stages")
    jobs = [[stopwatch(job) for job in net.jobs()] for net in nets]
    # All in the same rounds, since machines drift.
    found = taking_turns(
        [*(net.clocked.run for net in train), *(job for of in jobs for job in of)],
        seconds=seconds,
        rounds=MOST_ROUNDS,
    )
    points: dict[str, list[tuple[float, float, float]]] = {}
    for net, times in zip(train, found, strict=False):
        for call, ms in zip(net.clocked.calls, times.tolist(), strict=True):
            if call.moved:
                points.setdefault(call.operator, []).append((call.macs, call.moved, max(ms, LEAST_MS)))
    profile = Profile(
        {name: np.array(rows) for name, rows in points.items()},
        machine=processor(),
        versions={k: v for k, v in environment().items() if k in PACKAGES},
    )
    measured = np.array(found[len(train) :], dtype=np.float64) / nets[0].clocked.samples
    summed = np.array([_sum(profile, part) for net in nets for part in net.parts()])
    fitted = np.repeat(np.arange(len(nets)), [len(of) for of in jobs]) < len(train)
    scale, start = fit_affine(summed[fitted], measured[fitted])
    held = ~fitted if check else fitted
    predicted = scale * summed + start
    off = np.abs(predicted / measured - 1)[held]
    error = float(np.median(off)), float(np.quantile(off, 0.9))
    return Profiled(
        replace(profile, scale=scale, per_stage_ms=start, error=error),
        _lines(train[0].clocked.calls, found[0]),
        float(measured[0]),
        tuple(zip(predicted[held].tolist(), measured[held].tolist(), strict=True)),
        bool(check),
    )


def with_profiles(
    devices: Sequence[Device],
    task: Task,
    blueprint: Blueprint,
    *,
    say: Callable[[str], None] | None = None,
) -> tuple[Device, ...]:
    """The devices, those whose speed is relative to this machine with its profile, measured once for all.

    Raises:
        CutError: as :func:`measure_profile`.
    """
    if all(device.profile is not None for device in devices):
        return tuple(devices)
    reference = measure_profile(task, blueprint, say=say).profile
    return tuple(device.on(reference) for device in devices)


def shared_names(calls: list[Call], others: Sequence[list[Call]]) -> None:
    """Give the calls of pruned networks the operators of the unchanged one, which they are called by.

    Where an operator's geometry counts channels (heads, say), it would else be another one when pruned.
    """
    for other in others:
        if len(other) == len(calls):
            pairs = list(zip(calls, other, strict=True))
            if all(a.operator.partition(" ")[0] == b.operator.partition(" ")[0] for a, b in pairs):
                other[:] = [replace(b, operator=a.operator) for a, b in pairs]


def _networks(task: Task, blueprint: Blueprint, rng: np.random.Generator) -> list[Functional]:
    """The unchanged network first, those that only check last."""
    unchanged = blueprint.cutting.network
    try:
        space = blueprint.space("prune", ratios=RATIOS, importance="l1")
    except ValueError:  # nothing may be pruned
        return [unchanged]
    most = space.counts - 1
    steps = np.array([rng.permutation(len(RATIOS) - 1) + 1 for _ in most]).T  # [4, choices]
    other = rng.integers(0, len(RATIOS), (HELD_OUT, len(most)))
    rows = [most, *np.minimum(steps, most), *np.minimum(other, most)]
    models = (space.build(space.candidate(row)).eval() for row in rows)
    return [unchanged, *(functionalise(capture(model, task.example)) for model in models)]


def _network(network: Functional, rng: np.random.Generator) -> _Net:
    cuts = find_cuts(network)
    taken = sorted(rng.choice(len(cuts), min(PARTS - 1, len(cuts)), replace=False).tolist()) if cuts else []
    stages = split(network, [cuts[i] for i in taken], check=False)
    return _Net(Clocked(network), stages, [cuts[i].index for i in taken])


def _sum(profile: Profile, calls: Sequence[Call]) -> float:
    work = np.array([(call.macs, call.moved) for call in calls], dtype=np.float64).reshape(-1, 1, 2)
    names = [call.operator for call in calls]
    return float(profile.milliseconds(names, work[:, :, 0].T, work[:, :, 1].T).sum())


def _lines(calls: Sequence[Call], ms: np.ndarray) -> tuple[Line, ...]:
    of: dict[str, list[float]] = {}
    for call, taken in zip(calls, ms.tolist(), strict=True):
        if call.moved:
            of.setdefault(call.operator, []).append(taken)
    lines = [Line(name, len(times), sum(times)) for name, times in of.items()]
    return tuple(sorted(lines, key=lambda line: -line.ms))
