"""Mask: which share of each weight is set to zero in place, after pruning and repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...choice import Choice
from ..base import Found, Kind, Making, Many, Taken
from ..bits import multiplied
from .program import Sparsify, make_masks, removed_blocks

if TYPE_CHECKING:
    from ....model.cost_tables import Tables
    from ....model.facts import Facts
    from ....model.operators.substitution import Planting
    from ....model.repair import Calibration
    from ....model.surgery import Mend

SPARSITIES = (0.0, 0.25, 0.5, 0.75, 0.875)


@dataclass(frozen=True, slots=True)
class SparseWeight:
    """What a choice is about: a weight, whose weakest blocks are set to zero."""

    parameter: str  # canonical name
    granularity: str
    norm: int

    def step(self, sparsity: float) -> Sparsify:
        """The program of one option."""
        return Sparsify(sparsity, self.granularity, self.norm)

    def zeros(self, sparsity: float, lengths: np.ndarray) -> np.ndarray:
        """How many numbers the mask of an option sets to zero.

        Args:
            lengths: [n, axes] of the weight in each of n networks; all 0 where it is not there.

        Returns:
            float64 [n].
        """
        taken = {"element": slice(None), "kernel": slice(0, 2), "row": slice(0, 1), "column": slice(1, 2)}
        blocks = lengths[:, taken[self.granularity]].prod(axis=1)
        removed = np.array([removed_blocks(sparsity, int(b)) if b else 0 for b in blocks])
        return removed * (lengths.prod(axis=1) / np.maximum(blocks, 1))


@dataclass(frozen=True, kw_only=True)
class MaskKind(Kind):
    """A choice ``mask:<weight>`` for every weight that is multiplied with: shares of its blocks, 0.0 first.

    ``nonzeros`` is a cost of such spaces: the parameters that no mask sets to zero.

    Raises:
        ValueError: shares that do not start with 0 or do not rise, or see :class:`Sparsify`.
    """

    sparsities: Sequence[float] = SPARSITIES  # shares of a weight that are set to zero, 0 first
    granularity: str = "element"  # see :class:`Sparsify`
    norm: int = 1

    done: ClassVar[str] = "masked"
    switches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        shares = [float(s) for s in self.sparsities]
        if not shares or shares[0] != 0.0 or any(a >= b for a, b in pairwise(shares)):
            raise ValueError(f"sparsities start with 0 and rise, got {shares}")
        for share in shares:
            Sparsify(share, self.granularity, self.norm)

    def find(self, facts: Facts, making: Making) -> Found:
        shares = tuple(float(s) for s in self.sparsities)
        weights = multiplied(facts.captured.graph_module.graph, facts.coupling)
        abouts = [SparseWeight(weight, self.granularity, self.norm) for weight in weights]
        return Found([Choice(f"mask:{about.parameter}", shares, self, about) for about in abouts])

    def recorded(self) -> dict[str, Any]:
        return {**super().recorded(), "sparsities": [float(s) for s in self.sparsities]}

    def costs(self, many: Many, costs: dict[str, np.ndarray], tables: Tables) -> None:
        costs["nonzeros"] = costs["params"].copy()
        for choice, column in many:
            about: SparseWeight = choice.about
            lengths = tables.lengths(about.parameter)
            for index, share in enumerate(choice.options):
                rows = column == index
                costs["nonzeros"][rows] -= about.zeros(float(share), lengths[rows])

    def falling(self, choices: Sequence[Choice], names: Sequence[str]) -> Sequence[str]:
        return names  # numbers are set to zero: those costs stay as they are

    def mend(
        self, taken: Taken, calibration: Calibration | None = None, planting: Planting | None = None
    ) -> Mend | None:
        steps = {c.about.parameter: c.about.step(float(c.options[i])) for c, i in taken if i}
        return partial(mask_weights, steps) if steps else None


def mask_weights(masks: Mapping[str, Sparsify], alive: Any, made: Mapping[str, Any]) -> None:
    """Set the weakest blocks of sliced weights to zero, in place; a :data:`Mend` once bound.

    Args:
        masks: step by canonical name.
        made: sliced parameters by canonical name.
    """
    for name, step in masks.items():
        weight = made[name].detach()
        weight.mul_(make_masks({name: weight}, [step])[name])
