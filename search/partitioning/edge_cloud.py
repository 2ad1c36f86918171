"""Two devices, one of them with the inputs: the placement of least latency by a minimum cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np

from .chain import chain
from .devices import Device, Link, check_memory
from .graph import Graph
from .max_flow import FlowNetwork
from .plan import Plan, per_part

EDGE, CLOUD = 0, 1
BITS = 60  # the sum of all capacities becomes 2^60, so that rounding costs less than arcs * 2^-61 of the sum
ROUNDS = 100  # of the search for a multiplier; it ends after few


def edge_cloud(
    graph: Graph,
    edge: Device,
    cloud: Device,
    link: Link,
    *,
    two_way: bool = False,
    pinned: Mapping[str, str] | None = None,
) -> Plan:
    """The placement of least latency for one input: sum of all compute and of all sending, upload included.

    Part 0 is the edge, which has the inputs, part 1 the cloud. A minimum s-t cut (DADS: Hu et al., INFOCOM
    2019; Neurosurgeon, Kang et al., ASPLOS 2017, is the case of a chain). A node v costs its time
    on the side it is on: arcs v -> t (edge time) and s -> v (cloud time). A tensor of u is sent once however
    many read it: u -> a with the time to send it, a -> v without limit for every reader v. Without memory
    limits, or where they do not bind, the cut proves its placement optimal. Where they bind, the limit is
    priced by a Lagrange multiplier, each value of which is again a minimum cut (Everett, Operations
    Research 11(3), 1963), and the plan says what gap is left.

    Args:
        two_way: False: the edge's nodes run first, then one message carries all that the cloud reads (a
            plan of two stages that is some topological order's prefix). True: tensors may come back too;
            every tensor is a message of its own.
        pinned: node name -> device name, where a node must run.

    Raises:
        ValueError: memory limits that nothing meets, an unknown node or device, pins against each other.
    """
    check_memory(graph, (edge, cloud))
    pins = _pins(graph, edge, cloud, pinned or {})
    cut = _Cut(graph, edge, cloud, link, two_way, pins)
    parts, bound = cut.solve((0.0, 0.0))
    seen = [parts]
    method = "minimum cut"
    if not cut.fits(parts):
        method = "minimum cuts with the memory limits priced"
        seen, bound = _priced(cut, parts, bound)
        if not pins:
            with suppress(ValueError):  # no prefix fits, another placement may
                seen.append(list(best_prefix(graph, edge, cloud, link).parts))

    def value_of(placement: Sequence[int]) -> float:
        return latency(graph, placement, edge, cloud, link, two_way=two_way)

    all_edge = [EDGE] * len(graph)
    if CLOUD not in pins.values():
        seen.append(all_edge)
    fitting = [p for p in seen if cut.fits(p)]
    if not fitting:
        raise ValueError(
            f"found no placement that keeps the memory limits of {edge.name!r} "
            f"({edge.memory_limit:,.0f} bytes) and {cloud.name!r} ({cloud.memory_limit:,.0f} bytes); it "
            f"needs {graph.memory.sum():,.0f} bytes: raise a limit"
        )
    best = min(fitting, key=value_of)
    value = value_of(best)
    if not two_way:  # whoever uses the cloud at all sends one message
        stays = value_of(all_edge) if all_edge in fitting else np.inf
        bound = min(stays, bound + link.latency_ms)
    return Plan(tuple(best), value, min(bound, value), method)


def best_prefix(graph: Graph, edge: Device, cloud: Device, link: Link) -> Plan:
    """The best prefix of the given topological order on the edge, the rest in the cloud.

    Optimal among prefixes of this order; :func:`edge_cloud` looks at those of all orders.

    Raises:
        ValueError: no prefix keeps the memory limits.
    """
    return chain(graph, (edge, cloud), link, minimise="latency", empty=True)


def latency(
    graph: Graph,
    parts: Sequence[int] | np.ndarray,
    edge: Device,
    cloud: Device,
    link: Link,
    *,
    two_way: bool = False,
) -> float:
    """Milliseconds of a placement, as :func:`edge_cloud` counts them; ``parts`` [nodes] is 0 or 1.

    Raises:
        ValueError: tensors would have to come back and ``two_way`` is False.
    """
    on = np.asarray(parts)
    total = float(np.where(on == EDGE, edge.milliseconds(graph), cloud.milliseconds(graph)).sum())
    messages = [] if two_way or not on.any() else [0.0]
    for size, source, targets in graph.links:
        home = EDGE if source < 0 else on[source]
        if (on[list(targets)] == home).all():
            continue
        if two_way:
            messages.append(size)
        elif home == CLOUD:
            raise ValueError(
                f"{graph.nodes[source].name!r} is in the cloud and read on the edge; say two_way=True"
            )
        else:
            messages[0] += size
    return total + sum(link.milliseconds(size) for size in messages)


class _Cut:
    """The cut problem, solved anew for every price of memory."""

    def __init__(
        self, graph: Graph, edge: Device, cloud: Device, link: Link, two_way: bool, pins: Mapping[int, int]
    ) -> None:
        self.graph, self.link, self.two_way, self.pins = graph, link, two_way, pins
        self.times = (edge.milliseconds(graph), cloud.milliseconds(graph))
        self.limits = np.array([edge.memory_limit, cloud.memory_limit])

    def memory(self, parts: Sequence[int]) -> np.ndarray:
        """float64 [2], bytes on the edge and in the cloud."""
        return per_part(self.graph.memory, parts, 2)

    def fits(self, parts: Sequence[int]) -> bool:
        return bool((self.memory(parts) <= self.limits * (1 + 1e-12)).all())

    def solve(self, prices: tuple[float, float]) -> tuple[list[int], float]:
        """The placement of least ms + sum_d price_d (memory_d - limit_d), and that minimum, a lower bound.

        Without ``two_way`` the message's latency is left out: it does not depend on what is sent.

        Args:
            prices: ms per byte, on the edge and in the cloud.
        """
        graph, n = self.graph, len(self.graph)
        source, sink = n, n + 1
        arcs = []  # tail, head, ms
        free = []  # arcs that no cut may contain
        for v in range(n):
            arcs.append((v, sink, self.times[EDGE][v] + prices[EDGE] * graph.memory[v]))
            arcs.append((source, v, self.times[CLOUD][v] + prices[CLOUD] * graph.memory[v]))
        free += [(source, v) if place == EDGE else (v, sink) for v, place in self.pins.items()]
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


def _priced(cut: _Cut, parts: list[int], bound: float) -> tuple[list[list[int]], float]:
    """Placements at the prices of memory tried, and the best lower bound of them.

    The bound is concave and piecewise linear in the price of the device that has too little; between a price
    at which it has too little and one at which it has enough, the next price is where their lines meet.
    """
    device = int(np.argmax(cut.memory(parts) - cut.limits))
    limit = float(cut.limits[device])
    seen = []

    def at(price: float) -> tuple[float, float]:
        """Excess bytes of the placement at this price, and its bound, raised in passing."""
        nonlocal bound
        found, least = cut.solve((price, 0.0) if device == EDGE else (0.0, price))
        seen.append(found)
        bound = max(bound, least)
        return float(cut.memory(found)[device]) - limit, least

    low, low_value = float(cut.memory(parts)[device]) - limit, bound
    low_price, price = 0.0, max(bound, 1e-12) / max(limit, 1.0)
    for _ in range(ROUNDS):
        high, high_value = at(price)
        if high <= 0:
            break
        low, low_value, low_price, price = high, high_value, price, 4 * price
    else:
        return seen, bound  # pinned memory alone is more than the limit
    high_price = price
    for _ in range(ROUNDS):
        # low_value + low (p - low_price) = high_value + high (p - high_price)
        if low - high <= 0:
            break
        meet = (high_value - low_value + low * low_price - high * high_price) / (low - high)
        line = low_value + low * (meet - low_price)
        excess, least = at(meet)
        if least >= line - 1e-12 * abs(line):
            break
        if excess <= 0:
            high, high_value, high_price = excess, least, meet
        else:
            low, low_value, low_price = excess, least, meet
    return seen, bound


def _pins(graph: Graph, edge: Device, cloud: Device, pinned: Mapping[str, str]) -> dict[int, int]:
    places = {edge.name: EDGE, cloud.name: CLOUD}
    unknown = sorted(set(pinned.values()) - set(places))
    if unknown:
        raise ValueError(f"nodes are pinned to {unknown}, but the devices are {sorted(places)}")
    return {graph.position(node): places[name] for node, name in pinned.items()}
