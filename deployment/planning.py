"""From a measured network and a question to cuts, with what is proven about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..model.stages import Cut, CutError, after_modules, outside_modules
from .network import Network
from .partitioners import (
    CostedDevice,
    Graph,
    Plan,
    StageCosts,
    chain,
    edge_cloud,
    in_order,
    least_traffic,
    stage_costs,
)
from .partitioners.chain import greedy_merge, greedy_split
from .setting import PartitionSettings

IMBALANCES = (0.1, 0.5)  # at which methods that know no times are asked


@dataclass(frozen=True)
class Layout:
    """Stages of a network, planned and not built yet."""

    network: Network  # its calls perhaps in another order
    cuts: tuple[Cut, ...]  # between the stages
    on: tuple[int, ...]  # device of each stage, rising
    costs: StageCosts  # modelled, of every device
    value: float  # modelled, in ms or bytes
    bound: float  # that nothing in ``scope`` is below
    method: str
    scope: str  # what the bound is about

    @property
    def ends(self) -> list[int]:
        """Calls up to the end of every stage."""
        return [*(cut.index + 1 for cut in self.cuts), len(self.network.calls)]

    @property
    def plan(self) -> Plan:
        """Stage of every call of the network."""
        stage = np.searchsorted(self.ends, np.arange(len(self.network.calls)), side="right")
        return Plan(tuple(stage.tolist()), self.value, min(self.bound, self.value), self.method)


def plan_layout(network: Network, asked: PartitionSettings) -> Layout:
    """The stages that the asked method finds.

    Raises:
        CutError: no legal cut, too few, or none where one is forced.
        ValueError: memory limits that nothing meets, with what is missing.
    """
    cuts = allowed_cuts(network, asked)
    if asked.method in ("exact", "greedy-merge", "greedy-split"):
        return _in_given_order(network, cuts, asked)
    if asked.forced or asked.forbidden:
        raise ValueError(f"{asked.method!r} knows no forced or forbidden cuts; take exact or a greedy method")
    return _in_any_order(network, asked)


def allowed_cuts(network: Network, asked: PartitionSettings) -> list[Cut]:
    """The legal cuts outside the forbidden modules.

    Raises:
        CutError: fewer than the parts need.
    """
    cuts, needed = list(network.cuts), len(asked.devices) - 1
    if asked.forbidden:
        cuts = outside_modules(cuts, asked.forbidden)
    if not asked.two and len(cuts) < needed:
        what = "has no legal cut" if not network.cuts else f"has only {len(cuts)} legal cuts"
        if len(cuts) < len(network.cuts):
            what += f" outside {', '.join(asked.forbidden)}"
        raise CutError(
            f"{network.name} {what}, but {needed + 1} parts need {needed}; ask for fewer parts"
            + (", or forbid fewer modules" if asked.forbidden else "")
        )
    return cuts


def costed_devices(
    network: Network, asked: PartitionSettings, graph: Graph, starts: Sequence[int], *, spare: float = 0.0
) -> list[CostedDevice]:
    """The devices with the times of a graph's nodes.

    Args:
        starts: position of the first call of every node.
        spare: bytes of every memory limit that are kept free.
    """
    out = []
    for device in asked.devices:
        each = np.add.reduceat(network.milliseconds(device), np.asarray(starts))
        profile = {node.name: float(ms) for node, ms in zip(graph.nodes, each, strict=True)}
        speed = float(graph.work.sum() / max(each.sum(), 1e-12)) or 1.0
        out.append(CostedDevice(device.name, speed, max(device.memory_limit_mb * 1e6 - spare, 0.0), profile))
    return out


def chain_of(
    network: Network, cuts: Sequence[Cut], asked: PartitionSettings
) -> tuple[Graph, list[CostedDevice]]:
    """The nodes between cuts, and the devices."""
    graph = network.chain(cuts, input_bytes=asked.input_bytes)
    return graph, costed_devices(network, asked, graph, [0, *(cut.index + 1 for cut in cuts)])


def _in_given_order(network: Network, cuts: list[Cut], asked: PartitionSettings) -> Layout:
    graph, devices = chain_of(network, cuts, asked)
    best, most = _optimum(graph, devices, asked, [cut.name for cut in after_modules(cuts, asked.forced)])
    parts, method, scope = best.parts, best.method, "stages in this order of the calls"
    if asked.method != "exact":
        parts, method = _greedy(graph, devices, asked, most), asked.method
    costs = stage_costs(graph, parts, devices, asked.links)
    value = costs.value(asked.minimise, blocking=False)
    chosen = tuple(cut for cut, a, b in zip(cuts, parts, parts[1:], strict=False) if a != b)
    used = tuple(sorted(set(parts)))
    found = Layout(network, chosen, used, costs, value, min(best.bound, value), method, scope)
    if (
        asked.method != "exact"
        or asked.minimise != "latency"
        or not asked.two
        or asked.forced
        or asked.forbidden
    ):
        return found
    cut = minimum_cut(network, asked)
    if cut is None or cut.bound == 0.0:
        return found
    if cut.value >= found.value * (1 - 1e-6):
        return replace(found, bound=min(cut.bound, found.value), scope=cut.scope)
    return cut


def _optimum(
    graph: Graph, devices: Sequence[CostedDevice], asked: PartitionSettings, forced: Sequence[str]
) -> tuple[Plan, float]:
    """By dynamic programming, of (nearly) equal ones the one that sends least; what a stage may take."""
    # A device may be left out where that answers sooner; for the other goals each has a stage.
    empty = asked.minimise == "latency" and not asked.alike

    def solve(minimise: str, most_ms: float = np.inf) -> Plan:
        return chain(
            graph,
            devices,
            asked.links,
            minimise=minimise,
            blocking=False,
            empty=empty,
            forced=forced,
            most_ms=most_ms,
        )

    if asked.minimise == "latency":
        return solve("latency"), np.inf
    fastest = solve("throughput")
    if asked.minimise == "throughput":
        parts = solve("traffic", fastest.value * (1 + asked.slack)).parts
        return replace(fastest, parts=parts), np.inf
    most = fastest.value * (1 + asked.imbalance)
    return solve("traffic", most), most


def _greedy(
    graph: Graph, devices: Sequence[CostedDevice], asked: PartitionSettings, most_ms: float
) -> tuple[int, ...]:
    """The walk's partition of the right size; on the way all devices are the mean one, or the slowest."""
    among = np.max if asked.minimise == "traffic" else np.mean
    times = among([device.milliseconds(graph) for device in devices], axis=0)
    ms_per_byte = float(np.mean([link.ms_per_byte for link in asked.links])) if asked.links else 0.0

    def objective(parts: np.ndarray) -> float:
        if parts[-1] + 1 == len(devices):
            costs = stage_costs(graph, parts, devices, asked.links)
            if costs.each(blocking=False).max() > most_ms * (1 + 1e-9):
                return float(np.inf)
            return costs.value(asked.minimise, blocking=False)
        work, sent = np.bincount(parts, weights=times), graph.crossing[np.flatnonzero(np.diff(parts)) + 1]
        if asked.minimise == "throughput":  # squares: the largest alone does not tell small parts apart
            return float((work**2).sum() + ((sent * ms_per_byte) ** 2).sum())
        if asked.minimise == "latency":
            return float(sent.sum())
        excess = np.maximum(work - most_ms, 0.0).sum() / max(times.sum(), 1e-12)
        return float(sent.sum() + excess * 1e4 * graph.crossing.max())  # balance first, then bytes

    walk = greedy_merge if asked.method == "greedy-merge" else greedy_split
    last = walk(graph, objective, parts=len(devices))[-1]
    if not np.isfinite(last.value):
        raise ValueError(
            f"{asked.method} found no stages within the imbalance of {asked.imbalance:g}, though there are "
            "some; take the method exact, or allow more imbalance"
        )
    return last.parts


def _in_any_order(network: Network, asked: PartitionSettings) -> Layout:
    """Clusters of calls made stages; for other goals than traffic, the best of several balances."""
    graph = network.dag
    devices = costed_devices(
        network, asked, graph, [group[0] for group in network.groups], spare=graph.peaks.max()
    )
    balances: tuple[float, ...] = IMBALANCES
    if asked.minimise == "traffic":  # what a stage may take is the same for all methods
        _, most = _optimum(*chain_of(network, network.cuts, asked), asked, ())
        speed = sum(device.speed for device in devices)
        balances = (max(most * speed / max(float(graph.work.sum()), 1e-12) - 1, 0.0),)
    found: list[Layout] = []
    for imbalance in balances:
        try:
            plan = least_traffic(
                graph,
                devices,
                imbalance=imbalance,
                ordered=True,
                method=asked.method,
                visits=2000,
                seed=asked.seed,
            )
            other, cuts = network.reordered(plan.parts)
        except ValueError as error:  # CutError too: no legal cut between two of the parts
            failure = error
            continue
        row, parts = in_order(graph, plan.parts)
        costs = stage_costs(row, parts, devices, asked.links)
        value = costs.value(asked.minimise, blocking=False)
        used = tuple(sorted(set(plan.parts)))
        bound = plan.bound if asked.minimise == "traffic" else _least(graph, devices, asked)
        scope = "stages in any order"
        found.append(Layout(other, tuple(cuts), used, costs, value, min(bound, value), plan.method, scope))
    if not found:
        raise failure
    return min(found, key=lambda layout: layout.value)


def _least(graph: Graph, devices: Sequence[CostedDevice], asked: PartitionSettings) -> float:
    """What no stages in any order are below."""
    times = np.stack([device.milliseconds(graph) for device in devices])
    if asked.minimise == "latency":
        return float(times.min(axis=0).sum())
    return max(float(times.min(axis=0).max()), _divisible(times))


def _divisible(times: np.ndarray) -> float:
    """The slowest stage where nodes may be divided at will between devices, float64 [devices, nodes]."""
    from scipy.optimize import linprog

    k, n = times.shape
    # Variables: share of node v on device d, then the makespan.
    each = np.zeros((k, k * n + 1))
    for d in range(k):
        each[d, d * n : (d + 1) * n] = times[d]
    each[:, -1] = -1.0
    whole = np.concatenate([np.tile(np.eye(n), k), np.zeros((n, 1))], axis=1)
    solved = linprog(
        np.append(np.zeros(k * n), 1.0), A_ub=each, b_ub=np.zeros(k), A_eq=whole, b_eq=np.ones(n)
    )
    return float(solved.fun) * (1 - 1e-9) if solved.success else 0.0


def minimum_cut(network: Network, asked: PartitionSettings) -> Layout | None:
    """The placement of least latency on two devices; ``None``: there is none that can be built."""
    graph = network.dag_with(asked.input_bytes)
    # Activations are counted as if the largest were everywhere: what is found keeps the limits.
    spare = float(graph.peaks.max()) if any(np.isfinite(d.memory_limit_mb) for d in asked.devices) else 0.0
    edge, cloud = costed_devices(network, asked, graph, [group[0] for group in network.groups], spare=spare)
    try:
        plan = edge_cloud(graph, edge, cloud, asked.links[0])
        other, cuts = network.reordered(plan.parts)
    except ValueError:
        return None
    row, parts = in_order(graph, plan.parts)
    costs = stage_costs(row, parts, (edge, cloud), asked.links)
    used = tuple(sorted(set(plan.parts)))
    bound = plan.bound if not spare else 0.0
    return Layout(other, tuple(cuts), used, costs, plan.value, bound, plan.method, "placements")
