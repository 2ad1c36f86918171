"""Early exits as choices: whether samples may leave after a module, and from which confidence on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import nn

from ..captured_module import CapturedModule
from ..choice import Choice, Option
from ..rewriting.rewrite import Built, Rewrite
from ..stages.functional import CutError
from .cascade import Cascade
from .head import Head, grid_of
from .places import Place, before
from .segments import divide

if TYPE_CHECKING:
    from ..costing.cost_tables import Tables

NONE = "none"
THRESHOLDS = (0.99, 0.95, 0.9, 0.8, 0.6)


@dataclass(frozen=True, eq=False)
class Exit(Rewrite):
    """What an exit choice does to a model: divides it there, and lets confident samples leave."""

    place: Place
    classes: int

    measured: ClassVar[tuple[str, ...]] = ("macs", "flops")  # by how many samples leave

    def wrap(self, network: nn.Module, option: Option, built: Built) -> nn.Module:
        """A cascade of one stage more. Its heads are fitted by :meth:`Cascade.refit`.

        Raises:
            CutError: what is there is no captured graph any more, or cannot be divided at this place.
        """
        known = network if isinstance(network, Cascade) else None
        stages = [network] if known is None else list(known.stages)
        graph = None if built.surgeon.module is None else built.surgeon.module.graph
        if not isinstance(stages[-1], CapturedModule) or graph is None:
            raise CutError(f"an exit needs the captured graph, got {type(stages[-1]).__name__}")
        first, second = divide(stages[-1], before(graph, self.place))
        place, labels = self.place, self.place.labels
        width = (
            place.shape[place.channels - 1] if labels is None else int(np.count_nonzero(built.alive[labels]))
        )
        dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)
        head = Head(
            width, place.channels, self.grid, self.classes, **({} if dtype is None else {"dtype": dtype})
        )
        return Cascade(
            [*stages[:-1], first, second],
            [*(known.heads if known else ()), head],
            [*(known.thresholds if known else ()), float(option)],
            names=[*(known.names if known else ()), place.name],
        )

    @property
    def grid(self) -> tuple[int, ...]:
        """Of the unchanged network, so that pruning makes heads smaller and nothing else."""
        return grid_of(self.place.shape, self.place.channels)

    def adjust(
        self, costs: Mapping[str, np.ndarray], option: Option, rows: np.ndarray, tables: Tables
    ) -> None:
        """Add the head's weights, and its features and scores; ``macs`` is measured."""
        place = self.place
        width = place.shape[place.channels - 1] if place.labels is None else tables.count(place.labels)[rows]
        features = width * float(np.prod(self.grid))
        params = (features + 1) * self.classes
        costs["params"][rows] += params
        if "nonzeros" in costs:
            costs["nonzeros"][rows] += params
        costs["size_mb"][rows] += params * 4 / 1e6
        costs["memory_mb"][rows] += params * 4 / 1e6
        costs["activation_mb"][rows] += (features + self.classes) * 4 / 1e6


def exit_choice(place: Place, classes: int, thresholds: Sequence[float]) -> Choice:
    """Choice ``exit:<place>`` with options ``"none"`` (unchanged), then thresholds, falling.

    Raises:
        ValueError: no thresholds, not falling, or outside of (0, 1].
    """
    check_thresholds(thresholds)
    options: tuple[Option, ...] = (NONE, *(float(t) for t in thresholds))
    return Choice(f"exit:{place.name}", options, edit=Exit(place, classes))


def check_thresholds(thresholds: Sequence[float]) -> None:
    """
    Raises:
        ValueError: see :func:`exit_choice`.
    """
    values = list(thresholds)
    if not values or values != sorted(set(values), reverse=True) or not 0 <= values[-1] <= values[0] <= 1:
        raise ValueError(
            f"thresholds are probabilities in [0, 1], the highest first, each once; got {values}; "
            f"for instance {list(THRESHOLDS)}"
        )
