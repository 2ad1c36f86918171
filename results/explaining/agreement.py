"""How much two attributions of the same inputs agree."""

from __future__ import annotations

import numpy as np


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of each pair of rows, in [-1, 1]; NaN where a row is constant.

    Args:
        a, b: [samples, ...], equal shapes.
    """
    from scipy.stats import rankdata

    x, y = (rankdata(v.reshape(len(v), -1), axis=1) for v in (a, b))
    x, y = (v - v.mean(axis=1, keepdims=True) for v in (x, y))
    size = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(size > 0, (x * y).sum(axis=1) / size, np.nan)


def top_overlap(a: np.ndarray, b: np.ndarray, share: float = 0.2) -> np.ndarray:
    """Share of the places with the largest absolute values that two rows have in common, in [0, 1].

    Args:
        a, b: [samples, ...], equal shapes.
        share: of the places that count as large; at least one.
    """
    x, y = (np.abs(v.reshape(len(v), -1)) for v in (a, b))
    count = max(1, round(share * x.shape[1]))
    tops = [np.argsort(-v, axis=1, kind="stable")[:, :count] for v in (x, y)]
    return np.array([len(np.intersect1d(p, q)) / count for p, q in zip(*tops, strict=True)])
