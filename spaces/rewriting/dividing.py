"""Dividing as a choice: into how many parallel branches the units of a coupled group fall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..choice import Choice, Option
from ..width.divide import Divider
from ..width.regions import Region
from .regrouping import Regroup
from .rework import Rework

if TYPE_CHECKING:
    from ..costing.cost_tables import Tables


@dataclass(frozen=True)
class Divide(Rework):
    """Units in parallel branches whose partial sums add; ``macs`` and ``params`` stay as they are."""

    region: Region

    def divide(self, divider: Divider, option: Option) -> None:
        divider.divide(self.region, int(option))

    def adjust(
        self, costs: Mapping[str, np.ndarray], option: Option, rows: np.ndarray, tables: Tables
    ) -> None:
        pass

    def share(self, options: np.ndarray, tables: Tables) -> np.ndarray:
        """Share of the units in the largest branch, [n], for the number of branches [n] asked for."""
        kept = np.maximum(tables.count(self.region.labels), 1)
        return np.ceil(kept / np.minimum(options, kept)) / kept


def branch_macs(
    choices: Sequence[Choice], indices: np.ndarray, tables: Tables, macs: np.ndarray
) -> np.ndarray:
    """Multiply-accumulates per sample along the largest branches, if branches run side by side: [n].

    Every call between the makers and the readers of a divided group counts with its largest branch's share of
    units (of the product, where a call is between those of two groups); everything else counts whole. Of a
    layer that is grouped too, each branch is taken to hold the same share of the groups.

    Args:
        indices: [n, choices].
        macs: [n], of all branches together.
    """
    largest: dict[str, np.ndarray] = {}  # call -> share [n]
    grouped: dict[str, np.ndarray] = {}
    for column, choice in enumerate(choices):
        options = np.asarray(choice.options)[indices[:, column]]
        if isinstance(choice.edit, Divide):
            share = choice.edit.share(options, tables)
            for call in choice.edit.region.inside | choice.edit.region.readers:
                largest[call] = largest.get(call, np.ones(len(indices))) * share
        elif isinstance(choice.edit, Regroup):
            grouped[choice.edit.layer.node] = choice.edit.share(options, tables)
    saved = np.zeros(len(indices))
    for call in {name for name, _ in tables.coupling.macs} & largest.keys():
        saved += tables.macs(call) * grouped.get(call, 1.0) * (1 - largest[call])
    return macs - saved
