"""Compensation: weights changed column by column, each column's error made up for by those after it.

The optimal brain surgeon's step (Hassibi & Stork 1993) for a number that is moved to a given one:
``w -= (w_j - q_j) [H^-1]_j: / [H^-1]_jj`` over the columns left, with H the second moments of the inputs.
Rounding to few bits (Frantar et al. 2022, arXiv 2210.17323) and setting to zero (Frantar & Alistarh 2023,
arXiv 2301.00774) differ in what a column becomes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .repair.consumers import Consumer, block_weights
from .repair.gram import Calibration
from .repair.least_squares import moments

DAMPING = 0.01  # of the mean variance of the inputs
WIDEST = 2048  # columns that are changed together

# (column, the columns as they are by now [rows, columns], Cholesky factor of the inverse) -> what it becomes
Settle = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]


def by_column(
    weight: torch.Tensor, second: torch.Tensor, order: torch.Tensor, settle: Settle
) -> torch.Tensor:
    """The weight with every column settled in turn.

    Args:
        weight: [rows, columns] float64.
        second: [columns, columns] float64, positive definite.
        order: of the columns, int64; ``settle`` counts in it.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(second[order][:, order]))
    upper = torch.linalg.cholesky(inverse, upper=True)
    left = weight[:, order].clone()
    out = torch.empty_like(left)
    for j in range(len(order)):
        out[:, j] = settle(j, left, upper)
        off = (left[:, j] - out[:, j]) / upper[j, j]
        left[:, j + 1 :] -= torch.outer(off, upper[j, j + 1 :])
    return out[:, order.argsort()]


@dataclass(frozen=True, eq=False)
class Columns:
    """Some columns of a layer whose inputs' second moments are known together.

    Attributes:
        rows: their weights [rows, columns] float64: outputs, and with each the taps that share the moments.
        at: their places among all columns of the sliced layer's group, int64.
        second: [columns, columns] float64.
    """

    rows: torch.Tensor
    at: torch.Tensor
    second: torch.Tensor


def compensate(
    weight: torch.Tensor,
    calibration: Calibration,
    consumer: Consumer,
    alive: np.ndarray,
    change: Callable[[int, Columns], torch.Tensor],
    others: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Change a sliced weight in place; what the outputs then lack on average, [outputs].

    Args:
        calibration: moments of what the uncut network's layers read.
        change: the new rows of columns, of the layer's group of that number.
        others: what columns without moments become: of [outputs, columns, shared taps] of a group.
    """
    source = calibration.sources[consumer.source]
    coverage = torch.from_numpy(consumer.coverage if source.patch is None else np.ones(1))
    new, shifts = [], []
    blocks = _blocks(calibration, consumer, alive)
    for group, part in enumerate(block_weights(consumer, source, weight)):  # [outputs, columns, shared]
        outputs, _, shared = part.shape
        out = others(part)
        shift = part.new_zeros(outputs)
        for at, gram in blocks[group]:
            second = torch.from_numpy(moments(gram, intercept=consumer.offset is not None, ridge=DAMPING))
            rows = part[:, at].transpose(1, 2).flatten(0, 1)
            out[:, at] = change(group, Columns(rows, at, second)).view(outputs, shared, -1).transpose(1, 2)
            mean = torch.from_numpy(gram[:-1, -1] / max(gram[-1, -1], 1.0))
            shift += torch.einsum("oct,c,t->o", part[:, at] - out[:, at], mean, coverage)
        new.append(out)
        shifts.append(shift)
    moved = weight.movedim((consumer.out, consumer.axis), (0, 1))
    moved.copy_(torch.cat(new).view(moved.shape))
    return torch.cat(shifts)


def _blocks(
    calibration: Calibration, consumer: Consumer, alive: np.ndarray
) -> list[list[tuple[torch.Tensor, np.ndarray]]]:
    """By the layer's group: places of columns that stay whose moments are known together, and these."""
    source = calibration.sources[consumer.source]
    stays = alive[source.columns]
    size = len(source.columns) // source.groups
    found: list[list[tuple[torch.Tensor, np.ndarray]]] = [[] for _ in range(source.groups)]
    for block in calibration.blocks[consumer.source]:
        group = int(block.columns[0]) // size
        place = np.cumsum(stays[group * size : (group + 1) * size]) - 1
        kept = np.flatnonzero(stays[block.columns])
        if 0 < len(kept) <= WIDEST:
            picked = np.append(kept, len(block.gram) - 1)
            at = torch.from_numpy(place[block.columns[kept] - group * size])
            found[group].append((at, block.gram[np.ix_(picked, picked)]))
    return found


def covered(calibration: Calibration, consumer: Consumer, alive: np.ndarray) -> bool:
    """Whether the moments of all columns that stay are known, of each group together."""
    source = calibration.sources[consumer.source]
    per_group = alive[source.columns].reshape(source.groups, -1).sum(axis=1)
    blocks = _blocks(calibration, consumer, alive)
    return all(
        len(found) == 1 and len(found[0][0]) == columns
        for found, columns in zip(blocks, per_group, strict=True)
    )


def sparsified(
    columns: Columns, taps: int, spans: Sequence[int], pick: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Rows of which some numbers are zero: spans of columns are chosen in turn by what zeros would cost then.

    Args:
        taps: neighbouring columns that belong to one input channel; columns are taken tap by tap.
        spans: numbers of columns, in that order.
        pick: which numbers of a span stay, bool [rows, columns], from the errors without them,
            ``w^2 / [H^-1]_jj``.
    """
    order = (columns.at % taps * (int(columns.at.max()) + 1) + columns.at // taps).argsort(stable=True)
    begins = dict(zip(np.cumsum([0, *spans]).tolist(), spans, strict=False))
    stays = torch.ones_like(columns.rows, dtype=torch.bool)

    def settle(j: int, left: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        if j in begins:
            span = slice(j, j + begins[j])
            stays[:, span] = pick(left[:, span].square() / upper.diagonal()[span].square())
        return left[:, j] * stays[:, j]

    return by_column(columns.rows, columns.second, order, settle)
