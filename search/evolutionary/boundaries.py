"""Merge and split moves: boundaries between stages that jump, where mutation moves them step by step."""

from __future__ import annotations

import numpy as np

from ...spaces import Space
from ...spaces.kinds.splits.plan import boundary_columns

SHARE = 0.3  # of children in which one boundary jumps


def boundaries(space: Space) -> np.ndarray:
    """Columns of the choices that place a boundary, first boundary first, int [b].

    None where every place has a choice of its own: there a mutation flips it, which merges or splits.
    """
    return np.array(boundary_columns(space.choices), dtype=np.int64)


def jump(rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Rows in a share of which one boundary goes elsewhere at once; int64 [n, choices].

    In half of them it goes to its neighbour's place, or to the end of the network on that side: the stage
    between is merged away. In the others it goes to any place, which splits the stage there.

    Args:
        rows: option indices [n, choices].
        columns: of :func:`boundaries`; where there are none nothing is drawn.
        counts: options of every choice, int [choices].
    """
    if not len(columns):
        return rows
    n, b = len(rows), len(columns)
    which = rng.integers(b, size=n)
    beside = which + rng.choice((-1, 1), n)  # -1: the start, the last option; b: the end, the first one
    near = rows[np.arange(n), columns[np.clip(beside, 0, b - 1)]]
    near = np.where(beside < 0, counts[columns[0]] - 1, np.where(beside == b, 0, near))
    anywhere = rng.integers(counts[columns[which]])
    to = np.where(rng.random(n) < 0.5, near, anywhere)
    jumps = rng.random(n) < SHARE
    out = rows.copy()
    out[jumps, columns[which[jumps]]] = to[jumps]
    return out
