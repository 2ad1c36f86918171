"""Settings of a sweep: the one table of its options, for the command line, recipe files and Python.

Imports the standard library alone, since ``netcarve --help`` is made of it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from itertools import pairwise
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

VERSION = 1  # of recipe files; one that is newer is refused
TRIALS = 500  # where neither trials nor minutes are given
RECIPE = "recipe.toml"  # in the folder of a run
REPAIRS: dict[str, bool | Literal["once", "merge"]] = {  # names of the repairs of `Blueprint.space`
    "full": True,
    "once": "once",
    "none": False,
    "merge": "merge",
}

DAILY, UNITS, DEVICES, DETAIL, PLACE = (
    "Options",
    "What is pruned, and how it is repaired",
    "Several devices",
    "The search in detail",
    "Workers, and where the run is shown",
)

Ratios = int | tuple[float, ...]
Tables = tuple[str | Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Option:
    """How a setting appears on the command line."""

    help: str
    panel: str
    metavar: str | None = None
    flag: str = ""  # by default made of the field's name
    least: int | None = None  # a smaller number is refused
    commas: bool = False  # one text with commas between its parts; else the option is repeated
    default: str = ""  # in words, where the field's own default says too little


def shown(panel: str, help: str, metavar: str | None = None, **more: Any) -> dict[str, Option]:
    """Metadata of a field that is an option of the command line."""
    return {"option": Option(help, panel, metavar, **more)}


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """What a sweep is asked to do. A field is a key of a recipe file, and an option of ``netcarve sweep``.

    :data:`FREE` names those that may differ when a run is resumed; all others decide its trials.

    Raises:
        ValueError: a value that no sweep can have.
    """

    task: str | None = None  # text that names it: "digits", "file.py:function", "package.module:function"

    space: tuple[str, ...] = field(
        default=("prune",),
        metadata=shown(
            DAILY,
            "kinds: prune, drop, operators, bypass, rewrite, bits, mask, splits, width, group, exits, "
            "branches",
            "KINDS",
            commas=True,
        ),
    )
    objectives: tuple[str, ...] = field(
        default=(),
        metadata=shown(
            DAILY,
            "metric to trade off, or NAME:max; repeat",
            "M",
            flag="--objective",
            default="accuracy, macs",
        ),
    )
    limits: tuple[str, ...] = field(
        default=(),
        metadata=shown(DAILY, "'macs<=0.5x', x: of the unchanged model; repeat", "EXPR", flag="--limit"),
    )
    searcher: str = field(
        default="auto", metadata=shown(DAILY, "auto, nsga2, gp, greedy, random, ...", "NAME")
    )
    trials: int | None = field(
        default=None, metadata=shown(DAILY, "stop after N in all", "N", least=1, default=str(TRIALS))
    )
    minutes: float | None = field(default=None, metadata=shown(DAILY, "stop after M minutes instead", "M"))
    workers: int | None = field(
        default=None, metadata=shown(DAILY, "processes", "N", least=0, default="the cores, at most 4")
    )
    seed: int = field(default=0, metadata=shown(DAILY, "same seed, same trials", "S", least=0))
    out: str | None = field(
        default=None, metadata=shown(DAILY, "new folder", "DIR", default="runs/TASK-SEARCHER-N")
    )
    resume: bool = field(
        default=False, metadata=shown(DAILY, "go on with the run in --out, or the latest of its kind")
    )

    ratios: Ratios = field(
        default=8,
        metadata=shown(UNITS, "pruning ratios of each group: how many, or 0,0.25,0.5", "N|LIST", commas=True),
    )
    importance: str | None = field(
        default=None,
        metadata=shown(UNITS, "which units go first: l1, taylor, ...", "NAME", default="reconstruction"),
    )
    round_to: int = field(
        default=1, metadata=shown(UNITS, "keep multiples of N units of each group", "N", least=1)
    )
    repair: str = field(
        default="full",
        metadata=shown(UNITS, "without training: full, once (several times faster), none, merge", "HOW"),
    )
    options: Mapping[str, Any] = field(default_factory=dict)  # of single kinds of choices, by name
    calibrate: bool = True  # rank and repair by the task's calibration data

    devices: Tables = field(
        default=(),
        metadata=shown(
            DEVICES,
            "runs a stage: edge=0.2x, edge=profile.json, edge=1x,memory=64mb,power=5w; repeat",
            "NAME=SPEED",
            flag="--device",
        ),
    )
    links: Tables = field(
        default=(),
        metadata=shown(
            DEVICES, "20mbps,5ms: for all, or repeat: from each to the next", "RATE", flag="--link"
        ),
    )
    platform: str | None = field(
        default=None, metadata=shown(DEVICES, "devices and links in a TOML file", "FILE", flag="--devices")
    )
    placement: str | None = field(
        default=None,
        metadata=shown(DEVICES, "ordered: stage k on device k; free: any", "NAME", default="ordered"),
    )
    parts: int | None = field(
        default=None, metadata=shown(DEVICES, "stages at most", "N", least=2, default="as many as devices")
    )
    forced: tuple[str, ...] = field(
        default=(), metadata=shown(DEVICES, "a stage ends after it; repeat", "MODULE", flag="--force")
    )
    forbidden: tuple[str, ...] = field(
        default=(), metadata=shown(DEVICES, "it is never cut inside; repeat", "MODULE", flag="--forbid")
    )

    rungs: tuple[str, ...] = field(
        default=(),
        metadata=shown(
            DETAIL, "of --searcher progressive: quick,full,tuned", "NAMES", commas=True, default="quick,full"
        ),
    )
    seed_from: tuple[str, ...] = field(
        default=(),
        metadata=shown(DETAIL, "begin with an earlier run, or candidates in a .json file; repeat", "RUN"),
    )
    repeats: int = field(
        default=1,
        metadata=shown(DETAIL, "score each candidate N times, where chance is in it", "N", least=1),
    )
    window: int = field(
        default=16,
        metadata=shown(DETAIL, "candidates under way at a time, whatever the workers", "N", least=1),
    )
    measure: bool = field(default=True, metadata=shown(DETAIL, "the latency of the front, at the end"))

    trial_timeout: float | None = field(
        default=None, metadata=shown(PLACE, "a trial that takes longer has failed", "SECONDS")
    )
    address: str | None = field(
        default=None, metadata=shown(PLACE, "of a Ray cluster", "ADDR", default="this machine")
    )
    mirrors: tuple[str, ...] = field(
        default=(),
        metadata=shown(
            PLACE,
            "also show the trials in tensorboard, mlflow or optuna; repeat",
            "NAME[:WHERE]",
            flag="--mirror",
        ),
    )

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("minutes", "trial_timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be more than 0, got {value}")
        if self.trial_timeout is not None and self.workers == 0:
            raise ValueError("trial_timeout needs workers: a candidate cannot be stopped in this process")
        if self.repair not in REPAIRS:
            raise ValueError(f"repair is one of {', '.join(REPAIRS)}, got {self.repair!r}")
        _check_ratios(self.ratios)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """Settings by name, as plain data; those left out have their defaults.

        Raises:
            ValueError: an unknown name (near ones are given), or a value that is not of its type.
        """
        known = [one.name for one in fields(cls)]
        held = dict(given)
        version = held.pop("version", VERSION)
        if type(version) is not int or not 1 <= version <= VERSION:
            raise ValueError(f"version {version!r} is not one that this netcarve reads, 1 to {VERSION}")
        if unknown := [name for name in held if name not in known]:
            raise ValueError(f"unknown setting {unknown[0]!r}{near(unknown[0], known)}")
        return cls(**held)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Settings from a recipe file, TOML.

        Raises:
            ValueError: no such file, not TOML, or one that :meth:`from_dict` refuses.
        """
        import tomllib

        try:
            return cls.from_dict(tomllib.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise ValueError(f"cannot read the recipe {path}: {error.strerror or error}") from None
        except ValueError as error:  # also of what is not TOML, or not UTF-8
            raise ValueError(f"the recipe {path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for :meth:`from_dict`, without what is not set."""
        held = {one.name: getattr(self, one.name) for one in fields(self)}
        return {"version": VERSION} | {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in held.items()
            if value is not None and value != () and value != {}
        }

    def to_toml(self) -> str:
        """The text of a recipe file; :meth:`read` gives equal settings.

        ``calibrate`` and ``resume`` are there only where they are not the default.
        """
        held = self.to_dict()
        for name, usual in (("calibrate", True), ("resume", False)):
            if held[name] is usual:
                del held[name]
        tables = ("options", "devices", "links")  # tables of TOML come last
        plain = {k: v for k, v in held.items() if k not in tables or _is_plain(v)}
        lines = [f"{_key(name)} = {_toml(value)}" for name, value in plain.items()]
        for name in tables:
            if name in plain or name not in held:
                continue
            ones = held[name] if isinstance(held[name], list) else [held[name]]
            for one in ones:
                head = f"[[{name}]]" if isinstance(held[name], list) else f"[{name}]"
                lines += ["", head, *(f"{_key(k)} = {_toml(v)}" for k, v in one.items() if v is not None)]
        return "\n".join([*lines, ""])


FREE = frozenset(  # settings that may differ when a run is resumed
    ("trials", "minutes", "workers", "address", "out", "resume", "trial_timeout", "mirrors", "measure")
) | {"seed_from"}


def check_fields(held: Any) -> None:
    """See that the fields of a settings object are of their types, and not less than their least.

    Lists become tuples, and numbers of NumPy those of Python.

    Raises:
        ValueError: names the field, what it is and what was given.
    """
    hints = get_type_hints(type(held))
    for one in fields(held):
        value, option = getattr(held, one.name), one.metadata.get("option")
        if isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, Real) and not isinstance(value, bool):
            value = int(value) if isinstance(value, Integral) else float(value)
        object.__setattr__(held, one.name, value)
        if not _fits(value, hints[one.name]):
            raise ValueError(f"{one.name} is {_words(hints[one.name])}, got {value!r:.60}")
        if option and option.least is not None and value is not None and value < option.least:
            raise ValueError(f"{one.name} must be at least {option.least}, got {value}")


def _check_ratios(ratios: Ratios) -> None:
    if isinstance(ratios, int):
        rising = ratios >= 1
    else:
        rising = len(ratios) > 1 and ratios[0] == 0 and all(a < b < 1 for a, b in pairwise(ratios))
    if not rising:
        got = ratios if isinstance(ratios, int) else ",".join(f"{r:g}" for r in ratios)
        raise ValueError(
            "ratios is a number of ratios, such as 8, or a list that starts with 0 and rises to less than 1, "
            f"such as 0,0.25,0.5; got {got}"
        )


def option_of(one: Field[Any]) -> Option:
    """How a field of :class:`SweepSettings` appears on the command line."""
    made: Option = one.metadata["option"]
    return made


def near(name: str, known: list[str]) -> str:
    """``"; did you mean 'trials'?"``, or how to see them all."""
    found = difflib.get_close_matches(name, known, 2)
    asked = " or ".join(repr(one) for one in found)
    return f"; did you mean {asked}?" if found else "; `netcarve sweep --help` lists them"


def _fits(value: object, hint: object) -> bool:
    """Is a value, as TOML or Python has it, of an annotated type?"""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, get_args(hint)[0]) for v in value)
    if hint is float:
        return type(value) in (int, float)
    if hint is NoneType:
        return value is None
    return isinstance(value, Mapping) if origin is not None else type(value) is hint


def _words(hint: Any) -> str:
    """A type in words, for people who write recipes."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_words(one) for one in parts if one is not NoneType)
    if origin is tuple:
        return f"a list, each {_words(parts[0])}"
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(hint, "a table")


def _is_plain(value: object) -> bool:
    """Is it written on one line, not as tables?"""
    if isinstance(value, list):
        return not value or not all(isinstance(v, Mapping) for v in value)
    return not isinstance(value, Mapping)


def _key(name: str) -> str:
    bare = name and all(c.isascii() and (c.isalnum() or c in "_-") for c in name)
    return name if bare else _toml(name)


def _toml(value: object) -> str:
    """A value as TOML 1.0 writes it, on one line; what is None is left out of tables."""
    import json

    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float):
        return repr(value)  # also inf and nan, which TOML spells so
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(str(k))} = {_toml(v)}" for k, v in value.items() if v is not None)
        return f"{{{inside}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(v) for v in value)}]"
    raise TypeError(f"a recipe cannot hold {value!r:.60}")


def default_of(one: Field[Any]) -> str:
    """The default of a field in words, for its help; empty where nothing needs to be said."""
    option = option_of(one)
    if option.default:
        return option.default
    value = None if one.default is MISSING else one.default
    if value is None or value == () or isinstance(value, bool):
        return ""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
