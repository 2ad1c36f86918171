"""Rows of option indices [n, choices]: varied, and brought within limits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

EXCHANGE = 0.5  # share of variations that compress one choice more and another less
SHARES = np.linspace(0.0, 1.0, 9)[1:]  # of the way to an extreme that is tried to keep a limit


def vary(rng: np.random.Generator, parents: np.ndarray, counts: np.ndarray, n: int) -> np.ndarray:
    """``n`` rows, each a parent with one to a few options moved, mostly by one step.

    In half of them one choice moves up and another down: where costs and damages trade off, a better
    candidate of equal cost is one exchange away.
    """
    d = len(counts)
    rows = parents[rng.integers(len(parents), size=n)]
    each = np.arange(n)
    moves = np.zeros((n, d), dtype=np.int64)
    first, second = rng.integers(d, size=(2, n))
    sign = rng.choice((-1, 1), n)
    moves[each, first] = sign * rng.geometric(0.6, n)
    exchange = rng.random(n) < EXCHANGE
    moves[each[exchange], second[exchange]] = -(sign * rng.geometric(0.6, n))[exchange]
    more = rng.random((n, d)) < 0.5 / d
    moves += more * rng.choice((-1, 1), (n, d))
    return np.clip(rows + moves, 0, counts - 1)


def scattered(rng: np.random.Generator, counts: np.ndarray, n: int) -> np.ndarray:
    """``n`` random rows of random mean compression, which uniform ones do not have."""
    return rng.binomial(counts - 1, rng.random((n, 1)), size=(n, len(counts)))


def kept(rows: np.ndarray, counts: np.ndarray, violation: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The rows that keep the limits, and the others moved towards an extreme until they do.

    Each goes the least of eight equal shares of the way to the most compressed candidate, else to the
    unchanged one; those for which neither helps are left out.

    Args:
        violation: float64 [n] of rows [n, choices], 0 where all limits are kept.
    """
    ok = violation(rows) <= 0.0
    out, left = [rows[ok]], rows[~ok]
    for end in (counts - 1, np.zeros_like(counts)):
        if not len(left):
            break
        way = left[:, None, :] + SHARES[:, None] * (end - left)[:, None, :]  # [n, shares, choices]
        way = np.floor(way + 0.5).astype(np.int64)
        good = violation(way.reshape(-1, len(counts))).reshape(len(left), -1) <= 0.0
        found = good.any(axis=1)
        out.append(way[found, good[found].argmax(axis=1)])
        left = left[~found]
    return np.concatenate(out)
