"""Branches: after which module the network falls apart, each part for some of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from ....model.captured_module import CapturedModule
from ....model.cost_tables import Tables
from ....model.stages.functional import CutError
from ...choice import Choice
from ..base import Context, Found, Kind, Making, Many, Taken
from ..exits.places import before, class_count, find_places, named
from ..exits.segments import divide
from .assignment import assign, cluster_classes, energies
from .module import Branches
from .tail import Branch, find_tail

if TYPE_CHECKING:
    from ....model.facts import Facts

LEAST = 0.25  # of the work, before and behind a place that is taken by itself
WORTH = 0.98  # of the work: branches that need more are not worth having
BY = ("weights", "outputs")
TOGETHER = ("branches", "prune", "drop")  # kinds that know of each other's effects


@dataclass(frozen=True, kw_only=True)
class BranchesKind(Kind):
    """One choice ``branches:<module>``: how many branches there are behind that module (Kim et al. 2017)."""

    branches: Sequence[int] = (1, 2, 4)  # numbers of branches, 1 (unchanged) first
    branch_place: str | None = None  # module behind which they begin; by default see :meth:`find`
    classes_by: str = "weights"  # what similar classes share: rows of the last layer, or "outputs"

    done: ClassVar[str] = "divided into branches"
    rewrites: ClassVar[bool] = True
    measured: ClassVar[tuple[str, ...]] = ("activation_mb",)

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

    def find(self, facts: Facts, making: Making) -> Found:
        """One choice, or none where nothing behind any place can be divided.

        By default at the place, of those with at least a quarter of the work before them and a quarter
        behind, at which the fewest branches need the fewest multiply-accumulates.

        Raises:
            ValueError: the network is no classifier that ends in a linear layer; an unknown ``branch_place``;
                nothing is saved.
        """
        module, coupling = facts.captured.graph_module, facts.coupling
        try:
            places, classes = find_places(module.graph, coupling), class_count(module.graph)
            if self.branch_place is not None:
                places = tuple(named(places, [self.branch_place], "branches"))
            tails = [find_tail(module, coupling, facts.groups, p) for p in places]
        except CutError as error:
            raise CutError(f"this network can have no branches: {error}") from None
        numbers = [n for n in self.branches if 1 < n <= classes]
        able = [(p, t) for p, t in zip(places, tails, strict=True) if t.groups]
        if not able or not numbers:
            return Found([])
        vectors = self._vectors(facts, making, able[0][1].weight)
        sets = {n: cluster_classes(vectors, n) for n in numbers}
        offered = [
            Choice(f"branches:{p.name}", (1, *sorted(sets)), self, Branch(p, t, dict(sets))) for p, t in able
        ]
        if self.branch_place is not None:
            return Found(offered)
        middle = [c for c, (p, _) in zip(offered, able, strict=True) if LEAST <= p.share <= 1 - LEAST]
        ratios = [self._ratio(facts, c) for c in middle or offered]
        best = int(np.argmin(ratios))
        if ratios[best] > WORTH:
            raise CutError(
                f"branches save less than {1 - WORTH:.0%} wherever they begin: the same channels are carried "
                "through the whole network; branch_place='<module>' makes them all the same"
            )
        return Found([(middle or offered)[best]])

    def _ratio(self, facts: Facts, choice: Choice) -> float:
        """Multiply-accumulates with the fewest branches, relative to those of the unchanged network."""
        widths = np.array([[g.size for g in facts.coupling.groups]] * 2, dtype=np.int64)
        dropped = np.zeros((2, len(facts.all_blocks)), dtype=bool)
        costs = facts.costs.evaluate(widths, dropped)
        self.costs([(choice, np.array([0, 1]))], costs, Tables(facts, widths, dropped))
        whole, after = costs["macs"]
        return float(after / whole)

    def _vectors(self, facts: Facts, making: Making, weight: str) -> np.ndarray:
        """[classes, d]: what is compared."""
        if self.classes_by == "weights":
            return facts.surgeon.tensors[facts.coupling.canonical[weight]].detach().double().cpu().numpy()
        if not making.batches:
            raise ValueError("classes_by='outputs' needs calibration: space(..., calibration=batches)")
        model = facts.captured.source
        with torch.no_grad():
            outputs = torch.cat([model(*args, **kwargs) for args, kwargs in making.batches])
        return torch.softmax(outputs.double(), 1).T.cpu().numpy()

    def recorded(self) -> dict[str, Any]:
        return {**super().recorded(), "branches": [int(n) for n in self.branches]}

    def costs(self, many: Many, costs: dict[str, np.ndarray], tables: Tables) -> None:
        for choice, column in many:
            for index, option in enumerate(choice.options[1:], start=1):
                rows = column == index
                if rows.any():
                    choice.about.adjust(costs, int(option), rows, tables)

    def wrap(self, network: nn.Module, taken: Taken, context: Context) -> nn.Module:
        """A trunk and branches, each the pruned network on its own units, repaired.

        Raises:
            CutError: the network was changed in other ways already.
        """
        for choice, index in taken:
            if index:
                network = self._branched(network, choice.about, int(choice.options[index]), context)
        return network

    def _branched(self, network: nn.Module, about: Branch, count: int, context: Context) -> nn.Module:
        surgeon, parts = context.facts.surgeon, about.classes[count]
        if not isinstance(network, CapturedModule) or surgeon.module is None:
            raise CutError(f"branches need the captured graph, got {type(network).__name__}")
        names = before(surgeon.module.graph, about.place)
        groups = [g for g in surgeon.coupling.groups if g.name in about.tail.groups]
        scores = surgeon.coupling.canonical[about.tail.weight]
        found = energies(groups, surgeon.coupling, surgeon.tensors, scores)
        owner = assign(groups, context.alive[: surgeon.coupling.units + 1], found, parts)
        branches = []
        for k, members in enumerate(parts):
            alive = context.alive.copy()
            alive[: len(owner)] &= (owner < 0) | (owner == k)
            _, branch = divide(surgeon.graph(alive, context.mend), names)
            about.restrict(branch, members)
            branches.append(branch)
        return Branches(divide(network, names)[0], branches, parts)
