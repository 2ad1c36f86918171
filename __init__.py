"""netcarve: search what a trained PyTorch network can become.

Names are resolved on first use (PEP 562), so that ``import netcarve`` and ``netcarve --help`` are instant.
They are absolute because pytest may import this file as a plain module, outside its package.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netcarve.evaluators import Evaluator, Task
    from netcarve.results import Front, Ledger, Limit, Objective, Trial
    from netcarve.search import Run, Searcher, load, searcher, sweep
    from netcarve.spaces import Blueprint, Candidate, Choice, Space, trace

__version__ = "0.1.0"

_HOME = {
    "netcarve.spaces": ("Blueprint", "Candidate", "Choice", "Space", "trace"),
    "netcarve.results": ("Front", "Ledger", "Limit", "Objective", "Trial"),
    "netcarve.evaluators": ("Evaluator", "Task"),
    "netcarve.search": ("Run", "Searcher", "load", "searcher", "sweep"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Blueprint",
    "Candidate",
    "Choice",
    "Evaluator",
    "Front",
    "Ledger",
    "Limit",
    "Objective",
    "Run",
    "Searcher",
    "Space",
    "Task",
    "Trial",
    "load",
    "searcher",
    "sweep",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module 'netcarve' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
