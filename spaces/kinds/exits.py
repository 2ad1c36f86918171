"""Early exits: after which modules samples may leave, and from which confidence on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..choice import Choice
from ..exits.choice import THRESHOLDS, check_thresholds, exit_choice
from ..exits.places import class_count, find_places, named, spread
from ..stages.functional import CutError
from .base import Kind, Making

if TYPE_CHECKING:
    from ..blueprint import Blueprint


@dataclass(frozen=True, kw_only=True)
class Exits(Kind):
    """A choice ``exit:<module>`` for some ends of modules, spread evenly over the multiply-accumulates."""

    exits: int = 3  # how many places are offered
    thresholds: Sequence[float] = THRESHOLDS  # of the largest class probability, falling
    exit_places: Sequence[str] | None = None  # exactly after these modules, whatever ``exits`` is

    done: ClassVar[str] = "left early"

    def __post_init__(self) -> None:
        if self.exits < 1:
            raise ValueError(f"exits must be at least 1, got {self.exits}")
        check_thresholds(self.thresholds)

    def goes_with(self, kinds: Sequence[str]) -> None:
        if clash := {"splits", "branches"}.intersection(kinds):
            raise ValueError(
                f"exits and {min(clash)} cannot be in one space: each divides the network in its own way"
            )

    def choices(self, blueprint: Blueprint, making: Making) -> list[Choice]:
        """
        Raises:
            ValueError: the network is no classifier whose batch can be divided; a module of ``exit_places``
                after which no exit can be.
        """
        graph = blueprint.captured.graph_module.graph
        try:
            places, classes = find_places(graph, blueprint.coupling), class_count(graph)
        except CutError as error:
            raise CutError(f"this network can have no exits: {error}") from None
        if self.exit_places is None:
            taken = spread(places, self.exits)
        else:
            taken = named(places, list(self.exit_places), "exits")
        return [exit_choice(p, classes, self.thresholds) for p in taken]

    def recorded(self) -> dict[str, Any]:
        return {**super().recorded(), "thresholds": [float(t) for t in self.thresholds]}
