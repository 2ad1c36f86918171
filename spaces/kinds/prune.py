"""Pruning: how many units of each coupled group stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..choice import Choice
from ..prune import pruning_choice
from .base import Kind, Making

if TYPE_CHECKING:
    from ..blueprint import Blueprint


@dataclass(frozen=True, kw_only=True)
class Pruning(Kind):
    """A choice ``prune:<group>`` for every proven group; its options are those that all kinds share."""

    done: ClassVar[str] = "pruned"

    def choices(self, blueprint: Blueprint, making: Making) -> list[Choice]:
        return [
            pruning_choice(
                g,
                least=making.least.get(g.name, 1),
                ratios=making.ratios,
                round_to=making.round_to,
                order=making.order,
            )
            for g in blueprint.groups
        ]
