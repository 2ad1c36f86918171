"""Assignment of a matrix's outputs and inputs to groups that keep most of its energy.

Wang et al. 2019 (arXiv 1904.00346, FLGC) learn the assignment of filters and input channels to groups. Here
it is found for given weights: with the groups of the inputs fixed, the best groups of the outputs are a
transportation problem, and the other way round; the two alternate until nothing improves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESTARTS = 4
GAIN = 1e-6  # of the energy kept; alternation that gains less ends
SWEEPS = 50  # alternations of one start; few are needed, since each keeps more


@dataclass(frozen=True)
class Assignment:
    """Groups of a matrix's rows and columns; sizes differ by one at most, the first groups are larger."""

    rows: np.ndarray  # [outputs] int64, group of each
    columns: np.ndarray  # [inputs] int64
    kept: float  # share of the energy inside the groups, in [0, 1]


def balanced_sizes(n: int, groups: int) -> np.ndarray:
    """Sizes [groups] of ``groups`` parts of ``n``: int64, falling, differing by one at most."""
    return n // groups + (np.arange(groups) < n % groups).astype(np.int64)


def kept_share(outputs: np.ndarray, inputs: np.ndarray, groups: np.ndarray | int) -> np.ndarray:
    """Share of a dense layer's weights that its groups hold, elementwise over arrays of sizes.

    With o = q G + r outputs and i = p G + s inputs: sum of products of balanced sizes over o i.
    """
    o, i, g = (np.asarray(x, dtype=np.int64) for x in (outputs, inputs, groups))
    (q, r), (p, s) = np.divmod(o, g), np.divmod(i, g)
    inside = g * q * p + q * s + p * r + np.minimum(r, s)
    return inside / np.maximum(o * i, 1)


def assign(energy: np.ndarray, groups: int, *, restarts: int = RESTARTS, seed: int = 0) -> Assignment:
    """The best of several local optima of the energy that stays inside groups.

    Args:
        energy: [outputs, inputs], not negative: for instance the squared weights, summed over kernel taps.
        groups: at least 1, at most the smaller side.
        restarts: starts: half by spread-out columns (which finds a hidden block structure exactly), half
            random.

    Raises:
        ValueError: more groups than outputs or inputs, none, or energies that are negative or not finite.
    """
    outputs, inputs = energy.shape
    if not 1 <= groups <= min(outputs, inputs):
        raise ValueError(
            f"{outputs} outputs and {inputs} inputs fall into 1 to {min(energy.shape)} groups, got {groups}"
        )
    if restarts < 1:
        raise ValueError(f"restarts must be at least 1, got {restarts}")
    if not np.isfinite(energy).all() or (energy < 0).any():
        raise ValueError("energies must be finite and not negative")
    if groups == 1:
        return Assignment(np.zeros(outputs, np.int64), np.zeros(inputs, np.int64), 1.0)
    rng = np.random.default_rng(seed)
    row_sizes, column_sizes = balanced_sizes(outputs, groups), balanced_sizes(inputs, groups)
    best: Assignment | None = None
    total = float(energy.sum()) or 1.0
    for start in range(restarts):
        if start % 2 == 0:
            columns = _spread(energy, column_sizes, rng)
        else:
            columns = rng.permutation(np.repeat(np.arange(groups), column_sizes))
        columns = _renamed(columns, column_sizes, _summed(energy, columns, groups))
        kept = -1.0
        for _ in range(SWEEPS):
            rows = _transport(_summed(energy, columns, groups), row_sizes)
            columns = _transport(_summed(energy.T, rows, groups), column_sizes)
            now = float(energy[rows[:, None] == columns].sum()) / total
            before, kept = kept, now
            if now <= before * (1 + GAIN):
                break
        if best is None or kept > best.kept:
            best = Assignment(rows, columns, kept)
    assert best is not None
    return best


def _summed(energy: np.ndarray, columns: np.ndarray, groups: int) -> np.ndarray:
    """[rows, groups]: energy of every row on the columns of each group."""
    return energy @ np.eye(groups)[columns]


def _transport(gain: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Groups [n] of given sizes with the largest sum of ``gain`` [n, groups]."""
    if len(sizes) == 2:
        labels = np.ones(len(gain), dtype=np.int64)
        labels[np.argsort(gain[:, 1] - gain[:, 0], kind="stable")[: sizes[0]]] = 0
        return labels
    from scipy.optimize import linear_sum_assignment

    # Every place in a group is a column of its own; equal columns change nothing about the optimum.
    _, place = linear_sum_assignment(np.repeat(gain, sizes, axis=1), maximize=True)
    return np.repeat(np.arange(len(sizes)), sizes)[place]


def _spread(energy: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Groups of columns around columns that are unlike each other: each the farthest from those before."""
    profiles = np.sqrt(energy)
    profiles = profiles / np.maximum(np.linalg.norm(profiles, axis=0), 1e-300)
    centres = [int(rng.integers(energy.shape[1]))]
    for _ in range(len(sizes) - 1):
        nearest = (profiles.T @ profiles[:, centres]).max(axis=1)
        nearest[centres] = np.inf
        centres.append(int(nearest.argmin()))
    alike = profiles.T @ profiles[:, centres]
    wanted = np.bincount(alike.argmax(axis=1), minlength=len(sizes))
    return _transport(alike[:, np.argsort(-wanted, kind="stable")], sizes)  # sizes fall


def _renamed(columns: np.ndarray, sizes: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Groups of one size swap names, so that those that more rows want are the earlier, larger ones."""
    wanted = np.bincount(gain.argmax(axis=1), minlength=len(sizes))
    order = np.lexsort((-wanted, -sizes))
    return np.argsort(order)[columns]
