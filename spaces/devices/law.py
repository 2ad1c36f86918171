"""A curve through measured times of one operator: a line in its work, bent to follow the measurements."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

NEAR = 0.1  # points whose lines differ by less, relatively, are one knot


@dataclass(frozen=True)
class Law:
    """``line = a + b x macs + c x bytes`` (none negative), then piecewise linear in logarithms, rising.

    So time never falls as work grows. Beyond the measured range it is proportional to the line.
    """

    line: np.ndarray  # float64 [3]: a, b, c; ms, ms per MAC, ms per byte
    log_line: np.ndarray  # float64 [knots], rising
    log_ms: np.ndarray  # float64 [knots], rising

    def milliseconds(self, macs: np.ndarray, moved: np.ndarray) -> np.ndarray:
        a, b, c = self.line
        x = np.log(np.maximum(a + b * macs + c * moved, 1e-12))
        inside = np.interp(x, self.log_line, self.log_ms)
        beyond = np.minimum(x - self.log_line[0], 0) + np.maximum(x - self.log_line[-1], 0)
        return np.exp(inside + beyond)


def fit_law(points: np.ndarray) -> Law:
    """The curve through ``points``, float64 [points, 3]: macs, bytes, ms > 0; relative errors count."""
    macs, moved, ms = points.T
    terms = np.stack([np.ones_like(macs), macs, moved], axis=1) / ms[:, None]
    line = _positive_least_squares(terms, np.ones(len(points)))
    x = np.log(np.maximum(line[0] + line[1] * macs + line[2] * moved, 1e-12))
    order = np.argsort(x, kind="stable")
    x, y = x[order], np.log(ms[order])
    starts = [0]
    for i in range(1, len(x)):
        if x[i] - x[starts[-1]] > NEAR:
            starts.append(i)
    groups = np.split(np.arange(len(x)), starts[1:])
    knots = np.array([x[g].mean() for g in groups])
    values = knots + np.array([np.median(y[g] - x[g]) for g in groups])
    return Law(line, knots, _rising(values, np.array([len(g) for g in groups], dtype=np.float64)))


def fit_affine(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """``scale, start``, none negative, for ``y = scale x + start``: least mean absolute relative error.

    By reweighted least squares, so that single odd measurements count little.
    """
    terms = np.stack([x, np.ones_like(x)], axis=1) / y[:, None]
    weights = np.ones(len(y))
    for _ in range(50):
        scale, start = _positive_least_squares(terms * weights[:, None], weights)
        weights = 1 / np.sqrt(np.maximum(np.abs(scale * terms[:, 0] + start * terms[:, 1] - 1), 1e-4))
    return float(scale), float(start)


def _positive_least_squares(terms: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Coefficients >= 0 [terms] for ``terms @ x = wanted``: the best of all supports."""
    scale = np.maximum(np.abs(terms).max(axis=0), 1e-300)
    best, least = np.zeros(terms.shape[1]), np.inf
    for size in range(1, terms.shape[1] + 1):
        for support in combinations(range(terms.shape[1]), size):
            part = list(support)
            x, *_ = np.linalg.lstsq(terms[:, part] / scale[part], wanted, rcond=None)
            loss = float(((terms[:, part] / scale[part] @ x - wanted) ** 2).sum())
            if (x >= 0).all() and loss < least - 1e-12:
                best, least = np.zeros(terms.shape[1]), loss
                best[part] = x / scale[part]
    return best


def _rising(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The closest values that never fall (pool adjacent violators)."""
    pools: list[list[float]] = []  # value, weight, length
    for value, weight in zip(values, weights, strict=True):
        pools.append([value, weight, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            v, w, k = pools.pop()
            u, t, m = pools.pop()
            pools.append([(u * t + v * w) / (t + w), t + w, m + k])
    return np.repeat([p[0] for p in pools], [int(p[2]) for p in pools])
