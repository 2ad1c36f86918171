"""Pipeline costs: stages on several devices, and how sensitive the costs are to the devices' figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from .device import Device
from .link import Link, routes

_MEGA = 1e6
_LEAST_MS = 1e-6  # of the slowest device or link: a network that takes no time has no throughput


def pipeline_costs(
    ms: np.ndarray,
    sent: np.ndarray,
    weights: np.ndarray,
    peaks: np.ndarray,
    begins: np.ndarray,
    on: np.ndarray,
    devices: Sequence[Device],
    links: Sequence[Link],
) -> dict[str, np.ndarray]:
    """Costs of ``n`` candidates whose ``S`` segments run as at most ``K`` stages on ``D`` devices.

    A stage runs consecutive segments, and takes its device's ``per_stage_ms`` beside them; one without
    segments is no stage. The inputs are on device 0, the
    outputs stay where they are made. What crosses a boundary between stages on different devices goes over
    the links between these (see :func:`routes`); on one device it is free. Stages of a device run one after
    the other, links send on their own beside them.

    Args:
        ms: float64 [n, D, S], time of each segment on each device.
        sent: float64 [n, S + 1], bytes that cross before each segment: entry 0 the inputs, entry S 0.
        weights: float64 [n, S], bytes of parameters and buffers.
        peaks: float64 [n, S], bytes of the largest set of activations alive together.
        begins: int [n, K - 1], segment at which stage k + 1 begins, rising, 0..S.
        on: int [n, K], device of each stage.
        links: one, D - 1, or named (see :func:`routes`).

    Returns:
        float64 [n] each, for one sample:

        - ``traffic_kb``: bytes sent over links / 1000, each link on the route counted.
        - ``latency_ms``: end to end, sum of the stages' times and of the messages' times; a message takes,
          on every link of its route, latency + bytes x 8e-3 / mbps.
        - ``throughput_per_s``: of a full pipeline, 1000 / the largest of all devices' summed stage times and
          all links' summed sending times (bytes x 8e-3 / mbps, each direction by itself).
        - ``memory_mb:<device>``: weights of all its stages + the largest peak of its stages, 10^6 bytes;
          ``memory_mb``: of the device with the most.
        - ``energy_mj``, where all devices have a power: sum of power_w x ms over stages, plus what the links
          take.
        - ``stages``: how many.

    Raises:
        ValueError: links that do not fit the devices.
    """
    n, d, s = ms.shape
    taken = routes([device.name for device in devices], links)
    total = np.concatenate([np.zeros((n, d, 1)), np.cumsum(ms, axis=2)], axis=2)  # [n, D, S + 1]
    held = np.concatenate([np.zeros((n, 1)), np.cumsum(weights, axis=1)], axis=1)  # [n, S + 1]
    edge = np.concatenate([np.zeros((n, 1), int), begins, np.full((n, 1), s)], axis=1).astype(np.intp)
    rows, segment = np.arange(n), np.arange(s)
    busy, kept, peak = np.zeros((n, d)), np.zeros((n, d)), np.zeros((n, d))
    carried = np.zeros((n, len(taken.ms_per_byte)))  # bytes over each directed link
    latency, stages = np.zeros(n), np.zeros(n)
    start = np.array([device.per_stage_ms for device in devices], dtype=np.float64)
    at = np.zeros(n, dtype=np.intp)
    for k in range(on.shape[1]):
        first, last = edge[:, k], edge[:, k + 1]
        is_stage = last > first
        here = np.where(is_stage, on[:, k], at)
        route = taken.passes[at, here]  # [n, L]; empty where nothing moves
        carried += route * sent[rows, first][:, None]
        latency += route @ taken.latency_ms
        busy[rows, here] += total[rows, here, last] - total[rows, here, first] + is_stage * start[here]
        kept[rows, here] += held[rows, last] - held[rows, first]
        inside = (segment >= first[:, None]) & (segment < last[:, None])
        largest = np.where(inside, peaks, 0.0).max(axis=1, initial=0.0)
        peak[rows, here] = np.maximum(peak[rows, here], largest)
        stages += is_stage
        at = here
    sending = carried * taken.ms_per_byte
    slowest = np.maximum(busy.max(axis=1), sending.max(axis=1, initial=0.0))
    memory = (kept + peak) / _MEGA
    out = {
        "traffic_kb": carried.sum(axis=1) / 1000,
        "latency_ms": busy.sum(axis=1) + latency + sending.sum(axis=1),
        "throughput_per_s": 1000 / np.maximum(slowest, _LEAST_MS),
        "memory_mb": memory.max(axis=1),
        **{f"memory_mb:{device.name}": memory[:, i] for i, device in enumerate(devices)},
        "stages": stages,
    }
    watts = [device.power_w for device in devices]
    if all(w is not None for w in watts):
        power = np.array([w or 0.0 for w in watts], dtype=np.float64)
        out["energy_mj"] = busy @ power + carried @ taken.mj_per_byte
    return out


# -- How much a decomposition's costs change when devices and links are other than was thought ----------

CHANGES = (0.1, 0.3, 0.5)


def sensitivity(
    ms: np.ndarray,
    sent: np.ndarray,
    weights: np.ndarray,
    peaks: np.ndarray,
    begins: np.ndarray,
    on: np.ndarray,
    devices: Sequence[Device],
    links: Sequence[Link],
    *,
    changes: Sequence[float] = CHANGES,
) -> dict[str, np.ndarray]:
    """Relative change of latency and throughput when one figure is other than given, nothing else.

    The figures: every link's bandwidth and latency, every device's speed; each smaller and larger by each of
    ``changes``. Arguments as of :func:`pipeline_costs`.

    Returns:
        float64 [n] each, relative to the unchanged figures: ``latency_change`` (the worst, the largest rise),
        ``latency_change_mean`` (mean of all absolute changes), ``throughput_change`` (the largest loss, 0 or
        more) and ``throughput_change_mean``.

    Raises:
        ValueError: a change outside 0 to 1, exclusive; links that do not fit the devices.
    """
    if not changes or any(not 0 < c < 1 for c in changes):
        raise ValueError(f"changes are shares above 0 and below 1, got {list(changes)}")
    rest = (sent, weights, peaks, begins, on)
    base = pipeline_costs(ms, *rest, devices, links)
    found = [
        pipeline_costs(times, *rest, others, joined)
        for times, others, joined in _scenes(ms, devices, links, changes)
    ]
    latency = np.stack([f["latency_ms"] / base["latency_ms"] - 1 for f in found])  # [scenes, n]
    loss = np.stack([1 - f["throughput_per_s"] / base["throughput_per_s"] for f in found])
    return {
        "latency_change": np.maximum(latency.max(axis=0), 0.0),
        "latency_change_mean": np.abs(latency).mean(axis=0),
        "throughput_change": np.maximum(loss.max(axis=0), 0.0),
        "throughput_change_mean": np.abs(loss).mean(axis=0),
    }


def _scenes(
    ms: np.ndarray, devices: Sequence[Device], links: Sequence[Link], changes: Sequence[float]
) -> Iterator[tuple[np.ndarray, Sequence[Device], Sequence[Link]]]:
    for factor in (f for c in changes for f in (1 - c, 1 + c)):
        for i, device in enumerate(devices):
            times, others = ms.copy(), list(devices)
            times[:, i] /= factor
            others[i] = replace(device, speed=device.speed * factor)  # what a stage takes beside its calls
            yield times, others, links
        for k, link in enumerate(links):
            for name in ("bandwidth_mbps", "latency_ms"):
                joined = list(links)
                joined[k] = replace(link, **{name: getattr(link, name) * factor})
                yield ms, devices, joined
