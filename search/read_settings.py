"""Settings of a run as a file has them: whoever wrote that, they are checked before anything uses them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..results.database import NOTHING_IN_IT
from ..results.fidelity import stored_rungs
from ..results.objective import Limit, Objective
from ..spaces import Choice
from .devices import stored_platform
from .settings import RunError

TEXT = 300  # characters of a name: enough for any module's path
MANY = 100_000  # choices, or options of one
LONGEST = 1e10  # seconds of a run: three centuries


def check_settings(settings: Mapping[str, Any], path: object) -> None:
    """
    Raises:
        RunError: the settings are not those of a run: none, or a value of another kind than netcarve writes.
    """
    if not settings:
        raise RunError(f"the ledger in {path} is empty: {NOTHING_IN_IT}")
    try:
        _check(settings)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        what = f"they lack {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(f"{path} holds no run that this netcarve can read: of its settings, {what}") from None


def sound_notes(info: Mapping[str, Any]) -> dict[str, Any]:
    """The notes of a run without those that are not of the kind that netcarve writes: they decide nothing."""
    notes = dict(info)
    if not isinstance(notes.get("status", ""), str):
        del notes["status"]
    seconds = notes.get("seconds", 0.0)
    if not isinstance(seconds, int | float) or not 0 <= seconds < LONGEST:
        del notes["seconds"]
    return notes


def _check(settings: Mapping[str, Any]) -> None:
    for key in ("searcher", "version"):
        _text(key, settings.get(key, ""))
    for key in ("task", "spec", "fingerprint"):
        if settings.get(key) is not None:
            _text(key, settings[key], longest=4096)
    if type(settings["seed"]) is not int or settings["searcher"] == "":
        raise ValueError(f"seed is {settings['seed']!r:.40}, searcher {settings['searcher']!r:.40}")
    for o in _list("objectives", settings["objectives"]):
        Objective(**{k: _text(k, v) for k, v in _dict("an objective", o).items()})
    for name, goal in _dict("goals", settings.get("goals", {})).items():
        Objective(_text("a metric", name), _text("a goal", goal))
    for text in _list("limits", settings["limits"]):
        Limit(_text("a limit", text))
    for name in _list("modelled", settings.get("modelled", [])):
        _text("a modelled metric", name)
    recipe = settings.get("space")
    if recipe is not None:
        for kind in _list("kinds", _dict("space", recipe)["kinds"]):
            _text("a kind of space", kind)
        _dict("options of the space", recipe["options"])
        stored_platform(settings)
    for rung in _list("rungs", settings.get("rungs") or []):
        _dict("a rung", rung)
    stored_rungs(settings)
    names = []
    for choice in _list("choices", settings["choices"]):
        name, options = choice
        for option in _list(f"options of {name!r:.40}", options):
            if not isinstance(option, str | int | float | bool):
                raise ValueError(f"{name!r:.40} has an option of type {type(option).__name__}")
        names.append(Choice(_text("a choice", name), tuple(options)).name)
    if not names or len(set(names)) < len(names):
        raise ValueError("its choices are none, or two of the same name")
    for row in _list("uniform", settings.get("uniform", [])):
        if len(_list("a uniform cut", row)) != len(names) or not all(type(i) is int for i in row):
            raise ValueError("uniform and choices disagree")
    known = set(names)
    for name, kept in _dict("kept", settings.get("kept", {})).items():
        if name not in known or not all(type(n) is int for n in _list("kept", kept)):
            raise ValueError(f"kept of {name!r:.40} is not understood")
    lengths = {name: len(options) for name, options in settings["choices"]}
    if any(len(kept) != lengths[name] for name, kept in settings.get("kept", {}).items()):
        raise ValueError("kept and choices disagree")


def _text(what: str, value: Any, longest: int = TEXT) -> str:
    if not isinstance(value, str) or len(value) > longest:
        raise ValueError(f"{what} is {value!r:.40}, not a text of at most {longest} characters")
    return value


def _list(what: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > MANY:
        raise ValueError(f"{what} is {type(value).__name__}, not a list of at most {MANY:,}")
    return value


def _dict(what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {type(value).__name__}, not an object")
    return value
