"""Kinds of choices by name: one idea in one file or folder, declared by an entry point, loaded when asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from importlib.metadata import entry_points
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

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


def read_options(names: Sequence[str], texts: Mapping[str, str]) -> dict[str, Any]:
    """Options of these kinds from text, as a command line gives them, of the types of their fields.

    A list is written with commas: ``{"sparsities": "0,0.5"}``. ``none`` is ``None``.

    Raises:
        ValueError: an option that none of these kinds takes (with near names), or text that is no such value.
    """
    takes = {f.name: (cls, f.name) for cls in map(kind_class, names) for f in fields(cls)}
    read: dict[str, Any] = {}
    for given, text in texts.items():
        name = given.replace("-", "_")
        if name not in takes:
            near = get_close_matches(name, takes, n=3)
            hint = f"did you mean {' or '.join(near)}" if near else f"they take {', '.join(takes) or 'none'}"
            raise ValueError(f"no kind of {', '.join(names)} takes the option {given!r}; {hint}")
        cls, field = takes[name]
        read[name] = _value(given, get_type_hints(cls)[field], text.strip())
    return read


def _value(name: str, wanted: Any, text: str) -> Any:
    """One option from its text.

    Raises:
        ValueError: it cannot be given as text, or not as this one.
    """
    kind, inner = get_origin(wanted), get_args(wanted)
    if kind in (Union, UnionType):
        if text.lower() == "none" and type(None) in inner:
            return None
        *others, last = (a for a in inner if a is not type(None))
        for other in others:
            try:
                return _value(name, other, text)
            except ValueError:
                continue
        wanted, kind, inner = last, get_origin(last), get_args(last)
    if kind is not None and kind is not Literal and issubclass(kind, Sequence):
        return [_value(name, inner[0], part.strip()) for part in text.split(",") if part.strip()]
    if kind is Literal:
        return next((value for value in inner if str(value) == text), text)
    if wanted is str:
        return text
    if wanted is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if wanted in (int, float):
        try:
            return wanted(text)
        except ValueError:
            pass
    words = {int: "a whole number", float: "a number", bool: "true or false"}
    if wanted not in words:
        raise ValueError(f"the option {name!r} cannot be given as text; use the Python interface")
    raise ValueError(f"the option {name!r} is {words[wanted]}, got {text!r}")


def _options_of(name: str) -> list[str]:
    return [f.name for f in fields(kind_class(name))]
