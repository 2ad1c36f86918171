"""Give what removed inputs contributed to the kept weights of each layer, and its constant to the bias."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from .consumers import Consumer, block_weights
from .gram import Calibration, MomentBlock
from .least_squares import Change, ColumnSplit
from .sources import MomentSource


def fold(
    calibration: Calibration,
    alive: np.ndarray,
    tensors: Mapping[str, Any],
    labels: Mapping[str, tuple[np.ndarray | None, ...]],
    made: Mapping[str, Any],
) -> None:
    """Mend the sliced parameters ``made`` in place.

    With x_removed = x_kept A + b, a layer W x + c is W_kept x_kept + W_removed x_removed + c, so the weight
    becomes W_kept + W_removed A^T and the constant c + W_removed b. Without a bias the constant goes into
    the mean of the batch-norm that follows; where there is none, A is fitted without an intercept.

    Args:
        alive: [units + 1] bool.
        tensors: the whole parameters by canonical name.
        labels: unit labels of the parameters per axis, by canonical name.
        made: the parameters sliced to ``alive``, by canonical name.
    """
    splits: dict[tuple[int, bool], list[_Parted]] = {}

    def change(consumer: Consumer, source: MomentSource) -> Change:
        key, stays = (consumer.source, consumer.offset is not None), alive[source.columns]
        if key not in splits:
            blocks = calibration.blocks[consumer.source]
            splits[key] = [_part(block, stays, calibration.ridge, key[1]) for block in blocks]
        return _change(consumer, source, splits[key], stays, tensors[consumer.weight])

    for consumer in calibration.consumers:
        source = calibration.sources[consumer.source]
        positions = alive[source.labels]
        if positions.all():
            continue
        key = consumer.weight, positions.tobytes()
        found = calibration.changes.get(key, partial(change, consumer, source))
        out_labels = labels[consumer.weight][consumer.out]
        rows = slice(None) if out_labels is None else torch.from_numpy(np.flatnonzero(alive[out_labels]))
        target = made[consumer.weight].detach().movedim((consumer.out, consumer.axis), (0, 1))
        target.add_(found.weight[rows].reshape(target.shape))
        if consumer.offset is not None:
            name, sign = consumer.offset
            made[name].detach().add_(found.constant[rows].to(made[name].dtype), alpha=sign)


_Parted = tuple[np.ndarray, np.ndarray, ColumnSplit]  # columns kept and removed


def _part(block: MomentBlock, stays: np.ndarray, ridge: float, intercept: bool) -> _Parted:
    kept, removed = np.flatnonzero(stays[block.columns]), np.flatnonzero(~stays[block.columns])
    split = ColumnSplit(block.gram, kept, removed, ridge=ridge, intercept=intercept)
    return block.columns[kept], block.columns[removed], split


def _change(
    consumer: Consumer, source: MomentSource, parted: list[_Parted], stays: np.ndarray, weight: torch.Tensor
) -> Change:
    size = len(source.columns) // source.groups
    place = np.cumsum(stays[:size]) - 1  # of a kept column among the kept ones
    coverage = torch.from_numpy(consumer.coverage if source.patch is None else np.ones(1))
    gains, constants = [], []
    for group, w in enumerate(block_weights(consumer, source, weight)):  # [outputs, columns, shared]
        gain = w.new_zeros(len(w), int(place[-1]) + 1, w.shape[2])
        constant = w.new_zeros(len(w))
        for kept, removed, split in parted:
            if len(removed) and int(removed[0]) // size == group:
                outgoing = w[:, torch.from_numpy(removed - group * size)].movedim(1, 0)  # [removed, o, t]
                taken, shift = split.absorb(outgoing.flatten(1))
                gain[:, torch.from_numpy(place[kept - group * size])] += taken.view(
                    -1, *outgoing.shape[1:]
                ).movedim(0, 1)
                constant += shift.view(outgoing.shape[1:]) @ coverage
        gains.append(gain)
        constants.append(constant)
    return Change(torch.cat(gains).to(weight.dtype), torch.cat(constants))
