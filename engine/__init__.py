"""Engine: a sweep from its settings to its run, and runs that are read again. Needs no torch to import.

Names are loaded on first use: the command line reads the table of settings alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .launch import Interrupted, sweep
    from .run import Run, load
    from .settings import RunError

_HOME = {"Run": ".run", "load": ".run", "RunError": ".settings", "Interrupted": ".launch", "sweep": ".launch"}

__all__ = ["Interrupted", "Run", "RunError", "load", "sweep"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
