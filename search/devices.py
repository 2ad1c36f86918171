"""What a run knows of the devices that its space splits networks over."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..results.objective import Limit
from ..results.table import metric_text, plain
from ..results.trial import Trial
from ..spaces import Space
from ..spaces.devices import Device, Link, devices_of, links_of
from ..spaces.splits import plan_of
from .feasible import least_violating

MODELLED = ("latency_ms", "throughput_per_s", "energy_mj", "latency_change", "throughput_change")


def modelled(space: Space) -> list[str]:
    """Names of the costs that come from profiles of devices, not from a clock; empty without splits."""
    plan = plan_of(space.choices)
    if plan is None:
        return []
    known = space.cost_arrays([space.baseline])
    return [name for name in MODELLED if name in known]


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


def stored_platform(settings: Mapping[str, Any]) -> tuple[tuple[Device, ...], tuple[Link, ...]]:
    """Devices and links of a run, from its settings; empty where its networks were not split."""
    options = (settings.get("space") or {}).get("options", {})
    if not options.get("devices"):
        return (), ()
    devices = devices_of(options["devices"])
    return devices, links_of(options.get("links") or (), devices)


def as_stored(devices: Sequence[Device], stored: Sequence[Device]) -> tuple[Device, ...]:
    """The stored devices, with their profiles, where the same were asked for then; else ``devices``.

    A speed relative to this machine means the machine as it was when the run began.
    """
    same = [d.asked().to_json() for d in devices] == [d.asked().to_json() for d in stored]
    return tuple(stored if same else devices)


def platform_text(devices: Sequence[Device], links: Sequence[Link]) -> str:
    """``"edge (0.2x this machine), server (1x this machine) over 20 mbps, 5 ms"``."""
    shown = ", ".join(f"{d.name} ({_speed(d)})" for d in devices)
    ways = " and ".join(f"{k.bandwidth_mbps:g} mbps, {k.latency_ms:g} ms" for k in dict.fromkeys(links))
    return f"{shown} over {ways}" if links else shown


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


def _speed(device: Device) -> str:
    if device.relative:
        return f"{device.speed:g}x this machine"
    own = device.profile.machine if device.profile is not None and device.profile.machine else "profile"
    return own if device.speed == 1 else f"{device.speed:g}x {own}"
