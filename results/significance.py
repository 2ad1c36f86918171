"""Significance of a measured metric: intervals, and paired tests of two networks. Pure array functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

LEVEL = 0.95
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Paired:
    """Two networks on the same samples, of which each gets some right that the other gets wrong."""

    gained: int  # samples that this one alone gets right
    lost: int  # samples that the other alone gets right
    p: float  # two-sided, exact; in (0, 1]


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric on data that were seen once, with what is needed to read it."""

    value: float
    low: float  # ends of the interval
    high: float
    samples: int
    method: str  # "wilson" or "bootstrap"
    level: float = LEVEL  # of the interval
    baseline: float | None = None  # of the unchanged model, on the same samples
    paired: Paired | None = None  # against it (McNemar), where each sample is right or wrong

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Figure:
        """What ``dataclasses.asdict`` made."""
        paired = data.get("paired")
        return cls(**{**data, "paired": None if paired is None else Paired(**paired)})


def wilson(right: int, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Interval of a share ``right / count`` (Wilson 1927, JASA 22:209).

    Unlike the textbook's ``p ± z s`` it stays in [0, 1] and has a width at 0 and at 1.

    Raises:
        ValueError: not ``0 <= right <= count``, no samples, or a level outside (0, 1).
    """
    if count < 1 or not 0 <= right <= count or not 0 < level < 1:
        raise ValueError(
            f"need 0 <= right <= count, count >= 1, 0 < level < 1; got {right}, {count}, {level}"
        )
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share, spread = right / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    # At the ends the formula gives them up to rounding.
    low = 0.0 if right == 0 else max(0.0, centre - half)
    high = 1.0 if right == count else min(1.0, centre + half)
    return low, high


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> Paired:
    """McNemar's exact test (1947, Psychometrika 12:153) of two networks on the same samples.

    Where one alone is right, each is equally likely to be under the null hypothesis: a two-sided sign test,
    ``p = min(1, 2 P[Binomial(gained + lost, 1/2) <= min(gained, lost)])``.

    Args:
        ours, theirs: bool [samples], which each got right.

    Raises:
        ValueError: shapes that differ.
    """
    ours, theirs = np.asarray(ours, bool), np.asarray(theirs, bool)
    if ours.shape != theirs.shape or ours.ndim != 1:
        raise ValueError(f"need two vectors of one length, got {ours.shape} and {theirs.shape}")
    gained, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return Paired(gained, lost, float(sign_test(gained, lost)))


def sign_test(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Two-sided p that ``a + b`` fair coins fall at least as unevenly as ``a`` against ``b``.

    Args:
        a, b: counts, int arrays that broadcast.

    Returns:
        Float64 of their shape, in (0, 1].
    """
    from scipy.special import bdtr  # the binomial distribution without scipy.stats, which takes 2 s to import

    return np.minimum(1.0, 2.0 * bdtr(np.minimum(a, b), np.add(a, b), 0.5))


def bootstrap(
    metric: Callable[[np.ndarray], float],
    count: int,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a metric (Efron 1979), by drawing samples with replacement.

    Args:
        metric: from rows (int64 [count], repeats among them) to the metric on these samples; NaN where they
            have none, which is left out.
        count: of samples, at least 1.
        resamples: draws, at least 2.

    Raises:
        ValueError: numbers out of their range, or no draw with a finite metric.
    """
    if count < 1 or resamples < 2 or not 0 < level < 1:
        raise ValueError(f"need count >= 1, resamples >= 2, 0 < level < 1; got {count}, {resamples}, {level}")
    rng = np.random.default_rng(seed)
    drawn = np.array([metric(rng.integers(0, count, count)) for _ in range(resamples)], dtype=float)
    drawn = drawn[np.isfinite(drawn)]
    if not drawn.size:
        raise ValueError("the metric is finite on no draw of the samples")
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
