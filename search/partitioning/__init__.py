"""Partitioners of graphs: exact where that is possible, else with a gap. Needs only numpy to import."""

from .chain import chain
from .devices import Device, Link
from .edge_cloud import best_prefix, edge_cloud
from .graph import Graph, Node, Tensor
from .greedy import greedy_merge, greedy_split
from .least_traffic import least_traffic
from .plan import Plan, traffic
from .tree import LossTree, loss_tree

__all__ = [
    "Device",
    "Graph",
    "Link",
    "LossTree",
    "Node",
    "Plan",
    "Tensor",
    "best_prefix",
    "chain",
    "edge_cloud",
    "greedy_merge",
    "greedy_split",
    "least_traffic",
    "loss_tree",
    "traffic",
]
