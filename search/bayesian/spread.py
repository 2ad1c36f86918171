"""Spread: the choice of the next points to measure among many predicted ones; pure functions."""

from __future__ import annotations

import numpy as np

from ...results.hypervolume import nondominated


def most_gaining(points: np.ndarray, measured: np.ndarray, n: int) -> list[int]:
    """Greedily the points that add most to the measured front, taking each as measured once chosen.

    One objective: the best value. Two: hypervolume up to the worst value of either objective among all
    points. More, where that takes too long: farthest-first traversal (Gonzalez, Theoretical Computer Science
    38, 1985) of the points that no measured one dominates, in units of the ranges.

    Args:
        points: [k, objectives], finite.
        measured: [m, objectives], finite.
        n: how many, at most; fewer come back when the others add nothing.

    Returns:
        Rows of ``points``, in the order chosen.
    """
    if not len(points) or n < 1:
        return []
    every = np.concatenate([measured, points])
    low = every.min(axis=0)
    span = np.where(np.ptp(every, axis=0) > 0, np.ptp(every, axis=0), 1.0)
    points, measured = (points - low) / span, (measured - low) / span
    if len(measured):
        measured = np.unique(measured[nondominated(measured)], axis=0)
    if points.shape[1] == 1:
        return np.argsort(points[:, 0], kind="stable").tolist()[:n]
    return _by_area(points, measured, n) if points.shape[1] == 2 else _by_distance(points, measured, n)


def area_gains(points: np.ndarray, front: np.ndarray, corner: tuple[float, float]) -> np.ndarray:
    """Area that each of the points [k, 2] would add to what a front [m, 2] dominates below a corner, [k]."""
    front = front[np.argsort(front[:, 0], kind="stable")]
    # Of the strip between two neighbours in the first objective, what is below the left one's second is free.
    edges = np.concatenate([[-np.inf], front[:, 0], [corner[0]]])
    ceiling = np.minimum(np.concatenate([[corner[1]], np.minimum.accumulate(front[:, 1])]), corner[1])
    left = np.maximum(edges[:-1], points[:, :1])  # [k, strips]
    width = np.clip(np.minimum(edges[1:], corner[0]) - left, 0.0, None)
    return (width * np.clip(ceiling - points[:, 1:], 0.0, None)).sum(axis=1)


def _by_area(points: np.ndarray, front: np.ndarray, n: int) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < min(n, len(points)):
        gains = area_gains(points, front, (1.0 + 1e-9, 1.0 + 1e-9))
        gains[chosen] = 0.0
        best = int(gains.argmax())
        if gains[best] <= 0.0:
            break
        chosen.append(best)
        front = np.concatenate([front, points[best : best + 1]])
    return chosen


def _by_distance(points: np.ndarray, front: np.ndarray, n: int) -> list[int]:
    beaten = np.zeros(len(points), dtype=bool)
    away = np.full(len(points), np.inf)
    for other in front:
        beaten |= (other <= points).all(axis=1)
        away = np.minimum(away, np.abs(points - other).max(axis=1))
    away[beaten] = 0.0
    if np.isinf(away).any():  # nothing measured: begin at the best compromise
        away[~beaten] = 1.0 + points.shape[1] - points[~beaten].sum(axis=1)
    chosen: list[int] = []
    while len(chosen) < min(n, len(points)) and away.max() > 0.0:
        best = int(away.argmax())
        chosen.append(best)
        away = np.minimum(away, np.abs(points - points[best]).max(axis=1))
    return chosen
