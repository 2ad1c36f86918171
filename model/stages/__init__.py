"""Cutting a network along its depth into stages that are modules of their own."""

from .build import Port, Stage, run_stages, split, verify
from .cuts import Cut, after_modules, balanced, by_balance, by_bytes, efficient, find_cuts, outside_modules
from .functional import CutError, Functional, functionalise

__all__ = [
    "Cut",
    "CutError",
    "Functional",
    "Port",
    "Stage",
    "after_modules",
    "balanced",
    "by_balance",
    "by_bytes",
    "efficient",
    "find_cuts",
    "functionalise",
    "outside_modules",
    "run_stages",
    "split",
    "verify",
]
