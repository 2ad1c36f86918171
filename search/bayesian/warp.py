"""A scale on which what compression does to a metric is near to Gaussian."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FINEST = 1 / 256
SCALES = tuple((2.0 ** -np.arange(9.0)).tolist())  # tried, as shares of the largest distance; to FINEST


@dataclass(frozen=True, slots=True)
class Warp:
    """z = (sign(d) log(1 + |d| / scale) - shift) / size, d = value - anchor: fine near the anchor, coarse
    far away.

    Damages add up while they are small and multiply when they are large; accuracy falls off a cliff whose
    exact depth nobody asks for. The scale between the two is learnt from the data (:class:`~.metric.Metric`).

    Args:
        anchor: the value of the unchanged model.
        share: the scale as a share of ``reach``, in (0, 1].
        reach: the largest distance from the anchor in the data, above 0, in units of the value.
        shift, size: make the data's mean 0 and standard deviation 1.
    """

    anchor: float
    share: float = 1.0
    reach: float = 1.0
    shift: float = 0.0
    size: float = 1.0

    @property
    def scale(self) -> float:
        """Distance from the anchor at which the slope has halved."""
        return self.share * self.reach

    def __call__(self, values: np.ndarray) -> np.ndarray:
        away = (np.asarray(values, dtype=np.float64) - self.anchor) / self.scale
        return (np.sign(away) * np.log1p(np.abs(away)) - self.shift) / self.size

    def inverse(self, z: np.ndarray) -> np.ndarray:
        """The value that maps to z."""
        away = np.asarray(z, dtype=np.float64) * self.size + self.shift
        return self.anchor + self.scale * np.sign(away) * np.expm1(np.abs(away))

    def log_slope(self, values: np.ndarray) -> float:
        """Sum of log dz/dvalue: what the change of variables adds to a log likelihood (Snelson, Rasmussen
        and Ghahramani, NIPS 2003, equation 5)."""
        away = np.abs(np.asarray(values, dtype=np.float64) - self.anchor)
        return float(-np.log(away + self.scale).sum() - len(away) * np.log(self.size))


def standardised(values: np.ndarray, anchor: float, share: float) -> Warp:
    """The warp of one scale for values [n], n >= 1; linear up to a constant where all equal the anchor."""
    reach = float(np.abs(values - anchor).max()) or 1.0
    z = Warp(anchor, share, reach)(values)
    return Warp(anchor, share, reach, float(z.mean()), float(z.std()) or 1.0)
