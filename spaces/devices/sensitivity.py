"""How much a decomposition's costs change when devices and links are other than was thought."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from .device import Device
from .link import Link
from .pipeline import pipeline_costs

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
