"""Edge and cloud: the placement of least latency on two devices, by minimum cuts."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import numpy as np

from ...devices import Link
from .chain import chain
from .graph import SAME, CostedDevice, Graph, Plan, check_memory, per_part
from .max_flow import FlowNetwork

EDGE, CLOUD = 0, 1
BITS = 60  # the sum of all capacities becomes 2^60, so that rounding costs less than arcs * 2^-61 of the sum


class PlacementCut:
    """The cut problem, solved anew for every price of memory and every set of pinned nodes."""

    def __init__(
        self, graph: Graph, edge: CostedDevice, cloud: CostedDevice, link: Link, *, two_way: bool
    ) -> None:
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


# -- Placements within memory limits: prices for memory, and branching where prices leave a gap ---------

ROUNDS = 60  # of the search for a price; it ends after few


def within_limits(
    cut: PlacementCut,
    pins: Mapping[int, int],
    value_of: Callable[[Sequence[int]], float],
    found: Sequence[Sequence[int]],
    *,
    message_ms: float,
    visits: int,
) -> tuple[list[int] | None, float, int]:
    """Best-first branch and bound over where single nodes run.

    The bound of a set of pinned nodes is the best price's minimum cut (:func:`priced`); the next node pinned
    is the one of most memory among those on which the placements at the prices differ.

    Args:
        value_of: ms of a placement.
        found: placements known, whether or not within the limits.
        message_ms: what every placement that uses the cloud costs beyond its cut.
        visits: sets of pins looked at, at most.

    Returns:
        The best placement within the limits, None if none was met; a lower bound on all that use the cloud,
        inf where there is none; sets of pins looked at.
    """
    best: list[int] | None = None
    value = np.inf

    def offer(placements: Sequence[Sequence[int]]) -> None:
        nonlocal best, value
        for placement in placements:
            if cut.fits(placement) and (ms := value_of(placement)) < value:
                best, value = list(placement), ms

    offer(found)
    order = itertools.count()  # breaks ties: first come, first served
    heap: list[tuple[float, int, dict[int, int]]] = [(0.0, next(order), dict(pins))]
    visited = 0
    while heap and heap[0][0] < value * (1 - SAME) and visited < visits:
        low, _, here = heapq.heappop(heap)
        if (_pinned_memory(cut, here) > cut.limits).any():
            continue
        visited += 1
        try:
            seen, least = priced(cut, here, enough=value - message_ms)
        except ValueError:  # these pins contradict each other
            continue
        offer(seen)
        if visited == 1:
            offer(between(seen))
        low = max(low, least + message_ms)
        free = [v for v in range(len(cut.graph)) if v not in here]
        if low >= value * (1 - SAME) or not free:
            continue
        disputed = [v for v in free if len({placement[v] for placement in seen}) > 1]
        v = max(disputed or free, key=lambda u: cut.graph.memory[u])
        for place in (EDGE, CLOUD):
            heapq.heappush(heap, (low, next(order), {**here, v: place}))
    return best, min(value, heap[0][0]) if heap else value, visited


def _pinned_memory(cut: PlacementCut, pins: Mapping[int, int]) -> np.ndarray:
    """float64 [2], bytes."""
    held = np.zeros(2)
    for v, place in pins.items():
        held[place] += cut.graph.memory[v]
    return held


def priced(
    cut: PlacementCut, pins: Mapping[int, int], *, enough: float = np.inf
) -> tuple[list[list[int]], float]:
    """Placements at the prices of memory tried, and the best lower bound of them.

    The bound is concave and piecewise linear in the price of the device that has too little; between a price
    at which it has too little and one at which it has enough, the next price is where their lines meet
    (Everett, Operations Research 11(3), 1963).

    Args:
        enough: a bound that suffices; the search for better prices ends there.

    Raises:
        ValueError: pins against each other.
    """
    parts, bound = cut.solve(pins)
    seen = [parts]
    excess = cut.memory(parts) - cut.limits
    device = int(np.argmax(excess))
    if cut.fits(parts):
        return seen, bound

    def at(price: float) -> tuple[float, float]:
        """Excess bytes of the placement at this price, and its bound, raised in passing."""
        nonlocal bound
        found, least = cut.solve(pins, (price, 0.0) if device == EDGE else (0.0, price))
        seen.append(found)
        bound = max(bound, least)
        return float((cut.memory(found) - cut.limits)[device]), least

    low, low_value, low_price = float(excess[device]), bound, 0.0
    high_price = max(bound, 1e-12) / max(float(cut.limits[device]), 1.0)
    for _ in range(ROUNDS):
        high, high_value = at(high_price)
        if high <= 0:
            break
        if bound >= enough:
            return seen, bound
        low, low_value, low_price = high, high_value, high_price
        high_price *= 4
    else:
        return seen, bound  # what must run on this device is more than its limit
    for _ in range(ROUNDS):
        # low_value + low (p - low_price) = high_value + high (p - high_price)
        meet = (high_value - low_value + low * low_price - high * high_price) / (low - high)
        line = low_value + low * (meet - low_price)
        excess_there, least = at(meet)
        if bound >= enough or least >= line - 1e-12 * abs(line):
            break
        if excess_there <= 0:
            high, high_value, high_price = excess_there, least, meet
        else:
            low, low_value, low_price = excess_there, least, meet
    return seen, bound


def between(seen: Sequence[Sequence[int]]) -> list[list[int]]:
    """Placements on the way from one to the next, node by node in the order.

    What is on the edge in both, with a prefix of what is on the edge in either: it needs no tensor to come
    back where the two do not.
    """
    found = []
    for one, other in itertools.pairwise(seen):
        differ = [u for u, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
        step = list(one)
        for u in differ:
            step[u] = CLOUD
        for u in differ:
            step[u] = EDGE
            found.append(list(step))
    return found


# -- Two devices, one of them with the inputs: the placement of least latency by a minimum cut ----------


def edge_cloud(
    graph: Graph,
    edge: CostedDevice,
    cloud: CostedDevice,
    link: Link,
    *,
    two_way: bool = False,
    pinned: Mapping[str, str] | None = None,
    visits: int = 50,
) -> Plan:
    """The placement of least latency for one input: sum of all compute and of all sending, upload included.

    Part 0 is the edge, which has the inputs, part 1 the cloud. A minimum s-t cut (DADS: Hu et al., INFOCOM
    2019; Neurosurgeon, Kang et al., ASPLOS 2017, is the case of a chain). A node v costs its time
    on the side it is on: arcs v -> t (edge time) and s -> v (cloud time). A tensor of u is sent once however
    many read it: u -> a with the time to send it, a -> v without limit for every reader v. Where the
    memory limits do not bind, the cut proves its placement optimal. Where they bind, memory is priced by a
    Lagrange multiplier, each value of which is again a minimum cut, and branch and bound pins nodes until no
    gap is left or its visits are spent.

    Args:
        two_way: False: the edge's nodes run first, then one message carries all that the cloud reads (a
            plan of two stages that is some topological order's prefix). True: tensors may come back too;
            every tensor is a message of its own.
        pinned: node name -> device name, where a node must run.
        visits: of the branch and bound, each a dozen minimum cuts (0.3 s at 555 nodes).

    Raises:
        ValueError: memory limits that nothing meets, an unknown node or device, pins against each other.
    """
    check_memory(graph, (edge, cloud))
    pins = _pins(graph, edge, cloud, pinned or {})
    cut = PlacementCut(graph, edge, cloud, link, two_way=two_way)
    message_ms = 0.0 if two_way else link.latency_ms  # of whoever uses the cloud at all

    def value_of(placement: Sequence[int]) -> float:
        return latency(graph, placement, edge, cloud, link, two_way=two_way)

    parts, bound = cut.solve(pins)
    found = [parts] if CLOUD in pins.values() else [parts, [EDGE] * len(graph)]
    if cut.fits(parts):
        best = min((p for p in found if cut.fits(p)), key=value_of)
        stays = value_of(found[-1]) if cut.fits(found[-1]) else np.inf
        value = value_of(best)
        return Plan(tuple(best), value, min(value, stays, bound + message_ms), "minimum cut")
    if not pins:
        with suppress(ValueError):  # no prefix fits, another placement may
            found.append(list(best_prefix(graph, edge, cloud, link).parts))
    chosen, bound, visited = within_limits(cut, pins, value_of, found, message_ms=message_ms, visits=visits)
    if chosen is None:
        met = "there is" if bound == np.inf else f"{visited} visits found"
        raise ValueError(
            f"{met} no placement that keeps the memory limits of {edge.name!r} "
            f"({edge.memory_limit:,.0f} bytes) and {cloud.name!r} ({cloud.memory_limit:,.0f} bytes); "
            f"it needs {graph.memory.sum():,.0f} bytes: raise a limit"
        )
    value = value_of(chosen)
    return Plan(tuple(chosen), value, min(value, bound), "minimum cuts, memory priced", visited)


def best_prefix(graph: Graph, edge: CostedDevice, cloud: CostedDevice, link: Link) -> Plan:
    """The best prefix of the given topological order on the edge, the rest in the cloud.

    Optimal among prefixes of this order; :func:`edge_cloud` looks at those of all orders.

    Raises:
        ValueError: no prefix keeps the memory limits.
    """
    return chain(graph, (edge, cloud), link, minimise="latency", empty=True)


def latency(
    graph: Graph,
    parts: Sequence[int] | np.ndarray,
    edge: CostedDevice,
    cloud: CostedDevice,
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


def _pins(graph: Graph, edge: CostedDevice, cloud: CostedDevice, pinned: Mapping[str, str]) -> dict[int, int]:
    places = {edge.name: EDGE, cloud.name: CLOUD}
    unknown = sorted(set(pinned.values()) - set(places))
    if unknown:
        raise ValueError(f"nodes are pinned to {unknown}, but the devices are {sorted(places)}")
    return {graph.position(node): places[name] for node, name in pinned.items()}
