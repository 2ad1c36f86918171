"""Kinds of choices: what may be decided about a model. One file each, known by name, loaded when asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Kind

KINDS = {  # name -> module here, and the class in it
    "prune": ("prune", "Pruning"),
    "drop": ("drop", "Dropping"),
    "mask": ("mask", "Masking"),
    "splits": ("splits", "Splitting"),
    "width": ("width", "Dividing"),
    "group": ("group", "Grouping"),
    "exits": ("exits", "Exits"),
    "branches": ("branches", "Branching"),
}


def kind_class(name: str) -> type[Kind]:
    """
    Raises:
        ValueError: an unknown name.
    """
    if name not in KINDS:
        raise ValueError(f"unknown kind of space {name!r}; this version knows {', '.join(KINDS)}")
    module, cls = KINDS[name]
    return getattr(import_module(f".{module}", __name__), cls)


def make_kinds(names: Sequence[str], options: Mapping[str, Any]) -> list[Kind]:
    """The kinds of these names, each with those of ``options`` that are its own.

    Raises:
        ValueError: an unknown name, a name twice, kinds that do not go together, or a value that one refuses.
        TypeError: an option that none of them takes, with the list of those that they take.
    """
    if twice := [name for name in names if list(names).count(name) > 1]:
        raise ValueError(f"the kind of space {twice[0]!r} is given twice")
    classes = {name: kind_class(name) for name in names}
    takes = {name: [f.name for f in fields(cls)] for name, cls in classes.items()}
    known = [option for own in takes.values() for option in own]
    if unknown := [option for option in options if option not in known]:
        of = next((k for k in KINDS if k not in names and unknown[0] in _options_of(k)), None)
        why = f"is of the kind {of!r}, which is not asked for" if of else "is unknown"
        raise TypeError(
            f"the option {unknown[0]!r} {why}; a space of {', '.join(names)} takes "
            f"{', '.join([*known, 'ratios', 'importance', 'round_to', 'calibration', 'repair', 'progress'])}"
        )
    made = [
        cls(**{option: options[option] for option in takes[name] if option in options})
        for name, cls in classes.items()
    ]
    for kind in made:
        kind.goes_with(names)
    return made


def _options_of(name: str) -> list[str]:
    return [f.name for f in fields(kind_class(name))]
