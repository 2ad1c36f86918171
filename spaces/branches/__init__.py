"""Branches: a shared trunk, then parts for some of the classes each that exchange nothing (SplitNet)."""

from .assignment import assign, energies, retained
from .choice import Branch, branching_choice, find_tail
from .classes import cluster_classes
from .module import Branches

__all__ = [
    "Branch",
    "Branches",
    "assign",
    "branching_choice",
    "cluster_classes",
    "energies",
    "find_tail",
    "retained",
]
