"""Weights set to zero in place: one by one, by row, column or kernel; torch's own masks read and written."""

from .program import GRANULARITIES, Sparsify, make_masks
from .torch_masks import apply_masks, read_masks, semi_structured, write_masks

__all__ = [
    "GRANULARITIES",
    "Sparsify",
    "apply_masks",
    "make_masks",
    "read_masks",
    "semi_structured",
    "write_masks",
]
