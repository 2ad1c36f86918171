"""Removed columns as combinations of kept ones, from second moments alone (He et al. 2017, eq. 5)."""

from __future__ import annotations

import numpy as np

RIDGE = 1e-4  # of the mean variance of the columns


def moments(gram: np.ndarray, *, intercept: bool = True, ridge: float = RIDGE) -> np.ndarray:
    """Damped second moments [n, n]: about the mean with an intercept, else about zero.

    Args:
        gram: [n + 1, n + 1], sum over samples of z z^T with z = (x, 1).
        ridge: times the mean of the diagonal, added to the diagonal (Hassibi & Stork 1993, section 2.2).
    """
    n = len(gram) - 1
    second = gram[:n, :n]
    if intercept:
        second = second - np.outer(gram[:n, n], gram[n, :n]) / max(gram[n, n], 1.0)
    else:
        second = second.copy()
    diagonal = np.einsum("ii->i", second)
    diagonal += ridge * max(float(diagonal.mean()), 0.0) + 1e-30
    return second


def mixing(
    gram: np.ndarray, kept: np.ndarray, removed: np.ndarray, *, ridge: float = RIDGE, intercept: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """``x[removed]`` approximately equals ``x[kept] @ A + b``, in the ridge least-squares sense.

    The intercept is not damped, so the mean error is zero, and no combination can be worse than none.

    Args:
        gram: [n + 1, n + 1] float64, sum over samples of z z^T with z = (x, 1).
        kept, removed: column numbers, disjoint.

    Returns:
        A [kept, removed] and b [removed] (zeros without an intercept).
    """
    n = len(gram) - 1
    mean = gram[n, :n] / max(gram[n, n], 1.0) if intercept else np.zeros(n)
    if not len(kept):
        return np.zeros((0, len(removed))), mean[removed]
    second = moments(gram, intercept=intercept, ridge=ridge)
    a = np.linalg.solve(second[np.ix_(kept, kept)], second[np.ix_(kept, removed)])
    return a, mean[removed] - mean[kept] @ a
