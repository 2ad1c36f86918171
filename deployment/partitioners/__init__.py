"""Partitioners of graphs: exact where that is possible, else with a gap. Needs only numpy to import."""

from ...devices import Link
from .chain import StageCosts, chain, greedy_merge, greedy_split, stage_costs
from .edge_cloud import best_prefix, edge_cloud
from .graph import CostedDevice, Graph, Node, Plan, Tensor, traffic
from .least_traffic import forward_parts, in_order, least_traffic

__all__ = [
    "Graph",
    "CostedDevice",
    "Link",
    "Node",
    "Plan",
    "StageCosts",
    "Tensor",
    "best_prefix",
    "chain",
    "edge_cloud",
    "forward_parts",
    "greedy_merge",
    "greedy_split",
    "in_order",
    "least_traffic",
    "stage_costs",
    "traffic",
]
