"""Search spaces: what may be decided about a model, and the model that a decision gives.

Choices, candidates and spaces need numpy alone; capture and surgery (torch) are loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .choice import Candidate, Choice, Option
from .space import ModelSide, Space

if TYPE_CHECKING:
    from .blueprint import Blueprint, trace

__all__ = ["Blueprint", "Candidate", "Choice", "ModelSide", "Option", "Space", "trace"]

_TORCH_SIDE = {"Blueprint": ".blueprint", "trace": ".blueprint"}


def __getattr__(name: str) -> Any:
    if name in _TORCH_SIDE:
        return getattr(import_module(_TORCH_SIDE[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
