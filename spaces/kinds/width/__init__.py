"""Coupled units as parallel branches whose partial sums add up: exact without training."""

from .parallel import Parallel, branches
from .regions import Region, find_regions

__all__ = ["Parallel", "Region", "branches", "find_regions"]
