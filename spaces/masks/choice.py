"""Masking as a choice: the share of a weight's blocks that is set to zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from torch import fx

from ..choice import Choice
from ..coupling import Coupling
from .program import Sparsify, make_masks, removed_blocks

SPARSITIES = (0.0, 0.25, 0.5, 0.75, 0.875)


@dataclass(frozen=True, slots=True)
class Mask:
    """What a masking choice does to a model: set the weakest blocks of a weight to zero, in place."""

    parameter: str  # canonical name
    granularity: str
    norm: int

    def step(self, sparsity: float) -> Sparsify:
        """The program of one option."""
        return Sparsify(sparsity, self.granularity, self.norm)


def masking_choice(parameter: str, *, sparsities: Sequence[float], granularity: str, norm: int) -> Choice:
    """Choice ``mask:<parameter>`` whose options are shares of its blocks, 0.0 first.

    Raises:
        ValueError: shares that do not start with 0 or do not rise, or see :class:`Sparsify`.
    """
    shares = [float(s) for s in sparsities]
    if not shares or shares[0] != 0.0 or any(a >= b for a, b in pairwise(shares)):
        raise ValueError(f"sparsities start with 0 and rise, got {shares}")
    edit = Mask(parameter, granularity, norm)
    for share in shares:
        edit.step(share)
    return Choice(f"mask:{parameter}", tuple(shares), edit=edit)


def maskable(graph: fx.Graph, coupling: Coupling) -> list[str]:
    """Canonical names of the weights [out, in, ...] that are multiplied with, in the graph's order."""
    found: dict[str, None] = {}
    counted = {node for node, _ in coupling.macs}
    for node in graph.nodes:
        if node.name in counted:
            for operand in node.all_input_nodes:
                if operand.op == "get_attr" and operand.meta["val"].dim() > 1:
                    found[coupling.canonical[str(operand.target)]] = None
    return list(found)


def mask_weights(masks: Mapping[str, Sparsify], alive: Any, made: Mapping[str, Any]) -> None:
    """Set the weakest blocks of sliced weights to zero, in place; a :data:`..surgery.Mend` once bound.

    Args:
        masks: step by canonical name.
        made: sliced parameters by canonical name.
    """
    for name, step in masks.items():
        weight = made[name].detach()
        weight.mul_(make_masks({name: weight}, [step])[name])


def zeros(mask: Mask, sparsity: float, lengths: np.ndarray) -> np.ndarray:
    """How many numbers the mask of an option sets to zero.

    Args:
        lengths: [n, axes] of the weight in each of n networks; all 0 where it is not there.

    Returns:
        float64 [n].
    """
    taken = {"element": slice(None), "kernel": slice(0, 2), "row": slice(0, 1), "column": slice(1, 2)}
    blocks = lengths[:, taken[mask.granularity]].prod(axis=1)
    removed = np.array([removed_blocks(sparsity, int(b)) if b else 0 for b in blocks])
    return removed * (lengths.prod(axis=1) / np.maximum(blocks, 1))
