"""Give what removed inputs contributed to the kept weights of each layer, and its constant to the bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .consumers import Consumer, block_weights
from .gram import Block, Calibration
from .least_squares import mixing
from .sources import Source


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
    solved: dict[tuple[int, bool], list[_Mixed]] = {}
    for consumer in calibration.consumers:
        source = calibration.sources[consumer.source]
        if alive[source.labels].all():
            continue
        key = consumer.source, consumer.offset is not None
        if key not in solved:
            solved[key] = [
                _mix(block, alive[source.columns], calibration.ridge, key[1])
                for block in calibration.blocks[consumer.source]
            ]
        _apply(consumer, source, solved[key], alive, tensors, labels[consumer.weight][consumer.out], made)


_Mixed = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # kept, removed, A, b


def _mix(block: Block, alive: np.ndarray, ridge: float, intercept: bool) -> _Mixed:
    stays = alive[block.columns]
    kept, removed = np.flatnonzero(stays), np.flatnonzero(~stays)
    a, b = mixing(block.gram, kept, removed, ridge=ridge, intercept=intercept)
    parts = block.columns[kept], block.columns[removed], a, b
    return tuple(map(torch.from_numpy, parts))  # type: ignore[return-value]


def _apply(
    consumer: Consumer,
    source: Source,
    mixed: list[_Mixed],
    alive: np.ndarray,
    tensors: Mapping[str, Any],
    out_labels: np.ndarray | None,
    made: Mapping[str, Any],
) -> None:
    weight = tensors[consumer.weight]
    outs = weight.shape[consumer.out]
    rows = torch.from_numpy(np.ones(outs, dtype=bool) if out_labels is None else alive[out_labels])
    size = len(source.columns) // source.groups
    column_kept = torch.from_numpy(alive[source.columns[:size]])
    place = torch.cumsum(column_kept, 0) - 1  # of a kept column among the kept ones
    coverage = torch.from_numpy(consumer.coverage if source.patch is None else np.ones(1))
    whole = list(block_weights(consumer, source, weight))
    changes, constants = [], []
    for group, (w, stays) in enumerate(zip(whole, rows.chunk(source.groups), strict=True)):
        w = w[stays]  # [outputs, columns, shared]
        change = w.new_zeros(len(w), int(column_kept.sum()), w.shape[2])
        constant = w.new_zeros(len(w))
        for kept, removed, a, b in mixed:
            if len(removed) and int(removed[0]) // size == group:
                gone = w[:, removed - group * size]
                change[:, place[kept - group * size]] += torch.einsum("oqt,kq->okt", gone, a)
                constant += torch.einsum("oqt,q,t->o", gone, b, coverage)
        changes.append(change)
        constants.append(constant)
    target = made[consumer.weight].detach().movedim((consumer.out, consumer.axis), (0, 1))
    target.add_(torch.cat(changes).reshape(target.shape).to(target.dtype))
    if consumer.offset is not None:
        name, sign = consumer.offset
        holder = made[name].detach()
        holder.add_(sign * torch.cat(constants).to(holder.dtype))
