"""What a run knows of the devices that its space splits networks over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..spaces import Space
from ..spaces.devices import Device, Link, devices_of, links_of
from ..spaces.splits import Plan, plan_of

MODELLED = ("latency_ms", "throughput_per_s", "energy_mj", "latency_change", "throughput_change")


def modelled(space: Space) -> list[str]:
    """Names of the costs that come from profiles of devices, not from a clock; empty without splits."""
    plan = plan_of(space.choices)
    if plan is None:
        return []
    known = space.cost_arrays([space.baseline])
    return [name for name in MODELLED if name in known]


def memory_limits(space: Space) -> list[str]:
    """A limit for each device whose memory is limited: ``"memory_mb:edge<=64"``."""
    plan = plan_of(space.choices)
    devices = plan.devices if plan is not None else ()
    return [f"memory_mb:{d.name}<={d.memory_limit_mb:g}" for d in devices if d.memory_limit_mb < float("inf")]


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
