"""Which channels of a network must be removed together, found by following indices through its graph."""

from . import contraction, indexing, norm, pointwise, reduction  # noqa: F401  (each registers its rules)
from .walk import Constant, Fork, Term, Walk

__all__ = ["Constant", "Fork", "Term", "Walk"]
