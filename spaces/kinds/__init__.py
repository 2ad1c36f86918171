"""Kinds of choices by name: one idea in one file or folder, declared by an entry point, loaded when asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Kind

GROUP = "netcarve.kinds"
# Code that is newer than what pip wrote down of it: names are missing, or modules have moved.
MEND = "for a package just added or updated, `pip install -e .` in its folder renews its entry points"


def known_kinds() -> list[str]:
    """Names of the installed kinds, sorted: netcarve's own, and those of other packages."""
    return sorted(entry_points(group=GROUP).names)


def kind_class(name: str) -> type[Kind]:
    """The class that an installed package declares under ``name``; the first, where several do.

    Raises:
        ValueError: no package declares it, or what it names cannot be imported.
    """
    for entry in entry_points(group=GROUP, name=name):
        try:
            return entry.load()
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"the kind of space {name!r} is declared as {entry.value}, which cannot be imported "
                f"({error}); {MEND}"
            ) from error
    raise ValueError(f"unknown kind of space {name!r}; known are {', '.join(known_kinds())} ({MEND})")


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
        of = next((k for k in known_kinds() if k not in names and unknown[0] in _options_of(k)), None)
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
