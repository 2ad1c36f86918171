"""Ranking of trials by losses and violations; pure functions, everything is minimised."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from ...results.hypervolume import dominance_ranks, nondominated

AUGMENTATION = 1e-3  # rho of the augmented Chebyshev norm: breaks ties, hides no point that matters


def ranks(losses: np.ndarray, violations: np.ndarray) -> np.ndarray:
    """Fronts one after the other, then the infeasible by their violation (Deb 2002, constrained domination).

    Args:
        losses: [n, objectives]; read only where the violation is 0.
        violations: [n], 0 where all limits are kept; inf where a trial failed.

    Returns:
        Int [n], 0 for the first front; equal violations share a rank.
    """
    rank = np.zeros(len(losses), dtype=np.int64)
    kept, broken = violations <= 0.0, violations > 0.0
    rank[kept] = dominance_ranks(losses[kept])
    rank[broken] = (
        rank.max(initial=-1, where=kept) + 1 + np.unique(violations[broken], return_inverse=True)[1]
    )
    return rank


def crowding(losses: np.ndarray) -> np.ndarray:
    """Crowding distance of the points of one front (Deb 2002, section III-B); inf at the extremes.

    Args:
        losses: [n, objectives], finite.

    Returns:
        Float64 [n], larger where the neighbours are farther.
    """
    n, m = losses.shape
    distance = np.zeros(n)
    for j in range(m):
        order = np.argsort(losses[:, j], kind="stable")
        column = losses[order, j]
        span = column[-1] - column[0]
        if span > 0.0:
            distance[order[1:-1]] += (column[2:] - column[:-2]) / span
        distance[order[[0, -1]]] = np.inf
    return distance


def best_first(losses: np.ndarray, violations: np.ndarray) -> np.ndarray:
    """Order by rank, then by crowding within the rank, then as given; int [n]."""
    rank = ranks(losses, violations)
    sparse = np.zeros(len(losses))
    for level in np.unique(rank[violations <= 0.0]):
        members = np.flatnonzero(rank == level)
        sparse[members] = crowding(losses[members])
    return np.lexsort((-sparse, rank))


def scaled(losses: np.ndarray, violations: np.ndarray) -> np.ndarray:
    """Losses with the ideal point at 0 and the nadir of the first front at 1, in every objective.

    Args:
        losses: [n, objectives]; read only where the violation is 0.
        violations: [n].

    Returns:
        Float64 [n, objectives]; inf where the violation is not 0. An objective that does not vary on the
        first front is scaled by its range over all, and by 1 if that is nothing either.
    """
    out = np.full(losses.shape, np.inf)
    good = violations <= 0.0
    if good.any():
        ideal, span = ideal_and_span(losses[good])
        out[good] = (losses[good] - ideal) / span
    return out


def ideal_and_span(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ideal point, and distance of the nadir of the first front from it; both [objectives].

    Args:
        losses: [n, objectives], n >= 1, finite.
    """
    return span_of_front(losses[nondominated(losses)], losses.max(axis=0))


def span_of_front(front: np.ndarray, worst: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`ideal_and_span`, of the first front [n, objectives] and the worst losses [objectives]."""
    ideal = front.min(axis=0)
    span = front.max(axis=0) - ideal
    span = np.where(span > 0.0, span, worst - ideal)
    return ideal, np.where(span > 0.0, span, 1.0)


def chebyshev(losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Augmented Chebyshev norm, max_j w_j z_j + rho sum_j z_j: every Pareto point is the minimum of some
    weights, on concave parts of a front too (Steuer and Choo, Math. Program. 26, 1983, eq. 2.2).

    Args:
        losses: [..., objectives], with the ideal point at 0; inf is allowed.
        weights: [..., objectives], not negative.
    """
    return _weighted(losses, weights).max(axis=-1) + AUGMENTATION * losses.sum(axis=-1)


def weighted_sum(losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """sum_j w_j z_j, whose minima lie on the convex hull of the front only; shapes as :func:`chebyshev`."""
    return _weighted(losses, weights).sum(axis=-1)


def _weighted(losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Products, inf wherever a loss is: without a weight too."""
    return np.where(np.isfinite(losses), np.where(np.isfinite(losses), losses, 0.0) * weights, np.inf)


def simplex(n: int, objectives: int) -> np.ndarray:
    """At most ``n`` weight vectors, evenly over the simplex (Das and Dennis, SIAM J. Optim. 8(3), 1998).

    Returns:
        [count, objectives], rows that sum to 1; count is the largest lattice of at most ``n`` points, and
        at least one vector for each objective.
    """
    lattice = _lattice(1, objectives)
    parts = 2
    while len(finer := _lattice(parts, objectives)) <= n and objectives > 1:
        lattice, parts = finer, parts + 1
    return lattice


def _lattice(parts: int, objectives: int) -> np.ndarray:
    """All vectors of multiples of 1 / parts that sum to 1, by stars and bars."""
    slots: Sequence[tuple[int, ...]] = list(combinations(range(parts + objectives - 1), objectives - 1))
    bars = np.array(slots, dtype=np.int64).reshape(len(slots), objectives - 1)
    edges = np.hstack([np.full((len(bars), 1), -1), bars, np.full((len(bars), 1), parts + objectives - 1)])
    return (np.diff(edges, axis=1) - 1) / parts
