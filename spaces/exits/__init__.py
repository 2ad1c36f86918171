"""Early exits: a network divided into a cascade that easy samples leave before its end."""

from .cascade import Cascade, confidence
from .choice import Exit, exit_choice
from .head import Head
from .places import Place, find_places
from .segments import divide

__all__ = ["Cascade", "Exit", "Head", "Place", "confidence", "divide", "exit_choice", "find_places"]
