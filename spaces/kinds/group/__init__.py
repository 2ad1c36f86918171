"""Dense layers as groups of channels that do not mix (FLGC, Wang et al. 2019, arXiv 1904.00346)."""

from ....model.operators.assignment import Assignment, assign, balanced_sizes, kept_share

__all__ = ["Assignment", "assign", "balanced_sizes", "kept_share"]
