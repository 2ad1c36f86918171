"""Partitioners of graphs: exact where that is possible, else with a gap. Needs only numpy to import."""

from ...spaces.devices import Link
from .chain import chain
from .edge_cloud import best_prefix, edge_cloud
from .forward import forward_parts, in_order
from .graph import Graph, Node, Tensor
from .greedy import greedy_merge, greedy_split
from .hosts import Host
from .least_traffic import least_traffic
from .plan import Plan, traffic
from .tree import LossTree, loss_tree
from .value import StageCosts, stage_costs

__all__ = [
    "Graph",
    "Host",
    "Link",
    "LossTree",
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
    "loss_tree",
    "stage_costs",
    "traffic",
]
