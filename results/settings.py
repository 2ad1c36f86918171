"""Settings of a run: what decides its trials and what its scores mean, as the ledger keeps them.

How much and where (trials, minutes, workers, time limits) is left out: it may differ on resuming.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from ..devices import Device, Link, devices_of, links_of, platform_text
from ..spaces import Choice
from ..standalone import Json
from .fidelity import FULL, Fidelity, parse_rungs
from .objective import Limit, Objective

FORMAT = 2  # of what is written; 1: netcarve 0.1, without this number
TEXT = 300  # characters of a name: enough for any module's path
PLATFORM = ("devices", "links")  # options of a space
MANY = 100_000  # choices, or options of one


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a run was started with. Of what older versions did not keep, the defaults say so."""

    task: str | None = None  # its name; None: a space without a model
    spec: str | None = None  # text by which the task can be found again
    signature: str | None = None  # of ``spec``, by the user who made the run
    fingerprint: str | None = None  # of the task's model and data
    searcher: str
    seed: int
    window: int | None = None  # candidates under way at a time
    objectives: tuple[Objective, ...]
    goals: Mapping[str, str] = field(default_factory=dict)  # of metrics that netcarve does not know
    limits: tuple[Limit, ...] = ()
    metrics: tuple[str, ...] | None = None  # that the evaluators give
    scoring: int = 1  # rules by which networks are repaired and scored
    repeats: int = 1  # how often each candidate is scored
    rungs: tuple[Fidelity, ...] = ()  # of a search over several, the most thorough first
    choices: tuple[Choice, ...]
    unconfirmed: str | None = None  # why no figure can be confirmed; None: nobody knows
    uniform: tuple[tuple[int, ...], ...] = ()  # uniform cuts, as option indices
    kept: Mapping[str, Sequence[int]] = field(default_factory=dict)  # units of each option, by choice
    layers: Sequence[Mapping[str, Any]] = ()  # what decides the width of each layer, in network order
    space: Mapping[str, Any] | None = None  # how the space was made: "kinds", "options", "calibrated"
    modelled: tuple[str, ...] = ()  # metrics that come from profiles of devices, not from a clock
    split: dict[str, Any] | None = None  # plan of networks that are split
    version: str = "unknown"  # of the netcarve that began the run
    given: int = 0  # first trials, after the unchanged model, that the searcher was not asked for
    imported: int = 0  # trials taken over from earlier runs
    taken: bool = False  # given anew where the run's own settings were lost

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> Self:
        """Settings from what :meth:`to_json` gave, today's or any older version's; whoever has written it.

        Raises:
            ValueError: a value that netcarve does not write.
        """
        try:
            return cls._read(held)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"they lack {error}" if isinstance(error, KeyError) else str(error)) from None

    @classmethod
    def _read(cls, held: Mapping[str, Any]) -> Self:
        if (version := held.get("format", 1)) not in range(1, FORMAT + 1):
            raise ValueError(f"format {version!r:.40} is of a newer netcarve")
        for key in ("searcher", "version"):
            _text(key, held.get(key, ""))
        for key in ("task", "spec", "fingerprint"):
            if held.get(key) is not None:
                _text(key, held[key], longest=4096)
        if type(held["seed"]) is not int or held["searcher"] == "":
            raise ValueError(f"seed is {held['seed']!r:.40}, searcher {held['searcher']!r:.40}")
        goals = _dict("goals", held.get("goals", {}))
        for name, goal in goals.items():
            Objective(_text("a metric", name), _text("a goal", goal))
        _check_recipe(held.get("space"))
        choices = _choices(held["choices"])
        made = {one.name: held[one.name] for one in fields(cls) if one.name in held}
        return cls(
            **made
            | {
                "objectives": tuple(
                    Objective(**{k: _text(k, v) for k, v in _dict("an objective", o).items()})
                    for o in _list("objectives", held["objectives"])
                ),
                "limits": tuple(Limit(_text("a limit", text)) for text in _list("limits", held["limits"])),
                "choices": choices,
                "uniform": _uniform(held.get("uniform", []), choices),
                "kept": _kept(held.get("kept", {}), choices),
                "modelled": tuple(
                    _text("a modelled metric", m) for m in _list("modelled", held.get("modelled", []))
                ),
                "rungs": _rungs(held.get("rungs") or []),
                "metrics": _optional_texts("metrics", held.get("metrics")),
            }
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data for :meth:`from_json`."""
        return {
            "format": FORMAT,
            **{one.name: _plain(getattr(self, one.name)) for one in fields(self)},
            "objectives": [asdict(o) for o in self.objectives],
            "limits": [m.text for m in self.limits],
            "rungs": [asdict(rung) for rung in self.rungs],
            "choices": [[c.name, list(c.options)] for c in self.choices],
        }

    @property
    def fidelities(self) -> tuple[Fidelity, ...]:
        """On which trials were judged, the most thorough first; without rungs :data:`FULL` alone."""
        return self.rungs or (FULL,)

    @property
    def platform(self) -> tuple[tuple[Device, ...], tuple[Link, ...]]:
        """Devices and links that networks were split over; empty where they were not."""
        return platform_in(self.space)


def platform_in(recipe: Mapping[str, Any] | None) -> tuple[tuple[Device, ...], tuple[Link, ...]]:
    """Devices and links of a space, from its recipe; empty where its networks are not split.

    Raises:
        ValueError, TypeError: they are not understood.
    """
    options = (recipe or {}).get("options", {})
    if not options.get("devices"):
        return (), ()
    devices = devices_of(options["devices"])
    return devices, links_of(options.get("links") or (), devices)


def differences(stored: RunSettings, now: Mapping[str, Any]) -> list[str]:
    """What keeps a run from being resumed with other settings, one phrase each; empty when nothing does.

    Args:
        now: values of some fields, or of all.
    """
    found = []
    if "fingerprint" in now and stored.fingerprint != now["fingerprint"]:
        found.append(f"the model's weights or the validation data have changed{held_back_since(stored)}")
    if "choices" in now and stored.choices != now["choices"]:
        found.append(_choices_differ(stored.choices, now["choices"]))
    elif "space" in now and stored.space != now["space"]:
        # Other importance or repair: equal candidates, other models.
        found += _spaces_differ(stored.space or {}, now["space"] or {})
    if "scoring" in now and stored.scoring != now["scoring"]:
        found.append(
            f"netcarve {stored.version} scored candidates in another way (the unchanged model with "
            "re-estimated BatchNorm); begin anew from its front: --seed-from"
        )
    for key in ("task", "searcher", "seed", "window", "objectives", "limits", "metrics", "repeats", "rungs"):
        was = getattr(stored, key)
        if key in now and was != now[key]:
            found.append(f"{key} was {_short(was)}, is now {_short(now[key])}")
    return found


def held_back_since(stored: RunSettings) -> str:
    """A hint for runs made when no validation data were held back to confirm the front; else empty."""
    if stored.unconfirmed is not None:
        return ""
    return " (a run from before data were held back to confirm the front needs Task(confirm=False))"


def _plain(value: object) -> Any:
    """Lists for tuples."""
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _check_recipe(recipe: Any) -> None:
    if recipe is not None:
        for kind in _list("kinds", _dict("space", recipe)["kinds"]):
            _text("a kind of space", kind)
        _dict("options of the space", recipe["options"])
        platform_in(recipe)


def _choices(held: Json) -> tuple[Choice, ...]:
    made = []
    for name, options in _list("choices", held):
        for option in _list(f"options of {name!r:.40}", options):
            if not isinstance(option, str | int | float | bool):
                raise ValueError(f"{name!r:.40} has an option of type {type(option).__name__}")
        made.append(Choice(_text("a choice", name), tuple(options)))
    if not made or len({c.name for c in made}) < len(made):
        raise ValueError("its choices are none, or two of the same name")
    return tuple(made)


def _rungs(held: Json) -> tuple[Fidelity, ...]:
    made = [Fidelity(**_dict("a rung", rung)) for rung in _list("rungs", held)]
    return parse_rungs(made) if made else ()


def _uniform(held: Json, choices: Sequence[Choice]) -> tuple[tuple[int, ...], ...]:
    rows = []
    for row in _list("uniform", held):
        if len(_list("a uniform cut", row)) != len(choices) or not all(type(i) is int for i in row):
            raise ValueError("uniform and choices disagree")
        rows.append(tuple(row))
    return tuple(rows)


def _kept(held: Any, choices: Sequence[Choice]) -> Mapping[str, list[int]]:
    lengths = {c.name: len(c.options) for c in choices}
    for name, kept in _dict("kept", held).items():
        if name not in lengths or not all(type(n) is int for n in _list("kept", kept)):
            raise ValueError(f"kept of {name!r:.40} is not understood")
        if len(kept) != lengths[name]:
            raise ValueError("kept and choices disagree")
    return held


def _optional_texts(what: str, held: Json) -> tuple[str, ...] | None:
    return None if held is None else tuple(_text(what, one) for one in _list(what, held))


def _text(what: str, value: Json, longest: int = TEXT) -> str:
    if not isinstance(value, str) or len(value) > longest:
        raise ValueError(f"{what} is {value!r:.40}, not a text of at most {longest} characters")
    return value


def _list(what: str, value: Json) -> list[Any]:
    if not isinstance(value, list) or len(value) > MANY:
        raise ValueError(f"{what} is {type(value).__name__}, not a list of at most {MANY:,}")
    return value


def _dict(what: str, value: Json) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {type(value).__name__}, not an object")
    return value


def _choices_differ(stored: Sequence[Choice], now: Sequence[Choice]) -> str:
    if len(stored) != len(now):
        return f"the space had {len(stored)} choices, has now {len(now)}"
    was, is_ = next((a, b) for a, b in zip(stored, now, strict=True) if a != b)
    return f"the choice {was.name!r} of {_short(was.options)} is now {is_.name!r} of {_short(is_.options)}"


def _spaces_differ(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Option by option; devices and links in words."""
    was, is_ = ({**recipe, **recipe.get("options", {})} for recipe in (stored, now))
    differing = [k for k in {**was, **is_} if k != "options" and was.get(k) != is_.get(k)]
    found = [
        f"{k} was {_short(was.get(k))}, is now {_short(is_.get(k))}" for k in differing if k not in PLATFORM
    ]
    if len(found) < len(differing):
        texts = [platform_text(*platform_in(recipe)) for recipe in (stored, now)]
        other = "another profile" if texts[0] == texts[1] else texts[1]
        found.append(f"devices and links were {texts[0]}, are now {other}")
    return found


def _short(value: object) -> str:
    """A setting in at most 60 characters, objectives, limits and rungs by their texts."""
    if isinstance(value, tuple):
        value = [_word(v) for v in value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _word(value: object) -> Any:
    match value:
        case Objective():
            return f"{value.name}:{value.goal}"
        case Limit():
            return value.text
        case Fidelity():
            return value.name
    return value
