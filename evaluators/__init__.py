"""Evaluators: the task, one evaluator per metric, and the pools of workers that score candidates.

Names are loaded on first use, so that pools of pure spaces and the command line need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Evaluator, Measured
    from .batchnorm import reestimate_batchnorm
    from .errors import PoolError, TaskError
    from .heldout import Stability, ranking_stability
    from .lane import Lane
    from .latency import Latency, LatencyRecord, measure_latency
    from .pool import InProcessPool, Job, Outcome, Pool
    from .quality import Counted, Quality
    from .ray_pool import RayPool
    from .resolve import known_tasks, resolve_task
    from .robustness import Robustness
    from .task import Task

_HOME = {
    ".base": ("Evaluator", "Measured"),
    ".batchnorm": ("reestimate_batchnorm",),
    ".errors": ("PoolError", "TaskError"),
    ".heldout": ("Stability", "ranking_stability"),
    ".lane": ("Lane",),
    ".latency": ("Latency", "LatencyRecord", "measure_latency"),
    ".pool": ("InProcessPool", "Job", "Outcome", "Pool"),
    ".quality": ("Counted", "Quality"),
    ".ray_pool": ("RayPool",),
    ".resolve": ("known_tasks", "resolve_task"),
    ".robustness": ("Robustness",),
    ".task": ("Task",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Counted",
    "Evaluator",
    "InProcessPool",
    "Job",
    "Lane",
    "Latency",
    "LatencyRecord",
    "Measured",
    "Outcome",
    "Pool",
    "PoolError",
    "Quality",
    "RayPool",
    "Robustness",
    "Stability",
    "Task",
    "TaskError",
    "known_tasks",
    "measure_latency",
    "ranking_stability",
    "reestimate_batchnorm",
    "resolve_task",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
