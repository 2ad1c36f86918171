"""Two devices: what other placements would take."""

from __future__ import annotations

from dataclasses import dataclass

from ..partitioning import StageCosts, best_prefix, stage_costs
from .network import Network
from .planning import chain_of, minimum_cut
from .setting import Setting


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


def placements(network: Network, asked: Setting) -> list[Placement]:
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
        float(costs.transfer.sum() + costs.delay.sum()),
        float(costs.sent.sum()) / 1000,
        bound,
    )
