"""Alternatives to a plan: other placements, and other figures of devices and links."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .network import Network
from .partitioners import StageCosts, best_prefix, stage_costs
from .planning import Layout, chain_of, minimum_cut, plan_layout
from .setting import PartitionSettings


@dataclass(frozen=True, slots=True)
class Placement:
    """One way to put a network on two devices, modelled."""

    name: str
    first_ms: float  # computed on the first device
    second_ms: float
    send_ms: float  # upload of the inputs included where they are sent
    sent_kb: float
    bound_ms: float | None = None  # that no placement is below; None: nothing is proven

    @property
    def latency_ms(self) -> float:
        return self.first_ms + self.second_ms + self.send_ms


def placements(network: Network, asked: PartitionSettings) -> list[Placement]:
    """All on the first device, all on the second, the best prefix of the calls' order, the minimum cut."""
    graph, devices = chain_of(network, network.cuts, asked)
    ways = {
        f"all on {asked.devices[0].name}": [0] * len(graph),
        f"all on {asked.devices[1].name}": [1] * len(graph),
        "best prefix": list(best_prefix(graph, devices[0], devices[1], asked.links[0]).parts),
    }
    out = []
    for name, parts in ways.items():
        costs = stage_costs(graph, parts, devices, asked.links)
        out.append(_placement(name, costs))
    cut = minimum_cut(network, asked)
    if cut is not None:
        out.append(_placement("minimum cut", cut.costs, cut.bound))
    return out


def _placement(name: str, costs: StageCosts, bound: float | None = None) -> Placement:
    return Placement(
        name,
        float(costs.compute[0]),
        float(costs.compute[1]),
        float(costs.transfer.sum() + costs.link_ms.sum()),
        float(costs.sent.sum()) / 1000,
        bound,
    )


# -- What a plan is worth when devices and links are other than was thought -----------------------------

CHANGES = (0.5, 0.75, 0.9, 1.1, 1.25, 1.5)  # of one figure


@dataclass(frozen=True, slots=True)
class Scene:
    """One figure other than given, nothing else."""

    figure: str  # "speed of edge", "bandwidth of edge - server"
    factor: float
    value: float  # of the plan as it is, in ms or bytes
    best: float  # of the plan that would be best then

    @property
    def regret(self) -> float:
        """Share by which the plan is worse than the best one, 0 or more."""
        return max(self.value / self.best - 1, 0.0) if self.best else 0.0


def robustness(
    layout: Layout, asked: PartitionSettings, *, changes: Sequence[float] = CHANGES
) -> list[Scene]:
    """The plan's value, and that of the best plan, with every speed and bandwidth changed alone.

    Modelled: by the measured times of calls.
    """
    base = plan_layout(layout.network, replace(asked, method="exact"))
    scale = layout.value / base.value if base.value else 1.0  # what measuring stages has taught
    out = []
    for figure, factor, other in _scenes(asked, changes):
        value = _changed(layout, asked, other).value(asked.minimise, blocking=False)
        best = plan_layout(layout.network, replace(other, method="exact")).value * scale
        out.append(Scene(figure, factor, value, min(best, value)))
    return out


def _changed(layout: Layout, asked: PartitionSettings, other: PartitionSettings) -> StageCosts:
    costs = layout.costs
    speeds = [b.speed / a.speed for a, b in zip(asked.devices, other.devices, strict=True)]
    return replace(
        costs,
        compute=costs.compute / speeds,
        transfer=costs.sent * [link.ms_per_byte for link in other.links],
        link_ms=costs.link_ms,
    )


def _scenes(
    asked: PartitionSettings, changes: Sequence[float]
) -> Iterator[tuple[str, float, PartitionSettings]]:
    for i, device in enumerate(asked.devices):
        for factor in changes:
            devices = list(asked.devices)
            devices[i] = replace(device, speed=device.speed * factor)
            yield f"speed of {device.name}", factor, replace(asked, devices=tuple(devices))
    for i, link in enumerate(asked.links):
        if not link.ms_per_byte:
            continue
        for factor in changes:
            links = list(asked.links)
            links[i] = replace(link, bandwidth_mbps=link.bandwidth_mbps * factor)
            ends = f"{asked.devices[i].name} - {asked.devices[i + 1].name}"
            yield f"bandwidth of {ends}", factor, replace(asked, links=tuple(links))
