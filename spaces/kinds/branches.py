"""Branches: after which module the network falls apart, each part for some of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..branches.choice import branching_choice, find_tail
from ..branches.classes import cluster_classes
from ..choice import Choice
from ..exits.places import class_count, find_places, named
from ..stages.functional import CutError
from .base import Kind, Making

if TYPE_CHECKING:
    from ..blueprint import Blueprint

LEAST = 0.25  # of the work, before and behind a place that is taken by itself
WORTH = 0.98  # of the work: branches that need more are not worth having
BY = ("weights", "outputs")
TOGETHER = ("branches", "prune", "drop")  # kinds that know of each other's effects


@dataclass(frozen=True, kw_only=True)
class Branching(Kind):
    """One choice ``branches:<module>``: how many branches there are behind that module (Kim et al. 2017)."""

    branches: Sequence[int] = (1, 2, 4)  # numbers of branches, 1 (unchanged) first
    branch_place: str | None = None  # module behind which they begin; by default see :meth:`choices`
    classes_by: str = "weights"  # what similar classes share: rows of the last layer, or "outputs"

    done: ClassVar[str] = "divided into branches"

    def __post_init__(self) -> None:
        numbers = list(self.branches)
        if len(numbers) < 2 or numbers[0] != 1 or numbers != sorted(set(numbers)):
            raise ValueError(f"numbers of branches begin with 1 and rise, such as 1, 2, 4; got {numbers}")
        if self.classes_by not in BY:
            raise ValueError(f"classes are told apart by {' or '.join(BY)}, got {self.classes_by!r}")

    def goes_with(self, kinds: Sequence[str]) -> None:
        if clash := [kind for kind in kinds if kind not in TOGETHER]:
            raise ValueError(
                f"branches and {clash[0]} cannot be in one space; branches go with "
                f"{' and '.join(k for k in TOGETHER if k != 'branches')}"
            )

    def choices(self, blueprint: Blueprint, making: Making) -> list[Choice]:
        """One choice, or none where nothing behind any place can be divided.

        By default at the place, of those with at least a quarter of the work before them and a quarter
        behind, at which the fewest branches need the fewest multiply-accumulates.

        Raises:
            ValueError: the network is no classifier that ends in a linear layer; an unknown ``branch_place``;
                nothing is saved.
        """
        module, coupling = blueprint.captured.graph_module, blueprint.coupling
        try:
            places, classes = find_places(module.graph, coupling), class_count(module.graph)
            if self.branch_place is not None:
                places = tuple(named(places, [self.branch_place], "branches"))
            tails = [find_tail(module, coupling, blueprint.groups, p) for p in places]
        except CutError as error:
            raise CutError(f"this network can have no branches: {error}") from None
        numbers = [n for n in self.branches if 1 < n <= classes]
        able = [(p, t) for p, t in zip(places, tails, strict=True) if t.groups]
        if not able or not numbers:
            return []
        vectors = self._vectors(blueprint, able[0][1].weight)
        sets = {n: cluster_classes(vectors, n) for n in numbers}
        offered = [branching_choice(p, t, sets) for p, t in able]
        if self.branch_place is not None:
            return offered
        middle = [c for c, (p, _) in zip(offered, able, strict=True) if LEAST <= p.share <= 1 - LEAST]
        costs = [blueprint.cost_arrays((c,), np.array([[0], [1]]))["macs"] for c in middle or offered]
        ratios = [float(after / whole) for whole, after in costs]
        best = int(np.argmin(ratios))
        if ratios[best] > WORTH:
            raise CutError(
                f"branches save less than {1 - WORTH:.0%} wherever they begin: the same channels are carried "
                "through the whole network; branch_place='<module>' makes them all the same"
            )
        return [(middle or offered)[best]]

    def _vectors(self, blueprint: Blueprint, weight: str) -> np.ndarray:
        """[classes, d]: what is compared."""
        import torch

        if self.classes_by == "weights":
            return blueprint.surgeon.tensors[blueprint.coupling.canonical[weight]].detach().double().numpy()
        batches = blueprint.mending.batches
        if not batches:
            raise ValueError("classes_by='outputs' needs calibration: space(..., calibration=batches)")
        model = blueprint.captured.source
        with torch.no_grad():
            outputs = torch.cat([model(*args, **kwargs) for args, kwargs in batches])
        return torch.softmax(outputs.double(), 1).T.numpy()

    def recorded(self) -> dict[str, Any]:
        return {**super().recorded(), "branches": [int(n) for n in self.branches]}
