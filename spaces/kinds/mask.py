"""Masking: which share of each weight is set to zero in place, after pruning and repair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..choice import Choice
from ..masks.choice import SPARSITIES, maskable, masking_choice
from .base import Kind, Making

if TYPE_CHECKING:
    from ..blueprint import Blueprint


@dataclass(frozen=True, kw_only=True)
class Masking(Kind):
    """A choice ``mask:<weight>`` for every weight that is multiplied with."""

    sparsities: Sequence[float] = SPARSITIES  # shares of a weight that are set to zero, 0 first
    granularity: str = "element"  # see :class:`..masks.Sparsify`
    norm: int = 1

    done: ClassVar[str] = "masked"

    def choices(self, blueprint: Blueprint, making: Making) -> list[Choice]:
        weights = maskable(blueprint.captured.graph_module.graph, blueprint.coupling)
        options: dict[str, Any] = {"granularity": self.granularity, "norm": self.norm}
        return [masking_choice(w, sparsities=self.sparsities, **options) for w in weights]

    def recorded(self) -> dict[str, Any]:
        return {**super().recorded(), "sparsities": [float(s) for s in self.sparsities]}
