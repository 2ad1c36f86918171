"""Real candidate stages are timed before a plan is trusted: sums of the times of calls mispredict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..evaluators.stage_timing import stage_times
from ..model.stages import Stage
from .network import Network
from .planning import Layout, plan_layout
from .setting import PartitionSettings

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
