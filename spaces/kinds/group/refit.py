"""Weights of groups that give, in the least-squares sense, what the dense layer gave.

Of the inputs outside of an output's group nothing is left. What they gave is expressed by the inputs inside,
from second moments that calibration has gathered, as the repair of pruning does with removed inputs
(:mod:`..repair.fold`): W_in x_in + W_out x_out = (W_in + W_out A^T) x_in + W_out b with x_out = A^T x_in + b.
"""

from __future__ import annotations

import numpy as np
import torch

from ....model.repair import Calibration
from ....model.repair.consumers import Consumer, block_weights
from ....model.repair.least_squares import ColumnSplit


def input_energy(calibration: Calibration, consumer: Consumer, alive: np.ndarray) -> np.ndarray:
    """Mean square of each input that stays (with a window: of each input and tap), [columns]."""
    source = calibration.sources[consumer.source]
    energy = np.zeros(len(source.columns))
    for block in calibration.blocks[consumer.source]:
        diagonal = block.gram.diagonal()
        energy[block.columns] = diagonal[:-1] / max(diagonal[-1], 1.0)
    return energy[alive[source.columns]]


def refit(
    weight: torch.Tensor,
    rows: np.ndarray,
    columns: np.ndarray,
    calibration: Calibration,
    consumer: Consumer,
    alive: np.ndarray,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer's weight with what it lacks outside of groups made good inside.

    Args:
        weight: [outputs, inputs, kernel] of the layer, sliced to ``alive``.
        rows, columns: [outputs] and [inputs], groups of each.
        consumer: the layer in ``calibration``.
        alive: [units + 1 + ...] bool, labels that stay.

    Returns:
        The weight, zero outside of groups, and a constant to be added to the outputs [outputs] float64; that
        is zero where ``consumer.offset`` is ``None``.
    """
    source = calibration.sources[consumer.source]
    stays = alive[source.columns]
    place = np.cumsum(stays) - 1  # of a column among those that stay
    group = np.repeat(columns, source.taps)  # of each that stays
    coverage = torch.from_numpy(consumer.coverage if source.patch is None else np.ones(1))
    (whole,) = block_weights(consumer, source, weight)  # [outputs, columns, shared]
    inside = torch.from_numpy(rows[:, None] == group)[:, :, None]
    new, constant = whole * inside, whole.new_zeros(len(whole))
    for g in np.unique(rows):
        out = torch.from_numpy(np.flatnonzero(rows == g))
        for block in calibration.blocks[consumer.source]:
            own = stays[block.columns]
            near = own & (group[place[block.columns]] == g)
            kept, removed = np.flatnonzero(near), np.flatnonzero(own & ~near)
            if not len(removed) or not len(kept):
                continue
            split = ColumnSplit(
                block.gram, kept, removed, ridge=calibration.ridge, intercept=consumer.offset is not None
            )
            to, fro = (torch.from_numpy(place[block.columns[at]]) for at in (kept, removed))
            outgoing = whole[out][:, fro].movedim(1, 0)  # [removed, outputs, shared]
            taken, shift = split.absorb(outgoing.flatten(1))
            new[out[:, None], to] += taken.view(-1, *outgoing.shape[1:]).movedim(0, 1)
            constant[out] += shift.view(outgoing.shape[1:]) @ coverage
    return new.reshape(weight.shape).to(weight.dtype), constant
