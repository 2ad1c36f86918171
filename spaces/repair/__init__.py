"""Repair without training: removed inputs of a layer are expressed by the kept ones, in closed form."""

from .fold import fold
from .gram import Calibration, gather
from .least_squares import mixing

__all__ = ["Calibration", "fold", "gather", "mixing"]
