"""Consecutive stages on devices in a given order: optimal by dynamic programming, and two greedy walks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from ...devices import Link
from .graph import CostedDevice, Graph, Plan, check_memory, parts_of, per_part

ROUNDING = 1e-12  # of a limit
BLOCK = 512  # rows of the table of stages that are in memory at a time
GOALS = ("throughput", "latency", "traffic")


def chain(
    graph: Graph,
    devices: Sequence[CostedDevice],
    links: Sequence[Link] | Link | None = None,
    *,
    minimise: str = "throughput",
    blocking: bool = True,
    empty: bool = False,
    forced: Collection[str] = (),
    forbidden: Collection[str] = (),
    most_ms: float = np.inf,
) -> Plan:
    """The best cut of the topological order into one stage for each device, in their order.

    A stage passes on all that later stages read, so that what skips a stage travels through it. The inputs
    are on the first device. With f_k(j) the best value of the first j nodes on the first k devices and c_k
    the cost of a stage, f_k(j) = min_i max(f_{k-1}(i), c_k(i, j)), or a sum in place of the maximum (the
    problem: Bokhari, IEEE Trans. Computers 37(1), 1988). O(devices x nodes^2) time.

    Args:
        links: from each device to the next; one for all; None: sending is free.
        minimise: "throughput": ms of the slowest stage (1000 / value is the rate per second); "latency": ms
            through all stages and links; "traffic": bytes over all links.
        blocking: a stage's time is compute + latency + transfer; if not, another thread sends while the
            next input is computed: max(compute, transfer). The latency of one input is the same in both.
        empty: a device may be left without nodes; then it only passes on.
        forced: names of nodes after which a stage must end.
        forbidden: names of nodes after which none may end.
        most_ms: what a stage may take, as counted for the throughput: with "traffic", the balance.

    Raises:
        ValueError: no partition is possible, with what is missing; an unknown name or goal.
    """
    if minimise not in GOALS:
        raise ValueError(f"chain minimises one of {', '.join(GOALS)}, got {minimise!r}")
    check_memory(graph, devices)
    between = _links(links, len(devices))
    at, must = _boundaries(graph, len(devices), forced, forbidden, empty)
    crossing = graph.crossing[at]
    done = [_prefix(device.milliseconds(graph))[at] for device in devices]
    held = _prefix(graph.memory)[at]
    # Entry i: the largest peak between boundaries i and i + 1; none begins at the last.
    peaks = np.append(np.maximum.reduceat(graph.peaks, at[:-1]), 0.0)
    last = len(devices) - 1

    def allowed(rows: slice) -> np.ndarray:
        """Whether a stage may reach from one boundary (column) to another (row)."""
        ends = np.arange(len(at))[rows, None]
        starts = np.arange(len(at))[None, :]
        # No forced boundary strictly inside: must counts those before each boundary, and itself.
        clear = must[np.maximum(ends - 1, 0)] <= must[starts]
        return (starts < ends) & clear | ((starts == ends) & empty)

    def memory(rows: slice) -> np.ndarray:
        """float64 [rows, boundaries]: bytes of the stage between two boundaries."""
        inside = np.arange(len(at))[None, :] < np.arange(len(at))[rows, None]
        largest = np.maximum.accumulate(np.where(inside, peaks, 0.0)[:, ::-1], axis=1)[:, ::-1]
        return held[rows, None] - held[None, :] + largest

    def cost(k: int, rows: slice) -> np.ndarray:
        """float64 [rows, boundaries]: of stage k; inf where it is impossible."""
        sends = (at[rows] < len(graph)) & (k < last)
        size = np.where(sends, crossing[rows], 0.0)
        latency = np.where(sends, between[k].latency_ms, 0.0) if k < last else np.zeros(len(size))
        transfer = size * between[k].ms_per_byte if k < last else latency
        compute = done[k][rows, None] - done[k][None, :]
        through = compute + (latency + transfer)[:, None]
        slowest = through if blocking else np.maximum(compute, transfer[:, None])
        if minimise == "traffic":
            value = np.broadcast_to(size[:, None], compute.shape)
        else:
            value = through if minimise == "latency" else slowest
        fits = memory(rows) <= devices[k].memory_limit * (1 + ROUNDING)
        fast = slowest <= most_ms * (1 + ROUNDING)
        return np.where(fits & fast & allowed(rows), value, np.inf)

    combine = np.maximum if minimise == "throughput" else np.add
    value, ends = best_intervals(len(at), len(devices), cost, combine)
    if not np.isfinite(value):

        def excess(k: int, rows: slice) -> np.ndarray:
            return np.where(allowed(rows), memory(rows) - devices[k].memory_limit, np.inf)

        missing, _ = best_intervals(len(at), len(devices), excess, np.maximum)
        if missing <= 0:
            raise ValueError(
                f"no cut into {len(devices)} stages keeps the memory limits and takes at most {most_ms:.4g} "
                "ms a stage; allow more"
            )
        raise ValueError(
            f"no cut into {len(devices)} consecutive stages keeps the memory limits: at best a device lacks "
            f"{missing:,.0f} bytes; raise the limits by that much, add a device, or reorder them"
        )
    parts = parts_of(at[ends[:-1]], len(graph))
    return Plan(tuple(parts.tolist()), value, value, f"dynamic programming ({minimise})")


def best_intervals(
    boundaries: int, stages: int, cost: Callable[[int, slice], np.ndarray], combine: np.ufunc
) -> tuple[float, list[int]]:
    """Least combined cost from the first to the last boundary, and where each stage ends."""
    best = np.full(boundaries, np.inf)
    best[0] = -np.inf if combine is np.maximum else 0.0
    begins = np.zeros((stages, boundaries), dtype=np.int64)
    for k in range(stages):
        following = np.empty(boundaries)
        for low in range(0, boundaries, BLOCK):
            rows = slice(low, min(low + BLOCK, boundaries))
            total = combine(best[None, :], cost(k, rows))
            begins[k, rows] = np.argmin(total, axis=1)
            following[rows] = np.take_along_axis(total, begins[k, rows, None], axis=1)[:, 0]
        best = following
    ends = [boundaries - 1]
    for k in range(stages - 1, 0, -1):
        ends.append(int(begins[k, ends[-1]]))
    return float(best[-1]), ends[::-1]


def _prefix(figures: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(figures)])


def _links(links: Sequence[Link] | Link | None, devices: int) -> list[Link]:
    if links is None or isinstance(links, Link):
        return [links or Link()] * (devices - 1)
    if len(links) != devices - 1:
        raise ValueError(
            f"{devices} devices in a row have {devices - 1} links between them, got {len(links)}; give one "
            "for each, or a single Link for all"
        )
    return list(links)


def _boundaries(
    graph: Graph, stages: int, forced: Collection[str], forbidden: Collection[str], empty: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Where stages may end, int64 rising from 0 to the number of nodes; how many up to each are forced."""
    both = set(forced) & set(forbidden)
    if both:
        raise ValueError(f"a stage cannot both have to and not be allowed to end after {sorted(both)}")
    ends = {graph.position(name) + 1 for name in forced} - {len(graph)}
    never = {graph.position(name) + 1 for name in forbidden} - {len(graph)}
    if len(ends) > stages - 1:
        raise ValueError(f"{len(ends)} forced cuts make {len(ends) + 1} stages, but {stages} are asked for")
    at = np.array([i for i in range(len(graph) + 1) if i not in never], dtype=np.int64)
    if stages > len(at) - 1 and not empty:
        raise ValueError(
            f"{stages} stages need {stages - 1} cuts, but this network of {len(graph)} nodes has only "
            f"{len(at) - 2} places that may be cut; ask for fewer parts or forbid fewer cuts"
        )
    return at, np.cumsum(np.isin(at, list(ends)))


# -- What consecutive stages cost, as :func:`chain` counts it -------------------------------------------


@dataclass(frozen=True)
class StageCosts:
    """Figures of K stages."""

    compute: np.ndarray  # float64 [K], ms
    sent: np.ndarray  # float64 [K - 1], bytes from each stage to the next
    transfer: np.ndarray  # float64 [K - 1], ms that these keep the link busy
    link_ms: np.ndarray  # float64 [K - 1], latency of the links, 0 where nothing is sent

    def value(self, minimise: str, *, blocking: bool) -> float:
        """Of a goal of :func:`chain`, in its unit."""
        if minimise == "traffic":
            return float(self.sent.sum())
        if minimise == "latency":
            return float(self.compute.sum() + self.transfer.sum() + self.link_ms.sum())
        return float(self.each(blocking=blocking).max())

    def each(self, *, blocking: bool) -> np.ndarray:
        """float64 [K]: ms between two inputs that each stage can take."""
        transfer, latency = np.append(self.transfer, 0.0), np.append(self.link_ms, 0.0)
        return self.compute + transfer + latency if blocking else np.maximum(self.compute, transfer)


def stage_costs(
    graph: Graph, parts: Sequence[int] | np.ndarray, devices: Sequence[CostedDevice], links: Sequence[Link]
) -> StageCosts:
    """Costs of the stages of a plan on devices in their order.

    Args:
        parts: [nodes], rising; a stage may be empty.
        links: from each device to the next.
    """
    on, count = np.asarray(parts, dtype=np.int64), len(devices)
    compute = np.array(
        [per_part(device.milliseconds(graph), on, count)[k] for k, device in enumerate(devices)]
    )
    ends = np.searchsorted(on, np.arange(1, count))
    sent = graph.crossing[ends]
    used = ends < len(graph)
    transfer = np.array([b * link.ms_per_byte for b, link in zip(sent, links, strict=True)])
    latency = np.array([link.latency_ms * go for go, link in zip(used, links, strict=True)])
    return StageCosts(compute, sent, transfer, latency)


# -- Greedy merge and greedy split of intervals, by any objective ---------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """One partition of a greedy walk."""

    parts: tuple[int, ...]  # [nodes], rising by at most 1 from node to node
    value: float  # of the objective
    at: str | None  # node after which the cut was removed or added; None: where the walk began

    @property
    def count(self) -> int:
        """Number of parts."""
        return self.parts[-1] + 1


Objective = Callable[[np.ndarray], float]  # of parts, int64 [nodes]; to minimise; inf where impossible


def greedy_merge(
    graph: Graph, objective: Objective, *, parts: int = 1, forbidden: Collection[str] = ()
) -> list[Step]:
    """From every node alone, merge the two adjacent parts that leave the least objective, and again.

    The walk goes on when the objective gets worse, so that the caller sees every number of parts and takes
    what he likes: ``min(walk, key=lambda step: step.value)``. Greedy is not optimal. O(cuts^2) evaluations.

    Args:
        objective: of the parts as a whole; what it costs to have many parts has to be in it.
        parts: where to stop.
        forbidden: names of nodes after which there is never a cut.

    Returns:
        The partitions met, in order.

    Raises:
        ValueError: fewer than one part, or more than the cuts allow.
    """
    places = _places(graph, parts, forbidden)
    return _walk(graph, objective, places, places, parts)


def greedy_split(
    graph: Graph, objective: Objective, *, parts: int, forbidden: Collection[str] = ()
) -> list[Step]:
    """From one part, add the cut that leaves the least objective, and again; else as :func:`greedy_merge`."""
    return _walk(graph, objective, _places(graph, parts, forbidden), [], parts)


def _walk(graph: Graph, objective: Objective, places: list[int], cuts: list[int], parts: int) -> list[Step]:
    cuts = list(cuts)
    steps = [_step(graph, objective, cuts, None)]
    while len(cuts) != parts - 1:
        if len(cuts) >= parts:
            flips = [(at, [cut for cut in cuts if cut != at]) for at in cuts]
        else:
            flips = [(at, sorted([*cuts, at])) for at in places if at not in cuts]
        tried = [(_step(graph, objective, flipped, at), flipped) for at, flipped in flips]
        best, cuts = min(tried, key=lambda item: item[0].value)
        steps.append(best)
    return steps


def _step(graph: Graph, objective: Objective, cuts: list[int], at: int | None) -> Step:
    parts = parts_of(cuts, len(graph))
    name = None if at is None else graph.nodes[at - 1].name
    return Step(tuple(parts.tolist()), float(objective(parts)), name)


def _places(graph: Graph, parts: int, forbidden: Collection[str]) -> list[int]:
    never = {graph.position(name) + 1 for name in forbidden}
    places = [at for at in range(1, len(graph)) if at not in never]
    if not 1 <= parts <= len(places) + 1:
        raise ValueError(
            f"this network of {len(graph)} nodes can be cut at {len(places)} places, so that it has 1 to "
            f"{len(places) + 1} parts; asked for {parts}"
        )
    return places
