"""Decomposition in one call: a network as stages that are modules, without a search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..evaluators.stage_timing import stage_times
from ..model.capture import Example
from ..model.stages import Stage, verify
from ..model.threads import one_thread
from .network import CostedCall, Network, read_network
from .planning import Layout, plan_layout
from .setting import PartitionSettings, partition_settings

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from ..devices import Device, Link
    from .partitioners import Plan


@dataclass(frozen=True, slots=True)
class Row:
    """One stage, for one batch."""

    stage: int  # from 1
    device: str
    first: str  # deepest module of its first call, "" for the model itself
    last: str
    ms: float  # on its device
    timed: bool  # the stage was timed here (and divided by the device's speed); else by the device's profile
    macs: float
    macs_share: float  # of the network's, in [0, 1]
    weights_mb: float  # parameters and buffers, 10^6 bytes
    memory_mb: float  # weights, and activations at their most
    sent_kb: float  # to the next stage, 1000 bytes; of the last 0
    send_ms: float  # of that, link latency included
    tensors: tuple[str, ...]  # what is sent

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def rows_of(measured: MeasuredLayout, asked: PartitionSettings) -> tuple[Row, ...]:
    layout = measured.layout
    network, costs = layout.network, layout.costs
    total = float(network.macs.sum())
    rows = []
    for k, (begin, end) in enumerate(zip([0, *layout.ends], layout.ends, strict=False)):
        calls, at = network.calls[begin:end], layout.on[k]
        held = measured.stages[k].module.state_dict().values()
        weights = sum({t.data_ptr(): t.numel() * t.element_size() for t in held}.values())
        macs = float(network.macs[begin:end].sum())
        last = k == len(layout.cuts)
        hops = slice(at, at if last else layout.on[k + 1])  # devices between that only pass on
        rows.append(
            Row(
                stage=k + 1,
                device=asked.devices[at].name,
                first=_module(calls),
                last=_module(calls[::-1]),
                ms=float(costs.compute[at]),
                timed=asked.devices[at].profile is None,
                macs=macs,
                macs_share=macs / total if total else 0.0,
                weights_mb=weights / 1e6,
                memory_mb=(weights + max(call.alive for call in calls)) / 1e6,
                sent_kb=0.0 if last else layout.cuts[k].bytes * network.batch / 1000,
                send_ms=float(np.sum(costs.transfer[hops]) + np.sum(costs.link_ms[hops])),
                tensors=() if last else layout.cuts[k].tensors,
            )
        )
    return tuple(rows)


def _module(calls: Sequence[CostedCall]) -> str:
    return next((call.modules[-1] for call in calls if call.modules), "")


# -- A network as stages that are modules, in one call and without a search -----------------------------


@dataclass(frozen=True)
class Decomposition:
    """A network cut into stages, one after another. Made by :func:`decompose`."""

    stages: tuple[nn.Module, ...]  # each takes what the one before returns, the first what the model takes
    rows: tuple[Row, ...]  # figures of the stages, in order
    plan: Plan  # stage of every call; value in ms or bytes, and what it is proven not to fall below
    upload_ms: float  # to send the inputs to the first stage, where this is not on the first device
    whole_ms: float  # of the unsplit model, timed here in turns with the stages
    difference: float  # largest, between stages and whole on the example, relative to the largest output

    def __len__(self) -> int:
        return len(self.stages)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.stages)

    def __getitem__(self, k: int) -> nn.Module:
        return self.stages[k]

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, by one stage after another in this process."""
        out = self.stages[0](*args, **kwargs)
        for stage in self.stages[1:]:
            out = stage(*out)
        return out

    @property
    def table(self) -> pd.DataFrame:
        """One row per stage: ``device``, ``first``, ``last`` (modules), ``ms``, ``macs``, ..."""
        import pandas as pd

        return pd.DataFrame([row.as_dict() for row in self.rows]).set_index("stage")


def decompose(
    model: nn.Module,
    example: Example,
    parts: int | None = None,
    minimise: str = "throughput",
    devices: Iterable[Device | str] | None = None,
    links: Sequence[Link | str] | Link | str | None = None,
    forced: Iterable[str] = (),
    forbidden: Iterable[str] = (),
    *,
    batch: int = 1,
    imbalance: float = 0.25,
    method: str = "exact",
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Decomposition:
    """Cut a model into stages that together are the model, to 1e-6.

    The calls of the model are timed here, on one thread; the cut is optimal for these times (dynamic
    programming over all legal cuts; on two devices also a minimum cut over all placements), then real stages
    of the best plans are timed and the best of these is returned. The model itself is not changed.

    Args:
        example: one batch of inputs: a tensor, a tuple, a dict of keyword inputs or (args, kwargs).
        parts: how many stages; by default as many as devices, or 2.
        minimise: ``"throughput"``: time of the slowest stage or link (without links, of the plans within 1 %
            of the least the one that sends least); ``"latency"``: end to end, where a
            device may be left without a stage; ``"traffic"``: bytes between stages, while the slowest stage
            takes at most ``1 + imbalance`` times that of the fastest plan.
        devices: in the order of the stages, such as ``["edge=0.2x", "server=1x"]`` or :class:`Device`; the
            inputs are on the first. By default equal ones of this machine's speed.
        links: one for all, or from each device to the next, such as ``"20mbps,5ms"``; by default free.
        forced: modules after which a stage must end.
        forbidden: modules that must stay whole.
        batch: samples of an input.
        method: "exact", "greedy-merge", "greedy-split", "spectral", "kernighan-lin" or "gcn".
        seed: of the methods that draw.
        progress: told in a few words what is being done.

    Raises:
        CaptureError: the model cannot be captured.
        CutError: it keeps state between calls; fewer legal cuts than parts need; no cut after a forced
            module.
        ValueError: devices, links or numbers that cannot be; memory limits that nothing meets, with what is
            missing.
    """
    asked = partition_settings(
        parts,
        minimise,
        devices,
        links,
        forced=forced,
        forbidden=forbidden,
        imbalance=imbalance,
        method=method,
        seed=seed,
    )
    with one_thread():
        progress("capturing the model and timing its calls")
        network = read_network(model, example, batch=batch)
        return decomposition(measured_layout(network, asked, progress=progress), asked)


def decomposition(measured: MeasuredLayout, asked: PartitionSettings) -> Decomposition:
    """What :func:`decompose` returns, of a measured layout and what was asked for."""
    layout = measured.layout
    costs, before = layout.costs, slice(0, layout.on[0])
    return Decomposition(
        tuple(stage.module for stage in measured.stages),
        rows_of(measured, asked),
        layout.plan,
        float(costs.transfer[before].sum() + costs.link_ms[before].sum()),
        measured.whole_ms,
        verify(layout.network.functional.captured, measured.stages),
    )


# -- Real candidate stages are timed before a plan is trusted: sums of the times of calls mispredict ----

ROUNDS = 4
BEST = 3  # plans that are timed once more, against each other


@dataclass(frozen=True)
class MeasuredLayout:
    """A layout with its stages, built and timed here."""

    layout: Layout  # its value is that of the measured stages where their devices have no profile
    stages: tuple[Stage, ...]
    here_ms: np.ndarray  # float64 [stages], on this machine
    whole_ms: float  # of the unsplit network, timed in turns with them
    tried: int  # plans built and timed


def measured_layout(
    network: Network,
    asked: PartitionSettings,
    *,
    seconds: float = 1.0,
    progress: Callable[[str], None] = lambda text: None,
) -> MeasuredLayout:
    """The best plan by the times of real stages.

    Round by round the best plan is built and timed, and the calls of each of its stages are scaled to what
    the stage took, until a plan comes again; the best few are then timed in turns. Plans by another method
    than "exact", or for traffic, are only timed: their value does not hang on small differences of time.

    The bound is that of the times that these corrections leave.

    Args:
        seconds: about how long each plan is timed.
    """
    whole = network.stages([], check=False)
    tried: dict[tuple[int, ...], tuple[Layout, list[Stage], float]] = {}
    rounds = ROUNDS if asked.method == "exact" and asked.minimise != "traffic" else 1
    now = network
    for _ in range(rounds):
        layout = plan_layout(now, asked)
        key = (*layout.ends, *layout.on)
        if key in tried:
            break
        progress(f"timing {len(layout.on)} stages, plan {len(tried) + 1}")
        stages = layout.network.stages(layout.cuts, check=False)
        ms, (took,) = stage_times([stages, whole], network.inputs, seconds=seconds)
        ms = ms * float(network.ms.sum()) / took  # machines drift
        tried[key] = (layout, stages, revalued(layout, ms, asked).value)
        if layout.network.functional is not network.functional:
            break  # another order of the calls
        now = now.corrected(layout.ends, ms)
    best = sorted(tried.values(), key=lambda entry: entry[2])[:BEST]
    *times, (whole_ms,) = stage_times(
        [stages for _, stages, _ in best] + [whole], network.inputs, seconds=seconds
    )
    final = [revalued(layout, ms, asked) for (layout, _, _), ms in zip(best, times, strict=True)]
    chosen = min(range(len(final)), key=lambda i: final[i].value)
    layout = final[chosen]
    if asked.method == "exact" and layout.network.functional is network.functional:
        bound = plan_layout(now.corrected(layout.ends, times[chosen]), asked).bound
    else:
        drift = 1.0 if asked.minimise == "traffic" else float(whole_ms) / float(network.ms.sum())
        bound = layout.bound * min(drift, 1.0)
    layout = replace(layout, bound=min(bound, layout.value))
    return MeasuredLayout(
        layout,
        tuple(layout.network.stages(layout.cuts)),  # compared with the whole
        times[chosen],
        float(whole_ms),
        len(tried),
    )


def revalued(layout: Layout, here_ms: np.ndarray, asked: PartitionSettings) -> Layout:
    """The layout with its stages' measured times; a device with a profile keeps the modelled one."""
    compute = layout.costs.compute.copy()
    for stage, at in enumerate(layout.on):
        device = asked.devices[at]
        if device.profile is None:
            compute[at] = here_ms[stage] / device.speed
    costs = replace(layout.costs, compute=compute)
    return replace(layout, costs=costs, value=costs.value(asked.minimise, blocking=False))
