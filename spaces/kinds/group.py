"""Grouping: channels of dense layers in groups that do not mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..choice import Choice
from ..grouping.layers import dense_layers
from ..rewriting.regrouping import Regroup
from .base import Kind, Making
from .width import check_rising

if TYPE_CHECKING:
    from ..blueprint import Blueprint

LEAST = 2  # channels of a group, on both sides of the unpruned layer


@dataclass(frozen=True, kw_only=True)
class Grouping(Kind):
    """A choice ``group:<layer>`` for every dense convolution and linear layer that only its own call reads.

    Options: 1 (unchanged), then numbers of groups, where every group of the unpruned layer has at least two
    inputs and outputs.
    """

    groups: Sequence[int] = (2, 4, 8)

    done: ClassVar[str] = "grouped"

    def __post_init__(self) -> None:
        check_rising("groups", self.groups)

    def goes_with(self, kinds: Sequence[str]) -> None:
        if "mask" in kinds:
            raise ValueError(
                "group and mask cannot be searched together: refitting a grouped layer fills what is masked"
            )

    def choices(self, blueprint: Blueprint, making: Making) -> list[Choice]:
        layers, reasons = dense_layers(blueprint.captured.graph_module.graph, blueprint.coupling)
        made: list[Choice] = []
        for layer in layers:
            most = min(layer.outputs, layer.inputs) // LEAST
            options = [g for g in self.groups if g <= most]
            if options:
                itemsize = blueprint.surgeon.tensors[layer.weight].element_size()
                made.append(Choice(f"group:{layer.name}", (1, *options), Regroup(layer, itemsize)))
            else:
                reasons[layer.name] = f"has {layer.inputs} inputs and {layer.outputs} outputs: too few"
        blueprint.kinds_left_out.update({f"group:{k}": v for k, v in reasons.items()})
        return made
