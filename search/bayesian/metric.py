"""Measured metric as a Gaussian process learns it, on a scale where compression acts nearly linearly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .kernel import Covariance, OptionKernel

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


# -- A metric that has to be measured, as a Gaussian process learns it ----------------------------------

STEPS = 6  # of the optimiser for each scale tried, and twice as many for the best


class Metric:
    """Scale and hyperparameters for one metric, as a loss: ``sign`` x score.

    Args:
        name: of the score.
        sign: 1 where less is better, -1 where more is.
    """

    def __init__(self, name: str, sign: float) -> None:
        self.name = name
        self.sign = sign
        self.warp: Warp | None = None  # from losses to what the process sees; None until fitted
        self.covariance: Covariance | None = None

    def fit(self, kernel: OptionKernel, rows: np.ndarray, losses: np.ndarray, anchor: float) -> None:
        """Scale and hyperparameters of largest posterior density.

        The first time all scales are tried, later those beside the last one. None is finer than the least
        difference from the anchor: values that repeat (an accuracy of 450 images does) would make ever finer
        ones ever more likely.

        Args:
            rows: int [n, choices], n >= 1.
            losses: float64 [n], finite.
            anchor: the unchanged model's loss, or the least one.
        """
        away = np.abs(losses - anchor)
        reach = float(away.max())
        distinct = away[away > 1e-9 * reach]
        finest = max(FINEST, min(1.0, 2 * float(distinct.min()) / reach)) if reach > 0 else 1.0
        tried = SCALES if self.warp is None else [self.warp.share * f for f in (0.5, 1.0, 2.0)]
        best = np.inf
        start = theta = self.covariance.theta if self.covariance else None
        for share in sorted({min(1.0, max(finest, s)) for s in tried}):
            warp = standardised(losses, anchor, share)
            found, density = kernel.fit(rows, warp(losses), start, steps=STEPS)
            density -= warp.log_slope(losses)
            if density < best:
                best, self.warp, theta = density, warp, found
        assert self.warp is not None
        theta, _ = kernel.fit(rows, self.warp(losses), theta, steps=2 * STEPS)
        self.covariance = Covariance(kernel, theta)

    def z(self, losses: np.ndarray) -> np.ndarray:
        """Losses on the scale of the process; only after :meth:`fit`."""
        assert self.warp is not None
        return self.warp(losses)
