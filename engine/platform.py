"""Platform of a run: the devices and links that its space splits networks over."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..devices import Device
from ..results.objective import Limit
from ..results.points import latency_drift, latency_interval
from ..results.table import metric_text, plain
from ..results.trial import Trial
from ..search.wrappers import least_violating
from ..spaces import Candidate, Space
from ..spaces.kinds.splits.plan import plan_of, with_sensitivity

MODELLED = ("latency_ms", "throughput_per_s", "energy_mj", "latency_change", "throughput_change")


def modelled(space: Space) -> list[str]:
    """Names of the costs that come from profiles of devices, not from a clock; empty without splits."""
    plan = plan_of(space.choices)
    if plan is None:
        return []
    known = space.cost_arrays([space.baseline])
    return [name for name in MODELLED if name in known]


def sensitivities(space: Space, candidates: Sequence[Candidate]) -> list[dict[str, float]]:
    """``latency_change`` and ``throughput_change`` of each (see :func:`.devices.pipeline.sensitivity`).

    Empty where nobody knows how long stages take.
    """
    plan = plan_of(space.choices)
    if plan is None or not modelled(space) or not candidates:
        return [{} for _ in candidates]
    choices = with_sensitivity(space.choices)
    indices = np.array([c.indices for c in candidates])
    found = space.side.cost_arrays(choices, indices)
    names = ("latency_change", "throughput_change")
    return [{name: float(found[name][i]) for name in names} for i in range(len(candidates))]


def memory_limits(space: Space) -> list[str]:
    """A limit for each device whose memory is limited: ``"memory_mb:edge<=64"``.

    Raises:
        ValueError: all devices together hold less than the weights of the smallest network.
    """
    plan = plan_of(space.choices)
    devices = plan.devices if plan is not None else ()
    held = sum(d.memory_limit_mb for d in devices)
    if devices and held < math.inf:
        smallest = least_violating(space, Limit(f"size_mb<={held:g}"), {})
        least = float(space.cost_arrays([smallest])["size_mb"][0])
        if least > held:
            raise ValueError(
                f"the devices hold {held:g} MB together, the weights of the smallest network of this space "
                f"take {least:.3g} MB: {least - held:.3g} MB are missing; raise a limit, add a device, "
                "or search a space with smaller networks"
            )
    return [f"memory_mb:{d.name}<={d.memory_limit_mb:g}" for d in devices if d.memory_limit_mb < math.inf]


def as_stored(devices: Sequence[Device], stored: Sequence[Device]) -> tuple[Device, ...]:
    """The stored devices, with their profiles, where the same were asked for then; else ``devices``.

    A speed relative to this machine means the machine as it was when the run began.
    """
    same = [d.asked().to_json() for d in devices] == [d.asked().to_json() for d in stored]
    return tuple(stored if same else devices)


def sensitivity_rows(trial: Trial) -> list[tuple[str, ...]]:
    """How a trial's decomposition bears other devices and links, as rows of text; empty where unknown."""
    found = trial.detail.get("sensitivity")
    if not found:
        return []
    return [
        ("if one speed, bandwidth or latency is 10 to 50 % other", "at worst"),
        ("latency_ms (modelled)", f"{found['latency_change']:+.0%}"),
        ("throughput_per_s (modelled)", f"{-found['throughput_change']:+.0%}"),
    ]


def latency_rows(trial: Trial) -> list[tuple[str, ...]]:
    """How well a measured latency is known, as rows of a table; none where it was not measured."""
    if "ratio_low" not in trial.detail or "latency_ms" not in trial.scores:
        return []
    low, high = latency_interval(trial)
    ms = trial.scores["latency_ms"]
    return [
        ("latency, measured", ""),
        ("95 % interval", f"{metric_text('latency_ms', ms * low)} to {metric_text('latency_ms', ms * high)}"),
        ("unchanged model's drift meanwhile", f"{latency_drift(trial):.1%}"),
    ]


def measured_rows(trial: Trial) -> list[tuple[str, ...]]:
    """What was measured of a trial's stages, as rows of text; empty where nothing was."""
    found = trial.detail.get("measured")
    if not found:
        return []
    if "error" in found:
        return [("stages", f"cannot be made: {found['error']}")]
    columns = [found[key] for key in ("stages", "devices", "stage_ms")]
    rows = [(name, device, f"{plain(ms)} ms") for name, device, ms in zip(*columns, strict=True)]
    totals = [(name, "", metric_text(name, found[name])) for name in ("latency_ms", "throughput_per_s")]
    return [("stage, measured alone here", "device", "time"), *rows, *totals]
