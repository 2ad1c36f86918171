"""netcarve: search what a trained PyTorch network can become.

Names are resolved on first use (PEP 562), so that ``import netcarve`` and ``netcarve --help`` are instant.
They are absolute because pytest may import this file as a plain module, outside its package.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netcarve.deployment.decompose import Decomposition, decompose
    from netcarve.devices import Device, Link
    from netcarve.engine.exporting import verify
    from netcarve.engine.launch import sweep
    from netcarve.engine.opening import load
    from netcarve.engine.run import Run
    from netcarve.evaluators import Evaluator, Task
    from netcarve.results import Front, Ledger, Limit, Objective, Trial
    from netcarve.search import Searcher, searcher
    from netcarve.spaces import Blueprint, Candidate, Choice, Space, trace

__version__ = "0.1.0"

_HOME = {
    "netcarve.spaces": ("Blueprint", "Candidate", "Choice", "Space", "trace"),
    "netcarve.devices": ("Device", "Link"),
    "netcarve.results": ("Front", "Ledger", "Limit", "Objective", "Trial"),
    "netcarve.evaluators": ("Evaluator", "Task"),
    "netcarve.deployment.decompose": ("Decomposition", "decompose"),
    "netcarve.engine": ("Run", "sweep"),
    "netcarve.search": ("Searcher", "searcher"),
    "netcarve.engine.exporting": ("verify",),
    "netcarve.engine.opening": ("load",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Blueprint",
    "Candidate",
    "Choice",
    "Decomposition",
    "Device",
    "Evaluator",
    "Front",
    "Ledger",
    "Limit",
    "Link",
    "Objective",
    "Run",
    "Searcher",
    "Space",
    "Task",
    "Trial",
    "decompose",
    "load",
    "searcher",
    "sweep",
    "trace",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module 'netcarve' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
