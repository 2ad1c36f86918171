"""Which channels of a network must be removed together, found by following indices through its graph."""

from . import contraction, indexing, norm, pointwise, recurrent, reduction  # noqa: F401  (each registers its rules)
from .coupled import Coupling, Group, Member
from .groups import find_coupling
from .walk import Constant, Term

__all__ = ["Constant", "Coupling", "Group", "Member", "Term", "find_coupling"]
