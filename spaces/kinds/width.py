"""Dividing: units of coupled groups in parallel branches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..choice import Choice
from ..rewriting.dividing import Divide
from ..width.proof import prove_regions
from ..width.regions import find_regions
from .base import Kind, Making

if TYPE_CHECKING:
    from ..blueprint import Blueprint


@dataclass(frozen=True, kw_only=True)
class Dividing(Kind):
    """A choice ``width:<group>`` for every proven group whose units can be computed apart.

    Options: 1 (unchanged), then numbers of parallel branches.
    """

    parallel: Sequence[int] = (2, 4)

    done: ClassVar[str] = "divided into branches"

    def __post_init__(self) -> None:
        check_rising("parallel", self.parallel)

    def choices(self, blueprint: Blueprint, making: Making) -> list[Choice]:
        regions, reasons = find_regions(blueprint.captured.graph_module.graph, blueprint.coupling)
        proven = {g.name: g for g in blueprint.groups}
        regions = {name: region for name, region in regions.items() if name in proven}
        reasons |= prove_regions(blueprint.captured, blueprint.surgeon, regions)
        blueprint.kinds_left_out.update({f"width:{k}": v for k, v in reasons.items() if k in proven})
        return [
            Choice(
                f"width:{name}", (1, *(b for b in self.parallel if b <= proven[name].size)), Divide(region)
            )
            for name, region in regions.items()
            if name not in reasons
        ]


def check_rising(name: str, numbers: Sequence[int]) -> None:
    if list(numbers) != sorted(set(numbers)) or any(n < 2 or int(n) != n for n in numbers) or not numbers:
        raise ValueError(f"{name} are rising whole numbers from 2, got {list(numbers)}")
