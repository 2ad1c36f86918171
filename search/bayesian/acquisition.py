"""Acquisition: exact expected hypervolume improvement, times the chance that limits are kept, spread out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from ...results.hypervolume import nondominated
from .kernel import Field

ROOT = np.sqrt(2.0 * np.pi)


@dataclass(frozen=True, slots=True)
class ImprovementMeasure:
    """How much an interval of an objective is worth: a density that is constant between knots.

    Args:
        knots: float64 [k], rising, k >= 2, in the coordinate in which the objective is Gaussian.
        worth: float64 [k], rising; linear between the knots, and beyond them with the outermost slopes.
    """

    knots: np.ndarray
    worth: np.ndarray

    def slopes(self) -> np.ndarray:
        """Worth per unit, [k - 1]."""
        return np.diff(self.worth) / np.diff(self.knots)


def cells(front: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint boxes that make up what lies below the reference and no point of the front dominates.

    The space is cut into slabs along the last objective at the points' values; in each slab, the points
    below it leave a free region with one objective fewer (Emmerich, Giannakoglou and Naujoks 2006 use the
    full grid instead; two objectives give n + 1 strips, three at most (n + 1)(n + 2) / 2 boxes).

    Args:
        front: [n, objectives], minimised; points that are dominated or outside are harmless.
        reference: [objectives].

    Returns:
        Lower and upper corners [boxes, objectives]; lower ones may be -inf.
    """
    reference = np.asarray(reference, dtype=np.float64)
    front = np.asarray(front, dtype=np.float64).reshape(-1, len(reference))
    front = front[(front < reference).all(axis=1)]
    if len(front):
        front = np.unique(front[nondominated(front)], axis=0)
    if len(reference) == 1:
        upper = front.min(axis=0) if len(front) else reference
        return np.full((1, 1), -np.inf), upper.reshape(1, 1)
    front = front[np.argsort(front[:, -1], kind="stable")]
    if len(reference) == 2:  # first falls while second rises: one strip above each point
        right = np.concatenate([reference[:1], front[:, 0]])
        steps = np.concatenate([[-np.inf], front[:, 1], reference[1:]])
        low = np.column_stack([np.full(len(right), -np.inf), steps[:-1]])
        return low, np.column_stack([right, steps[1:]])
    edges = np.concatenate([[-np.inf], front[:, -1], reference[-1:]])
    lower, upper = [], []
    for i in range(len(front) + 1):
        if edges[i] == edges[i + 1]:
            continue
        low, high = cells(front[:i, :-1], reference[:-1])
        lower.append(np.column_stack([low, np.full(len(low), edges[i])]))
        upper.append(np.column_stack([high, np.full(len(high), edges[i + 1])]))
    return np.concatenate(lower), np.concatenate(upper)


def expected_improvement(
    mean: np.ndarray,
    std: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    measures: dict[int, ImprovementMeasure] | None = None,
) -> np.ndarray:
    """Expected hypervolume gained by each of n candidates alone, float64 [n].

    A box gains the part of it that the candidate dominates; with independent objectives its expectation is
    the product over objectives of E[length of [P, u]] - E[length of [P, l]], where
    E[max(0, u - P)] = (u - mean) Phi(z) + std phi(z), z = (u - mean) / std
    (Yang, Emmerich, Deutz and Bäck, J. Global Optimization 75, 2019, equation 12).

    Args:
        mean: [n, objectives], minimised.
        std: [n, objectives]; 0 where the objective is known exactly.
        lower, upper: boxes of :func:`cells`.
        measures: by objective, where intervals are not worth their length (the weighted hypervolume of
            Zitzler, Brockhoff and Thiele 2007, with a product of densities).
    """
    out = np.ones((len(mean), len(lower)))
    for j in range(mean.shape[1]):
        levels, at = np.unique(np.concatenate([lower[:, j], upper[:, j]]), return_inverse=True)
        gain = below(mean[:, j], std[:, j], levels, (measures or {}).get(j))  # [n, levels]
        out *= gain[:, at[len(lower) :]] - gain[:, at[: len(lower)]]
    return out.sum(axis=1)


def below(
    mean: np.ndarray, std: np.ndarray, levels: np.ndarray, measure: ImprovementMeasure | None = None
) -> np.ndarray:
    """Expected worth of [P, level] for Gaussian P, [n, levels]; 0 at level -inf. ``levels`` rises."""
    finite = np.isfinite(levels)
    out = np.zeros((len(mean), len(levels)))
    if measure is None:
        out[:, finite] = _length(mean, std, levels[finite])
        return out
    # Integral of Phi((t - mean) / std) d worth(t): piecewise the lengths' differences times the slopes.
    grid = np.union1d(measure.knots, levels[finite])
    length = _length(mean, std, grid)
    slopes = measure.slopes()
    # [grid]: the slope that holds just below each point
    slope = slopes[np.clip(np.searchsorted(measure.knots, grid, side="left") - 1, 0, len(slopes) - 1)]
    parts = np.diff(length, axis=1, prepend=0.0) * slope
    out[:, finite] = np.cumsum(parts, axis=1)[:, np.searchsorted(grid, levels[finite])]
    return out


def _length(mean: np.ndarray, std: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """E[max(0, level - P)], [n, levels]."""
    away = levels[None, :] - mean[:, None]
    if not std.any():
        return np.maximum(away, 0.0)
    spread = np.maximum(std, 1e-12)[:, None]
    z = np.clip(away / spread, -40.0, 40.0)
    return np.maximum(away * ndtr(z) + spread * np.exp(-0.5 * z * z) / ROOT, 0.0)


# -- What a candidate not scored yet is worth: expected hypervolume improvement times the chance to be kept

FRONT = {3: 40, 4: 12}  # points of the front that count, by number of objectives; more for two, 8 beyond


@dataclass(frozen=True, slots=True)
class Bound:
    """A limit on a modelled metric: at most ``level``, or at least where not ``upper``."""

    metric: int  # number of the modelled metric
    level: float  # on the scale of the values that it is compared with
    upper: bool

    def kept(self, values: np.ndarray) -> np.ndarray:
        """Bool, one per value."""
        return values <= self.level if self.upper else values >= self.level


class Acquisition:
    """Ranks a fixed pool of n candidates, and follows what is taken from it.

    Args:
        fields: one per modelled metric, over the pool.
        columns: per objective the modelled metric's number, or its known values over the pool [n].
        front: [points, objectives] so far, minimised, modelled objectives warped.
        reference: [objectives], nothing worse counts.
        measures: by modelled objective, what intervals are worth.
        bounds: limits on modelled metrics.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        columns: Sequence[int | np.ndarray],
        front: np.ndarray,
        reference: np.ndarray,
        measures: dict[int, ImprovementMeasure],
        bounds: Sequence[Bound] = (),
    ) -> None:
        self.fields = fields
        self.columns = columns
        self.reference = reference
        self.measures = measures
        self.bounds = bounds
        self.mean = np.column_stack([fields[c].mean if isinstance(c, int) else c for c in columns])
        self.front = _thinned(front)
        self._taken = np.zeros(len(self.mean), dtype=bool)

    def values(self) -> np.ndarray:
        """What each candidate is expected to add, [n]; -1 for those taken.

        The noise counts as part of what is unknown: a candidate is scored once, and what is scored counts.
        """
        known = np.zeros(len(self.mean))
        std = np.column_stack([self._std(c) if isinstance(c, int) else known for c in self.columns])
        lower, upper = cells(self.front, self.reference)
        value = expected_improvement(self.mean, std, lower, upper, self.measures)
        for b in self.bounds:
            z = (b.level - self.fields[b.metric].mean) / self._std(b.metric)
            value *= ndtr(z if b.upper else -z)
        return np.where(self._taken, -1.0, value)

    def take(self) -> int:
        """The best candidate; from now on believed to score what is expected."""
        i = int(self.values().argmax())
        self._taken[i] = True
        if all(b.kept(self.fields[b.metric].mean[i]) for b in self.bounds):
            self.front = _thinned(np.vstack([self.front, self.mean[i]]))
        for field in self.fields:
            field.believe(i)
        return i

    def _std(self, metric: int) -> np.ndarray:
        field = self.fields[metric]
        return np.sqrt(field.variance + field.noise)


def _thinned(front: np.ndarray) -> np.ndarray:
    """The non-dominated points; of many, in three objectives or more, those far from each other."""
    front = front[nondominated(front)] if len(front) else front
    most = FRONT.get(front.shape[1], 8) if front.shape[1] > 2 else len(front)
    if len(front) <= most:
        return front
    scaled = (front - front.min(axis=0)) / np.maximum(np.ptp(front, axis=0), 1e-12)
    chosen = list(dict.fromkeys(scaled.argmin(axis=0).tolist()))
    near = np.min([np.abs(scaled - scaled[i]).max(axis=1) for i in chosen], axis=0)
    while len(chosen) < most:
        chosen.append(int(near.argmax()))
        near = np.minimum(near, np.abs(scaled - scaled[chosen[-1]]).max(axis=1))
    return front[chosen]


# -- Spread: the choice of the next points to measure among many predicted ones; pure functions ---------


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
