"""Where each node runs, edge or cloud, as a minimum cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...spaces.devices import Link
from .graph import Graph
from .hosts import Host
from .max_flow import FlowNetwork
from .plan import per_part

EDGE, CLOUD = 0, 1
BITS = 60  # the sum of all capacities becomes 2^60, so that rounding costs less than arcs * 2^-61 of the sum


class PlacementCut:
    """The cut problem, solved anew for every price of memory and every set of pinned nodes."""

    def __init__(self, graph: Graph, edge: Host, cloud: Host, link: Link, *, two_way: bool) -> None:
        self.graph, self.link, self.two_way = graph, link, two_way
        self.times = (edge.milliseconds(graph), cloud.milliseconds(graph))
        self.limits = np.array([edge.memory_limit, cloud.memory_limit])

    def memory(self, parts: Sequence[int]) -> np.ndarray:
        """float64 [2], bytes on the edge and in the cloud."""
        return per_part(self.graph.memory, parts, 2)

    def fits(self, parts: Sequence[int]) -> bool:
        return bool((self.memory(parts) <= self.limits * (1 + 1e-12)).all())

    def solve(
        self, pins: Mapping[int, int], prices: tuple[float, float] = (0.0, 0.0)
    ) -> tuple[list[int], float]:
        """The placement of least ms + sum_d price_d (memory_d - limit_d), and that minimum, a lower bound.

        Without ``two_way`` the message's latency is left out: it does not depend on what is sent.

        Args:
            pins: position of a node -> where it must run.
            prices: ms per byte, on the edge and in the cloud.

        Raises:
            ValueError: pins against each other.
        """
        graph, n = self.graph, len(self.graph)
        source, sink = n, n + 1
        arcs = []  # tail, head, ms
        free = []  # arcs that no cut may contain
        for v in range(n):
            arcs.append((v, sink, self.times[EDGE][v] + prices[EDGE] * graph.memory[v]))
            arcs.append((source, v, self.times[CLOUD][v] + prices[CLOUD] * graph.memory[v]))
        free += [(source, v) if place == EDGE else (v, sink) for v, place in pins.items()]
        vertices = n + 2
        for size, made_by, targets in graph.links:
            home = source if made_by < 0 else made_by
            sending = self.link.milliseconds(size) if self.two_way else size * self.link.ms_per_byte
            arcs.append((home, vertices, sending))
            free += [(vertices, reader) for reader in targets]
            vertices += 1
            if made_by < 0:
                continue
            if self.two_way:
                arcs.append((vertices, home, sending))
                free += [(reader, vertices) for reader in targets]
                vertices += 1
            else:
                free += [(reader, home) for reader in targets]
        total = sum(ms for _, _, ms in arcs)
        scale = 2.0**BITS / total if total > 0 else 1.0
        network = FlowNetwork(vertices)
        unlimited = 1
        for tail, head, ms in arcs:
            capacity = round(ms * scale)
            unlimited += capacity
            network.add(tail, head, capacity)
        for tail, head in free:
            network.add(tail, head, unlimited)
        flow = network.maximum_flow(source, sink)
        if flow >= unlimited:
            raise ValueError(
                "the pinned nodes contradict each other: what is pinned to the edge reads what is pinned to "
                "the cloud; lift a pin, or say two_way=True"
            )
        side = network.source_side(source)
        paid = sum(p * limit for p, limit in zip(prices, self.limits.tolist(), strict=True) if p > 0)
        return [EDGE if side[v] else CLOUD for v in range(n)], flow / scale - paid
