"""Bypass: what stands in the place of a residual block's branch, beside the shortcut: y = x + g(x)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ...model.operators.place import Place, Substitution, place_beside
from ...model.operators.site import operator
from ...model.operators.substitution import counted
from ..choice import Choice
from .base import Drops, Found, Kind, Making, Many, Taken
from .operators import KEEP, Replaced, charge, cheaper, worth

if TYPE_CHECKING:
    from ...model.blocks import Block
    from ...model.cost_tables import Tables
    from ...model.facts import Facts

LINEAR = "linear"
IDENTITY = "identity"
USUAL = (LINEAR, "svd", "separable")


@dataclass(frozen=True, kw_only=True)
class BypassKind(Kind):
    """A choice ``bypass:<block>`` for every proven residual block: attention, an MLP, convolutions.

    Options: ``keep``, then ``<operator>:<size>`` in the place of the branch from the dearest to the cheapest,
    then ``identity``, the block dropped. Operators stand for the one linear map that is closest to the branch
    on the calibration data (``linear:3`` is that map, of kernel 3), and are fitted to what the original block
    gave, from what reaches them in the smaller network. Without calibration data, or where the repair does
    not run layer by layer, only ``keep`` and ``identity`` are there.

    Where no operators are named, ``linear``, ``svd`` and ``separable`` are tried, and those offered that lie
    on the front of error against multiply-accumulates and size.

    Raises:
        ValueError: an unknown operator.
    """

    bypass_operators: Sequence[str] = ()

    done: ClassVar[str] = "bypassed"
    rewrites: ClassVar[bool] = True
    turn: ClassVar[int] = 0  # as of operators

    def __post_init__(self) -> None:
        for name in self.bypass_operators:
            operator(name)

    def goes_with(self, kinds: Sequence[str]) -> None:
        if "drop" in kinds:
            raise ValueError(
                "bypass and drop cannot be searched together: the last option of every bypass is the block "
                "dropped; leave out drop"
            )
        if others := [kind for kind in kinds if kind in ("group", "width", "branches", "mask", "exits")]:
            raise ValueError(
                f"bypass and {others[0]} cannot be searched together: both change the same layers; search "
                "one after the other, on the exported network"
            )

    def find(self, facts: Facts, making: Making) -> Found:
        facts.prove_blocks(progress=making.progress)
        graph, captured = facts.captured.graph_module.graph, facts.captured
        found: list[Replaced] = []
        reasons: dict[str, str] = {}
        for block in facts.blocks:
            place = place_beside(block, graph, facts.coupling, captured.batch)
            if isinstance(place, str):
                reasons[f"bypass:{block.name}"] = place
            else:
                found.append(self._about(block, place, facts, fitted=making.run is not None))
        if making.run is not None and not self.bypass_operators:
            left = {a.place: a for a in worth(found, facts, making.run, {}, by="macs")}
            found = [left.get(a.place, a) for a in found]
        made = [Choice(f"bypass:{a.place.name}", (KEEP, *a.by, IDENTITY), self, a) for a in found]
        return Found(made, reasons)

    def _about(self, block: Block, place: Place, facts: Facts, *, fitted: bool) -> Replaced:
        """What is cheaper than the branch."""
        assert place.around is not None
        kept = next(n for n in facts.captured.graph_module.graph.nodes if n.name == block.keep)
        value, sides = kept.meta["val"], (place.around.kernel,) * len(place.stride)
        shape = (*[value.shape[place.axis]] * 2, *sides)
        names = (self.bypass_operators or USUAL) if fitted else ()
        by = cheaper(place, shape, value.dtype, names, narrow=False)[0]
        if LINEAR in names:
            side = max(sides, default=1)
            by = {f"{LINEAR}:{side}": Substitution(place, LINEAR, side), **by}
        for label, taken in list(by.items()):
            cost = counted(taken.anonymous, shape, value.dtype)
            if cost.macs * place.calls >= block.macs and cost.params >= block.params:
                del by[label]
        return Replaced(place, shape, value.dtype, by)

    def keeps(self, choice: Choice) -> Sequence[Drops]:
        return (Drops(choice.about.place.name, frozenset(choice.options[1:])),)

    def replaces(self, choice: Choice, index: int) -> Mapping[str, Substitution]:
        about: Replaced = choice.about
        taken = about.by.get(str(choice.options[index]))
        return {} if taken is None else {about.place.node: taken}

    def costs(self, many: Many, costs: dict[str, np.ndarray], tables: Tables) -> None:
        used = []
        for choice, column in many:
            number = {label: i for i, label in enumerate(choice.about.by, start=1)}
            at = np.array([number.get(str(option), 0) for option in choice.options])
            used.append((choice.about, at[column]))
        charge(used, costs, tables)

    def key(self, taken: Taken) -> bytes:
        stands = [(c.name, c.options[i]) for c, i in taken if self.replaces(c, i)]
        return repr(stands).encode() if stands else b""
