"""What consecutive stages cost, as :func:`chain` counts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...spaces.devices import Link
from .graph import Graph
from .hosts import Host
from .plan import per_part


@dataclass(frozen=True)
class StageCosts:
    """Figures of K stages."""

    compute: np.ndarray  # float64 [K], ms
    sent: np.ndarray  # float64 [K - 1], bytes from each stage to the next
    transfer: np.ndarray  # float64 [K - 1], ms that these keep the link busy
    delay: np.ndarray  # float64 [K - 1], ms of latency, 0 where nothing is sent

    def value(self, minimise: str, *, blocking: bool) -> float:
        """Of a goal of :func:`chain`, in its unit."""
        if minimise == "traffic":
            return float(self.sent.sum())
        if minimise == "latency":
            return float(self.compute.sum() + self.transfer.sum() + self.delay.sum())
        return float(self.each(blocking=blocking).max())

    def each(self, *, blocking: bool) -> np.ndarray:
        """float64 [K]: ms between two inputs that each stage can take."""
        transfer, delay = np.append(self.transfer, 0.0), np.append(self.delay, 0.0)
        return self.compute + transfer + delay if blocking else np.maximum(self.compute, transfer)


def stage_costs(
    graph: Graph, parts: Sequence[int] | np.ndarray, hosts: Sequence[Host], links: Sequence[Link]
) -> StageCosts:
    """Costs of the stages of a plan on hosts in their order.

    Args:
        parts: [nodes], rising; a stage may be empty.
        links: from each host to the next.
    """
    on, count = np.asarray(parts, dtype=np.int64), len(hosts)
    compute = np.array([per_part(host.milliseconds(graph), on, count)[k] for k, host in enumerate(hosts)])
    ends = np.searchsorted(on, np.arange(1, count))
    sent = graph.crossing[ends]
    used = ends < len(graph)
    transfer = np.array([b * link.ms_per_byte for b, link in zip(sent, links, strict=True)])
    delay = np.array([link.latency_ms * go for go, link in zip(used, links, strict=True)])
    return StageCosts(compute, sent, transfer, delay)
