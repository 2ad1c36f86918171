"""Branches: a shared trunk, then parts for some of the classes each that exchange nothing (SplitNet)."""

from .assignment import assign, cluster_classes, energies, retained
from .module import Branches

__all__ = ["Branches", "assign", "cluster_classes", "energies", "retained"]
