"""Choice, and candidate: one option of each choice of a space."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

Option = float | int | str | bool


class AnyKind(Protocol):
    """What choices and spaces ask of a kind; :class:`.kinds.base.Kind` has all of it, and more."""

    neutral: ClassVar[bool]
    measured: ClassVar[tuple[str, ...]]

    def kept(self, choice: Choice) -> tuple[int, ...] | None: ...


@dataclass(frozen=True, slots=True)
class Choice:
    """One decision: a name and its options, ordered from unchanged to most compressed.

    ``kind`` answers for what an option does to a model, and ``about`` is what it needs for that; nobody else
    reads it. Both are ``None`` in spaces without a model. Two choices are equal when their names and options
    are.

    Raises:
        ValueError: no options, or the same option twice.
    """

    name: str
    options: tuple[Option, ...]
    kind: AnyKind | None = field(default=None, compare=False, repr=False)
    about: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))
        if not self.name:
            raise ValueError("a choice needs a name, got ''")
        if not self.options:
            raise ValueError(f"choice {self.name!r} has no options; give at least the unchanged one")
        if len(set(self.options)) != len(self.options):
            raise ValueError(f"choice {self.name!r} lists an option twice: {list(self.options)}")

    def __len__(self) -> int:
        return len(self.options)

    @property
    def neutral(self) -> bool:
        """Does it decide where a network runs alone, and nothing about what that computes?"""
        return self.kind is not None and self.kind.neutral

    @property
    def kept(self) -> tuple[int, ...] | None:
        """By option, how many of many units stay; ``None`` where the choice is about something else."""
        return None if self.kind is None else self.kind.kept(self)

    @property
    def measured(self) -> tuple[str, ...]:
        """Costs that a space with this choice does not compute: the data decide, and evaluators measure."""
        return () if self.kind is None else self.kind.measured


@dataclass(frozen=True, slots=True)
class Candidate:
    """One point of a space: an option index per choice. Equality and hash are by the indices.

    Made by :meth:`Space.candidate` or :meth:`Space.from_values`, which check the indices.
    """

    indices: tuple[int, ...]  # [choices], each in [0, len(choice.options))
    choices: tuple[Choice, ...] = field(default=(), compare=False, repr=False)

    @property
    def values(self) -> dict[str, Option]:
        """The chosen option of each choice, by name, in the space's order."""
        return {c.name: c.options[i] for c, i in zip(self.choices, self.indices, strict=True)}

    def items(self) -> Iterator[tuple[Choice, Option]]:
        """Each choice with the option taken."""
        for choice, index in zip(self.choices, self.indices, strict=True):
            yield choice, choice.options[index]

    def to_json(self) -> str:
        """``{"choice name": option, ...}``; :meth:`Space.from_values` reads it back."""
        return json.dumps(self.values)

    def __getitem__(self, name: str) -> Option:
        return self.values[name]


def index_of(choice: Choice, value: Option) -> int:
    """Position of ``value`` among the options (``1`` and ``1.0`` are the same option).

    Raises:
        ValueError: not an option of this choice.
    """
    try:
        return choice.options.index(value)
    except ValueError:
        raise ValueError(
            f"choice {choice.name!r} has no option {value!r}; its options are {list(choice.options)}"
        ) from None


def indices_of(choices: tuple[Choice, ...], values: Mapping[str, Option]) -> tuple[int, ...]:
    """Indices for a complete ``{choice name: option}``.

    Raises:
        ValueError: no mapping, a name is missing or unknown, or a value is not an option.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"a candidate is {{choice name: option}}, got {type(values).__name__}")
    names = [c.name for c in choices]
    known = set(names)
    missing = [n for n in names if n not in values]
    unknown = [n for n in values if n not in known]
    if missing or unknown:
        raise ValueError(
            "these values do not fit the space: "
            + "; ".join(
                part
                for part in (
                    f"missing {missing[:5]}" if missing else "",
                    f"unknown {unknown[:5]}" if unknown else "",
                )
                if part
            )
            + f"; the space's choices are {names}"
        )
    return tuple(index_of(c, values[c.name]) for c in choices)


def unsplit(candidate: Candidate) -> Candidate:
    """The candidate in one piece: neutral choices at their first options; itself where there are none.

    Candidates with the same unsplit one are the same network, with the same accuracy.
    """
    neutral = [c.neutral for c in candidate.choices]
    if not any(neutral):
        return candidate
    pairs = zip(candidate.indices, neutral, strict=True)
    return Candidate(tuple(0 if n else i for i, n in pairs), candidate.choices)
