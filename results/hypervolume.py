"""Dominance, hypervolume and knee of point sets. Pure functions; everything is minimised.

Dominance and hypervolume are moocore's; it is imported where it is used, since that takes 40 ms.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def nondominated(points: ArrayLike) -> np.ndarray:
    """Which points no other point dominates.

    One point dominates another when it is nowhere worse and somewhere better, so equal points are kept
    or dropped together.

    Args:
        points: [n, objectives], minimised; infinities are allowed.

    Returns:
        Bool mask [n].

    Raises:
        ValueError: not two-dimensional, or NaN.
    """
    import moocore

    points = _matrix(points)
    if not len(points):
        return np.zeros(0, dtype=bool)
    return moocore.is_nondominated(_finite(points), keep_weakly=True)


def dominance_ranks(points: ArrayLike) -> np.ndarray:
    """Which front each point is on: 0 for what no point dominates, 1 for what only those do, and so on.

    Args:
        points: [n, objectives], minimised; infinities are allowed.

    Returns:
        Int64 [n]; equal points share a rank.

    Raises:
        ValueError: as :func:`nondominated`.
    """
    import moocore

    points = _matrix(points)
    if not len(points):
        return np.zeros(0, dtype=np.int64)
    return moocore.pareto_rank(_finite(points)).astype(np.int64)


def nondominated_within(points: ArrayLike, low: ArrayLike, high: ArrayLike) -> np.ndarray:
    """Which points remain where some objectives are known within intervals only.

    A point that is better in what is exact, and not clearly worse in the rest (their intervals overlap),
    beats another. Since "not clearly worse" does not carry over from one pair to the next, a point has to be
    beaten by one that remains itself: the kernel of the relation, which is unique because no chain of points
    beats itself. Without intervals this is :func:`nondominated`, of equal points the first alone.

    Args:
        points, low, high: [n, objectives], minimised; ``low <= points <= high``, equal where exact.

    Returns:
        Bool mask [n].

    Raises:
        ValueError: as :func:`nondominated`.
    """
    points, low, high = _matrix(points), _matrix(low), _matrix(high)
    exact = (low == high).all(axis=0)
    # A point can only be beaten by one that comes before: best in the exact objectives first.
    order = np.lexsort([*points[:, ~exact].T, *points[:, exact].T[::-1]])
    kept: list[int] = []
    for i in order:
        rivals = np.array(kept, dtype=np.intp)
        no_worse = (points[rivals][:, exact] <= points[i, exact]).all(axis=1)
        better = (points[rivals][:, exact] < points[i, exact]).any(axis=1)
        not_clearly_worse = (low[rivals] <= high[i]).all(axis=1)
        nowhere_worse = (points[rivals] <= points[i]).all(axis=1)
        if not (nowhere_worse | (no_worse & better & not_clearly_worse)).any():
            kept.append(int(i))
    mask = np.zeros(len(points), dtype=bool)
    mask[kept] = True
    return mask


def hypervolume(points: ArrayLike, reference: Sequence[float] | np.ndarray) -> float:
    """Volume that the points dominate up to the reference point, exact for any number of objectives.

    Args:
        points: [n, objectives], minimised, finite; only those below the reference everywhere count.
        reference: [objectives], finite.

    Raises:
        ValueError: shapes that do not fit, or a number that is not finite.
    """
    import moocore

    points, corner = _matrix(points), np.asarray(reference, dtype=np.float64)
    if corner.ndim != 1 or not len(corner) or (len(points) and points.shape[1] != len(corner)):
        raise ValueError(
            f"the reference needs one number per objective, got shape {corner.shape} for points "
            f"of shape {points.shape}"
        )
    if not (np.isfinite(points).all() and np.isfinite(corner).all()):
        raise ValueError("hypervolume needs finite points and a finite reference")
    points = points[(points < corner).all(axis=1)] if len(points) else points
    return float(moocore.hypervolume(points, ref=corner)) if len(points) else 0.0


def knee(points: ArrayLike) -> int:
    """Index of the point that bulges most towards the ideal: the best compromise, lowest index on ties.

    The front is scaled to [0, 1] in every objective; the knee is the point farthest from the hyperplane
    through the front's extremes, on the ideal's side (I. Das, "On characterizing the knee of the Pareto
    curve based on normal-boundary intersection", Structural Optimization 18, 1999).

    Args:
        points: [n, objectives], minimised, finite, mutually non-dominated, n >= 1.

    Raises:
        ValueError: no points, or not finite.
    """
    points = _matrix(points)
    if not len(points) or not np.isfinite(points).all():
        raise ValueError(f"a knee needs at least one point and finite numbers, got shape {points.shape}")
    low, high = points.min(axis=0), points.max(axis=0)
    varies = high > low
    if not varies.any():
        return 0
    scaled = (points[:, varies] - low[varies]) / (high - low)[varies]  # [n, k]
    # The extreme of an objective: its best point, the best compromise among equals.
    extremes = [np.lexsort((scaled.sum(axis=1), scaled[:, j]))[0] for j in range(scaled.shape[1])]
    normal = np.ones(scaled.shape[1])
    try:
        plane = np.linalg.solve(scaled[extremes], normal)  # plane @ extreme = 1
        if (plane > 0).all():
            normal = plane
    except np.linalg.LinAlgError:  # extremes that coincide span no plane: take the diagonal one
        pass
    # 1e-12: points that differ by rounding only are equal, so that the first of them is taken.
    towards_ideal = -(scaled @ normal)
    return int(np.flatnonzero(towards_ideal >= towards_ideal.max() - 1e-12)[0])


def _finite(points: np.ndarray) -> np.ndarray:
    """Points that dominate each other as the given ones [n, objectives] do, without infinities.

    moocore 0.3.2 errs on these, or ends the process, from three objectives on.
    """
    if np.isfinite(points).all():
        return points
    return np.stack([np.unique(column, return_inverse=True)[1] for column in points.T], axis=1).astype(float)


def _matrix(points: ArrayLike) -> np.ndarray:
    array = np.asarray(points, dtype=np.float64)
    if array.ndim == 1 and not array.size:
        return array.reshape(0, 0)
    if array.ndim != 2:
        raise ValueError(f"points must be an array [n, objectives], got shape {array.shape}")
    if np.isnan(array).any():
        raise ValueError("points hold NaN; leave failed trials out")
    return array
