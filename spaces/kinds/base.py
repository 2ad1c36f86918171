"""What a kind of choice is, and what it is told when it makes its choices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from ..choice import Choice

if TYPE_CHECKING:
    from ..blueprint import Blueprint


@dataclass(frozen=True, slots=True)
class Making:
    """What all kinds of one space share."""

    order: str  # name under which the blueprint keeps the units' order
    least: Mapping[str, int]  # fewest units that may stay, by group; 1 where it is not told
    ratios: int | Sequence[float]
    round_to: int
    progress: Callable[[int, int], None] | None = None  # for proofs


@dataclass(frozen=True, kw_only=True)
class Kind(ABC):
    """One kind of choice with its options.

    A subclass is a frozen dataclass: its fields are the options that ``Blueprint.space`` takes for it, by
    name, with their defaults; names must differ from those of all other kinds. ``__post_init__`` refuses bad
    values (ValueError), before any work.
    """

    done: ClassVar[str]  # what a model where it finds nothing cannot be: "pruned"

    def goes_with(self, kinds: Sequence[str]) -> None:  # noqa: B027
        """Asked before any work, whether it may be in a space of these kinds; by default it may.

        Raises:
            ValueError: it may not, and why.
        """

    @abstractmethod
    def choices(self, blueprint: Blueprint, making: Making) -> list[Choice]:
        """The choices that this model has, with edits; empty where it has none.

        ``blueprint`` has been proven (``groups``), calibrated where there was calibration
        (``mending.calibration``), and holds its captured graph (``captured``).
        """

    def recorded(self) -> dict[str, Any]:
        """The options as plain JSON, from which an equal kind can be made."""
        return {f.name: plain(getattr(self, f.name)) for f in fields(self)}


def plain(value: Any) -> Any:
    """JSON's types for tuples, and for objects with a method ``to_json``."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value
