"""Mask: which share of each weight is set to zero in place, after pruning and repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from ....model.compensation import Columns, compensate, covered, sparsified
from ....model.repair.consumers import output_axis
from ...choice import Choice, Option
from ..base import Found, Kind, Making, Many, Taken
from ..bits import multiplied
from .program import Pattern, Quota, Sparsify, make_masks, removed_blocks

if TYPE_CHECKING:
    from ....model.cost_tables import Tables
    from ....model.facts import Facts
    from ....model.operators.substitution import Planting
    from ....model.repair import Calibration
    from ....model.surgery import Mend

SPARSITIES = (0.0, 0.25, 0.5, 0.75, 0.875)
SPAN = 128  # columns whose zeros are chosen together


@dataclass(frozen=True, slots=True)
class SparseWeight:
    """What a choice is about: a weight, of which some numbers are set to zero."""

    parameter: str  # canonical name
    granularity: str
    norm: int
    axis: int  # along its inputs
    compensated: bool

    def step(self, option: Option) -> Sparsify | Pattern:
        """What one option does."""
        if isinstance(option, str):
            return Pattern.read(option)
        return Sparsify(float(option), self.granularity, self.norm)

    def zeros(self, option: Option, lengths: np.ndarray) -> np.ndarray:
        """How many numbers the mask of an option sets to zero.

        Args:
            lengths: [n, axes] of the weight in each of n networks; all 0 where it is not there.

        Returns:
            float64 [n].
        """
        step = self.step(option)
        if isinstance(step, Pattern):
            inputs = lengths[:, self.axis]
            return step.zeros(inputs) * (lengths.prod(axis=1) / np.maximum(inputs, 1))
        taken = {"element": slice(None), "kernel": slice(0, 2), "row": slice(0, 1), "column": slice(1, 2)}
        blocks = lengths[:, taken[self.granularity]].prod(axis=1)
        removed = np.array([removed_blocks(step.amount, int(b)) if b else 0 for b in blocks])
        return removed * (lengths.prod(axis=1) / np.maximum(blocks, 1))

    def mask(self, weight: torch.Tensor, step: Sparsify | Pattern) -> torch.Tensor:
        """Which numbers of a sliced weight stay by their size, bool."""
        if isinstance(step, Pattern):
            return step.pick(weight.abs().movedim(self.axis, -1)).movedim(-1, self.axis)
        return make_masks({"": weight}, [step])[""]


@dataclass(frozen=True, kw_only=True)
class MaskKind(Kind):
    """A choice ``mask:<weight>`` for every weight that is multiplied with: shares of its blocks, 0.0 first,
    and patterns such as ``"2:4"`` (see :class:`Pattern`).

    With calibration data, patterns and shares of single numbers are chosen, column by column, by what their
    absence costs given the inputs' second moments, and the columns after make up for it (SparseGPT: Frantar &
    Alistarh 2023, arXiv 2301.00774); ``masking="plain"`` takes the smallest, as without data.

    ``nonzeros`` is a cost of such spaces: the parameters that no mask sets to zero.

    Raises:
        ValueError: shares that do not start with 0 or do not rise, or what is none (:class:`Sparsify`,
            :class:`Pattern`).
    """

    sparsities: Sequence[float | str] = SPARSITIES  # shares of a weight that are set to zero, 0 first; n:m
    granularity: str = "element"  # see :class:`Sparsify`
    norm: int = 1
    masking: Literal["compensated", "plain"] = "compensated"

    done: ClassVar[str] = "masked"
    switches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.masking not in ("compensated", "plain"):
            raise ValueError(f"masking is 'compensated' or 'plain', got {self.masking!r}")
        about = SparseWeight("", self.granularity, self.norm, 1, False)
        shares = [about.step(option).amount for option in self.options]
        if not shares or shares[0] != 0.0 or any(a >= b for a, b in pairwise(shares)):
            raise ValueError(f"sparsities start with 0 and rise, got {list(self.sparsities)}")

    @property
    def options(self) -> tuple[float | str, ...]:
        """Of each choice."""
        return tuple(s if isinstance(s, str) and ":" in s else float(s) for s in self.sparsities)

    def find(self, facts: Facts, making: Making) -> Found:
        tensors = facts.surgeon.tensors
        made: list[Choice] = []
        reasons: dict[str, str] = {}
        for weight, calls in multiplied(facts.captured.graph_module.graph, facts.coupling).items():
            axis = 1 - output_axis(*calls[0])
            inputs = tensors[weight].shape[axis]
            compensated = self.masking == "compensated" and self.granularity == "element"
            about = SparseWeight(weight, self.granularity, self.norm, axis, compensated)
            wide = [o for o in self.options if isinstance(o, str) and Pattern.read(o).m > inputs]
            options = tuple(o for o in self.options if o not in wide)
            if wide:
                reasons[f"mask:{weight}"] = f"has {inputs} inputs, fewer than the pattern {wide[0]} counts"
            if len(options) > 1:
                made.append(Choice(f"mask:{weight}", options, self, about))
        return Found(made, reasons)

    def recorded(self) -> dict[str, Any]:
        return {**super().recorded(), "sparsities": list(self.options)}

    def costs(self, many: Many, costs: dict[str, np.ndarray], tables: Tables) -> None:
        costs["nonzeros"] = costs["params"].copy()
        for choice, column in many:
            about: SparseWeight = choice.about
            lengths = tables.lengths(about.parameter)
            for index, option in enumerate(choice.options):
                rows = column == index
                costs["nonzeros"][rows] -= about.zeros(option, lengths[rows])

    def falling(self, choices: Sequence[Choice], names: Sequence[str]) -> Sequence[str]:
        # Numbers are set to zero: other costs stay as they are. Of odd widths a pattern clears less.
        steps = [c.about.step(o) for c in choices for o in c.options]
        return [n for n in names if n != "nonzeros" or not any(isinstance(s, Pattern) for s in steps)]

    def mend(
        self, taken: Taken, calibration: Calibration | None = None, planting: Planting | None = None
    ) -> Mend | None:
        steps = [(c.about, c.about.step(c.options[i])) for c, i in taken if i]
        return partial(mask_weights, steps, calibration) if steps else None


def mask_weights(
    masks: Sequence[tuple[SparseWeight, Sparsify | Pattern]],
    calibration: Calibration | None,
    alive: np.ndarray,
    made: Mapping[str, Any],
) -> None:
    """Set numbers of sliced weights to zero, in place; a :data:`Mend` once bound.

    Args:
        calibration: moments of what the uncut network's layers read.
        made: sliced parameters by canonical name.
    """
    consumers = {} if calibration is None else {c.weight: c for c in calibration.consumers}
    for about, step in masks:
        weight = made[about.parameter].detach()
        consumer = consumers.get(about.parameter) if about.compensated else None
        if calibration is None or consumer is None or not covered(calibration, consumer, alive):
            weight.mul_(about.mask(weight, step))
            continue
        change = partial(
            _sparsify, step, calibration.sources[consumer.source].taps, Quota(step.amount, weight.numel())
        )
        shift = compensate(weight, calibration, consumer, alive, change, torch.clone)
        if consumer.offset is not None:
            offset, sign = consumer.offset
            made[offset].detach().add_(shift.to(made[offset].dtype), alpha=sign)


def _sparsify(step: Sparsify | Pattern, taps: int, quota: Quota, _: int, columns: Columns) -> torch.Tensor:
    count = len(columns.at)
    if isinstance(step, Pattern):
        return sparsified(columns, taps, step.spans(count // taps) * taps, step.pick)
    return sparsified(columns, taps, [min(SPAN, count - at) for at in range(0, count, SPAN)], quota.pick)
