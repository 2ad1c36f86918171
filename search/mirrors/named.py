"""Mirrors by name, as the command line gives them."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from .base import Mirror

MIRRORS = {  # module of this folder, class
    "mlflow": (".mlflow", "MLflow"),
    "optuna": (".optuna", "Optuna"),
    "tensorboard": (".tensorboard", "TensorBoard"),
}


def mirror(text: str) -> Mirror:
    """The mirror that ``NAME`` or ``NAME:WHERE`` names: ``"optuna:sqlite:///studies.db"``.

    Raises:
        ValueError: an unknown name, or its package is not installed.
    """
    name, _, where = text.partition(":")
    if name not in MIRRORS:
        raise ValueError(f"unknown mirror {name!r}; known are {', '.join(MIRRORS)}, each also as NAME:WHERE")
    module, cls = MIRRORS[name]
    made: type[Mirror] = getattr(import_module(module, __package__), cls)
    if find_spec(made.needs) is None:
        raise ValueError(
            f"the mirror {name!r} needs {made.needs}, which is not installed: pip install 'netcarve[{name}]'"
        )
    return made(where)
