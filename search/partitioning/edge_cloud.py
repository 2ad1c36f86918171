"""Two devices, one of them with the inputs: the placement of least latency by a minimum cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np

from ...spaces.devices import Link
from .chain import chain
from .graph import Graph
from .hosts import Host, check_memory
from .memory_prices import within_limits
from .placement_cut import CLOUD, EDGE, PlacementCut
from .plan import Plan


def edge_cloud(
    graph: Graph,
    edge: Host,
    cloud: Host,
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


def best_prefix(graph: Graph, edge: Host, cloud: Host, link: Link) -> Plan:
    """The best prefix of the given topological order on the edge, the rest in the cloud.

    Optimal among prefixes of this order; :func:`edge_cloud` looks at those of all orders.

    Raises:
        ValueError: no prefix keeps the memory limits.
    """
    return chain(graph, (edge, cloud), link, minimise="latency", empty=True)


def latency(
    graph: Graph,
    parts: Sequence[int] | np.ndarray,
    edge: Host,
    cloud: Host,
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


def _pins(graph: Graph, edge: Host, cloud: Host, pinned: Mapping[str, str]) -> dict[int, int]:
    places = {edge.name: EDGE, cloud.name: CLOUD}
    unknown = sorted(set(pinned.values()) - set(places))
    if unknown:
        raise ValueError(f"nodes are pinned to {unknown}, but the devices are {sorted(places)}")
    return {graph.position(node): places[name] for node, name in pinned.items()}
