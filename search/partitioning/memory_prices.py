"""Placements within memory limits: prices for memory, and branching where prices leave a gap."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .placement_cut import CLOUD, EDGE, PlacementCut
from .plan import SAME

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
