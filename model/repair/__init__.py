"""Repair without training: removed inputs of a layer are expressed by the kept ones, in closed form."""

from .fold import fold
from .gram import Calibration, gather
from .least_squares import mixing
from .sequential import Sequential, sequential

__all__ = ["Calibration", "Sequential", "fold", "gather", "mixing", "sequential"]
