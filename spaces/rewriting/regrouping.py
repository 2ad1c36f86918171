"""Grouping as a choice: into how many groups that do not mix the channels of a layer fall."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..choice import Option
from ..grouping.assignment import kept_share
from ..grouping.grouper import Grouper
from ..grouping.layers import Layer
from .rework import Rework

if TYPE_CHECKING:
    from ..costing.cost_tables import Tables

_MEGA = 1e6
_INDEX = 8  # bytes of a gathered channel's number


@dataclass(frozen=True)
class Regroup(Rework):
    """A dense layer as groups of outputs that each read a group of inputs alone."""

    layer: Layer
    itemsize: int  # bytes of a weight

    def assign(self, grouper: Grouper, option: Option) -> None:
        grouper.add(self.layer, int(option))

    def adjust(
        self, costs: Mapping[str, np.ndarray], option: Option, rows: np.ndarray, tables: Tables
    ) -> None:
        taking = replace(tables, widths=tables.widths[rows], dropped=tables.dropped[rows])
        lengths = taking.lengths(self.layer.weight)  # zeros where the layer has gone
        gone = 1 - self.share(np.full(len(lengths), int(option)), taking)
        weights = gone * lengths.prod(axis=1)
        macs = gone * taking.macs(self.layer.node)
        gathered = np.where(gone > 0, _INDEX * (lengths[:, 0] + lengths[:, 1]), 0.0)
        size = (self.itemsize * weights - gathered) / _MEGA
        less = {"macs": macs, "flops": 2 * macs, "params": weights, "size_mb": size, "memory_mb": size}
        for name, amount in less.items():
            costs[name][rows] -= amount

    def share(self, options: np.ndarray, tables: Tables) -> np.ndarray:
        """Share of the layer's weights that stays, [n], for the number of groups [n] asked for."""
        lengths = tables.lengths(self.layer.weight)[:, :2]
        groups = np.maximum(np.minimum(options, lengths.min(axis=1)), 1)
        share = kept_share(lengths[:, 0], lengths[:, 1], groups)
        return np.where(lengths.prod(axis=1) > 0, share, 1.0)
