"""What a candidate not scored yet is worth: expected hypervolume improvement times the chance to be kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from ...results.hypervolume import nondominated
from .improvement import Measure, cells, expected_improvement
from .surrogate import Field

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
        measures: dict[int, Measure],
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
