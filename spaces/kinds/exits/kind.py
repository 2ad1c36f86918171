"""Exits: after which modules samples may leave, and from which confidence on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import nn

from ....model.captured_module import CapturedModule
from ....model.stages.functional import CutError
from ...choice import Choice, Option
from ..base import Context, Found, Kind, Making, Many, Taken
from .cascade import Cascade
from .head import Head, grid_of
from .places import ExitPlace, before, class_count, find_places, named, spread
from .segments import divide

if TYPE_CHECKING:
    from ....model.cost_tables import Tables
    from ....model.facts import Facts

NONE = "none"
THRESHOLDS = (0.99, 0.95, 0.9, 0.8, 0.6)


@dataclass(frozen=True, eq=False)
class Exit:
    """What a choice is about: the place where confident samples may leave."""

    place: ExitPlace
    classes: int

    @property
    def grid(self) -> tuple[int, ...]:
        """Of the unchanged network, so that pruning makes heads smaller and nothing else."""
        return grid_of(self.place.shape, self.place.channels)

    def head(self, alive: np.ndarray, **options: Any) -> Head:
        """A head for the units that stay."""
        place, labels = self.place, self.place.labels
        width = place.shape[place.channels - 1] if labels is None else int(np.count_nonzero(alive[labels]))
        return Head(width, place.channels, self.grid, self.classes, **options)


@dataclass(frozen=True, kw_only=True)
class ExitsKind(Kind):
    """A choice ``exit:<module>`` for some ends of modules, spread evenly over the multiply-accumulates.

    Options: ``"none"`` (unchanged), then thresholds, falling.
    """

    exits: int = 3  # how many places are offered
    thresholds: Sequence[float] = THRESHOLDS  # of the largest class probability, falling
    exit_places: Sequence[str] | None = None  # exactly after these modules, whatever ``exits`` is

    done: ClassVar[str] = "left early"
    rewrites: ClassVar[bool] = True
    measured: ClassVar[tuple[str, ...]] = ("macs", "flops", "branch_macs")  # by how many samples leave

    def __post_init__(self) -> None:
        if self.exits < 1:
            raise ValueError(f"exits must be at least 1, got {self.exits}")
        check_thresholds(self.thresholds)

    def goes_with(self, kinds: Sequence[str]) -> None:
        if clash := {"splits", "branches"}.intersection(kinds):
            raise ValueError(
                f"exits and {min(clash)} cannot be in one space: each divides the network in its own way"
            )

    def find(self, facts: Facts, making: Making) -> Found:
        """
        Raises:
            ValueError: the network is no classifier whose batch can be divided; a module of ``exit_places``
                after which no exit can be.
        """
        graph = facts.captured.graph_module.graph
        try:
            places, classes = find_places(graph, facts.coupling), class_count(graph)
        except CutError as error:
            raise CutError(f"this network can have no exits: {error}") from None
        if self.exit_places is None:
            taken = spread(places, self.exits)
        else:
            taken = named(places, list(self.exit_places), "exits")
        options: tuple[Option, ...] = (NONE, *(float(t) for t in self.thresholds))
        return Found([Choice(f"exit:{p.name}", options, self, Exit(p, classes)) for p in taken])

    def recorded(self) -> dict[str, Any]:
        return {**super().recorded(), "thresholds": [float(t) for t in self.thresholds]}

    def costs(self, many: Many, costs: dict[str, np.ndarray], tables: Tables) -> None:
        """Add the heads' weights, and their features and scores; ``macs`` is measured."""
        for choice, column in many:
            about: Exit = choice.about
            place, rows = about.place, column > 0
            if not rows.any():
                continue
            width = (
                place.shape[place.channels - 1] if place.labels is None else tables.count(place.labels)[rows]
            )
            features = width * float(np.prod(about.grid))
            params = (features + 1) * about.classes
            costs["params"][rows] += params
            if "nonzeros" in costs:
                costs["nonzeros"][rows] += params
            costs["size_mb"][rows] += params * 4 / 1e6
            costs["memory_mb"][rows] += params * 4 / 1e6
            costs["activation_mb"][rows] += (features + about.classes) * 4 / 1e6

    def wrap(self, network: nn.Module, taken: Taken, context: Context) -> nn.Module:
        """A cascade: one stage more for every exit. Its heads are fitted by :meth:`Cascade.refit`.

        Raises:
            CutError: what is there is no captured graph any more, or cannot be divided at one of the places.
        """
        taken = [(choice, index) for choice, index in taken if index]
        if not taken:
            return network
        surgeon = context.facts.surgeon
        stages, heads, graph = [network], [], None if surgeon.module is None else surgeon.module.graph
        dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)
        for choice, _ in taken:
            if not isinstance(stages[-1], CapturedModule) or graph is None:
                raise CutError(f"an exit needs the captured graph, got {type(stages[-1]).__name__}")
            stages[-1:] = divide(stages[-1], before(graph, choice.about.place))
            heads.append(choice.about.head(context.alive, **({} if dtype is None else {"dtype": dtype})))
        thresholds = [float(choice.options[index]) for choice, index in taken]
        return Cascade(stages, heads, thresholds, names=[choice.about.place.name for choice, _ in taken])


def check_thresholds(thresholds: Sequence[float]) -> None:
    """
    Raises:
        ValueError: no thresholds, not falling, or outside of [0, 1].
    """
    values = list(thresholds)
    if not values or values != sorted(set(values), reverse=True) or not 0 <= values[-1] <= values[0] <= 1:
        raise ValueError(
            f"thresholds are probabilities in [0, 1], the highest first, each once; got {values}; "
            f"for instance {list(THRESHOLDS)}"
        )
