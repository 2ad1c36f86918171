"""Early exits: samples that are classified with confidence leave before the end."""

from .cascade import Cascade, confidence
from .head import Head
from .places import ExitPlace, find_places
from .segments import divide

__all__ = ["Cascade", "Head", "ExitPlace", "confidence", "divide", "find_places"]
