"""Devices and links of a decomposition, as a deployment simulates them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ...spaces.devices import Device, Link, routes


def simulated(on: Sequence[str], devices: Sequence[Device], links: Sequence[Link]) -> dict[str, Any]:
    """``link``, ``speeds`` and ``cores`` for a :class:`Deployment` whose stages run on these devices.

    Stages of one device share a core. The inputs are on the first device. Devices faster than this machine,
    and those with a profile of another machine, run at this machine's speed.

    Args:
        on: name of each stage's device.
        devices, links: as given to the space.
    """
    names = [device.name for device in devices]
    ways = routes(names, links)
    at = [0, *(names.index(name) for name in on)]
    link = []
    for here, there in pairwise(at):
        taken = np.flatnonzero(ways.passes[here, there])
        link.append([_link(float(ways.ms_per_byte[i]), float(ways.latency_ms[i])) for i in taken])
    used = list(dict.fromkeys(at[1:]))
    cores = free_cores(len(used))
    return {
        "link": link,
        "speeds": [min(1.0, devices[i].speed) for i in at[1:]],
        "cores": [cores[used.index(i)] for i in at[1:]] if cores else [],
    }


def free_cores(count: int) -> list[int]:
    """So many cores that this process may use, no two of one physical core where there are enough; empty
    where there are too few, or the system does not tell."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    usable = sorted(os.sched_getaffinity(0))
    firsts = dict.fromkeys(min(c for c in _siblings(core) if c in usable) for core in usable)
    order = [*firsts, *(core for core in usable if core not in firsts)]
    return order[:count] if len(order) >= count else []


def _siblings(core: int) -> set[int]:
    """All threads of a core's physical core."""
    try:
        text = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text()
    except OSError:
        return {core}
    spans = [part.split("-") for part in text.strip().split(",")]
    return {core, *(c for span in spans for c in range(int(span[0]), int(span[-1]) + 1))}


def _link(ms_per_byte: float, latency_ms: float) -> Link:
    return Link(8e-3 / ms_per_byte if ms_per_byte else float("inf"), latency_ms)
