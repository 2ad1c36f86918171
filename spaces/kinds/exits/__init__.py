"""Early exits: samples that are classified with confidence leave before the end."""

from .cascade import Cascade, confidence
from .head import Head
from .places import Place, find_places
from .segments import divide

__all__ = ["Cascade", "Head", "Place", "confidence", "divide", "find_places"]
