"""Search algorithms, the loop that drives them, and the run that comes of it. Needs no torch to import."""

from .base import Searcher
from .opening import load
from .registry import known_searchers, searcher
from .run import Run
from .settings import RunError
from .sweep import Interrupted, sweep

__all__ = ["Interrupted", "Run", "RunError", "Searcher", "known_searchers", "load", "searcher", "sweep"]
