"""A metric that has to be measured, as a Gaussian process learns it."""

from __future__ import annotations

import numpy as np

from .kernel import Covariance, OptionKernel
from .warp import FINEST, SCALES, Warp, standardised

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
