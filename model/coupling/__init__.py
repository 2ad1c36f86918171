"""Coupling: channels that must be removed together, found by following indices through the graph."""

from . import contraction, indexing, pointwise, recurrent, reduction  # noqa: F401  (each registers its rules)
from .groups import Coupling, Group, Member, find_coupling
from .walk import Constant, Term

__all__ = ["Constant", "Coupling", "Group", "Member", "Term", "find_coupling"]
