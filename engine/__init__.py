"""Engine: a sweep from its settings to its run, and runs that are read again. Needs no torch to import."""

from .run import Run, load
from .settings import RunError
from .sweep import Interrupted, sweep

__all__ = ["Interrupted", "Run", "RunError", "load", "sweep"]
