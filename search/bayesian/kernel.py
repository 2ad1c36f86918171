"""Kernel and Gaussian process over candidates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import minimize

from ...spaces import Space

MEAN, TREND = 2.0, 2.0  # prior standard deviations of the constant and of the slope along the diagonal
JITTER = 1e-6  # on the diagonal, beside the noise; in units of the values' variance
# Priors on the logarithm of the hyperparameters, (mean, standard deviation); values have unit variance and a
# choice spans [0, 1].
LENGTH, AMPLITUDE, JOINT, NOISE = (-0.36, 0.7), (-1.2, 0.7), (-0.7, 1.0), (-3.0, 1.0)


class OptionKernel:
    """Covariance of two candidates: what single choices do, plus what all of them do together.

    k(x, y) = MEAN^2 + TREND^2 mean(x) mean(y) + sum_d a_d^2 m_d(x_d, y_d) + f^2 prod_d m_d(x_d, y_d)

    The sum and the product are the first and the last order of additive Gaussian processes (Duvenaud,
    Nickisch and Rasmussen, NIPS 2011, equations 4 and 8); the trend lets damage go on growing with
    compression where no data are. ``m_d`` is Matérn 3/2 along the option's index where options are numbers,
    else one correlation between any two different options (Hamming). Everything is read from tables
    [options, options], as products of one-hot matrices.

    Hyperparameters, as logarithms, [2 choices + 2]: lengths, amplitudes a, joint amplitude f, noise.
    """

    def __init__(self, space: Space) -> None:
        self.counts = space.counts
        ends = np.cumsum(self.counts)
        self.first = ends - self.counts  # [choices]: column of each choice's option 0
        self.width = int(ends[-1])
        self.of = np.repeat(np.arange(len(space)), self.counts)  # [width]: choice of a column
        same = self.of[:, None] == self.of[None, :]  # [width, width]: block diagonal
        option = np.arange(self.width) - self.first[self.of]
        x = option / np.maximum(self.counts - 1, 1)[self.of]
        ordered = np.array([all(_is_number(o) for o in c.options) for c in space.choices])
        gap = np.where(
            ordered[self.of][:, None], np.abs(x[:, None] - x[None, :]), option[:, None] != option[None, :]
        )
        self.gap = np.where(same, gap * np.sqrt(3.0), 0.0)  # [width, width]
        self.same = same
        self.neutral = space.neutral  # equal networks are the same point
        tied = ~self.neutral[self.of]
        self.slope = tied * x / max(1, int((~self.neutral).sum()))  # one-hot @ slope is the mean compression
        d = len(space)
        prior = np.array([LENGTH] * d + [AMPLITUDE] * d + [JOINT, NOISE])
        self.prior_mean, self.prior_std = prior.T

    def one_hot(self, rows: np.ndarray) -> np.ndarray:
        """Indicator matrix float64 [n, width] for option indices [n, choices]; neutral choices count as 0."""
        rows = np.where(self.neutral, 0, rows)
        out = np.zeros((len(rows), self.width))
        out[np.arange(len(rows))[:, None], rows + self.first] = 1.0
        return out

    def tables(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(additive table, logarithm of the correlations), both [width, width], 0 between choices."""
        d = len(self.counts)
        r = self.gap / np.exp(theta[:d])[self.of][:, None]
        log_m = np.log1p(r) - r
        additive = np.where(self.same, np.exp(log_m) * np.exp(2 * theta[d : 2 * d])[self.of][:, None], 0.0)
        return additive + np.outer(self.slope, self.slope) * TREND**2, log_m

    def loss_and_gradient(
        self, theta: np.ndarray, a: np.ndarray, values: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Negative log posterior density of the hyperparameters, up to a constant, and its gradient.

        Rasmussen and Williams 2006, equations 5.8 and 5.9, plus the Gaussian priors. With
        G = K^-1 - alpha alpha^T, half the trace of G dK is a sum over entries of tables times a^T G a.
        """
        d, n = len(self.counts), len(values)
        additive, log_m = self.tables(theta)
        joint = np.exp(2 * theta[-2] + a @ (log_m @ a.T))
        noise = np.exp(2 * theta[-1])
        k = MEAN**2 + a @ (additive @ a.T) + joint
        k[np.diag_indices(n)] += noise + JITTER
        lower = np.linalg.cholesky(k)
        half = solve_triangular(lower, np.eye(n), lower=True)
        alpha = half.T @ (half @ values)
        g = half.T @ half - np.outer(alpha, alpha)
        away = (theta - self.prior_mean) / self.prior_std
        value = 0.5 * values @ alpha + np.log(np.diag(lower)).sum() + 0.5 * away @ away

        r = self.gap / np.exp(theta[:d])[self.of][:, None]
        correlation = np.where(self.same, np.exp(log_m), 0.0)
        amplitude = np.exp(2 * theta[d : 2 * d])[self.of][:, None]
        d_log_m = r * r / (1.0 + r)  # of log m by log length
        summed = a.T @ g @ a  # [width, width]
        joint_g = g * joint
        by_length = (summed * amplitude * correlation + a.T @ joint_g @ a) * d_log_m
        gradient = np.zeros_like(theta)
        gradient[:d] = 0.5 * np.bincount(self.of, by_length.sum(axis=1), minlength=d)
        gradient[d : 2 * d] = np.bincount(
            self.of, (summed * amplitude * correlation).sum(axis=1), minlength=d
        )
        gradient[-2] = joint_g.sum()
        gradient[-1] = np.trace(g) * noise
        return float(value), gradient + away / self.prior_std

    def fit(
        self, rows: np.ndarray, values: np.ndarray, start: np.ndarray | None = None, *, steps: int = 20
    ) -> tuple[np.ndarray, float]:
        """Hyperparameters of largest posterior density (L-BFGS), and the negative log density reached."""
        a = self.one_hot(rows)
        low, high = self.prior_mean - 4 * self.prior_std, self.prior_mean + 4 * self.prior_std
        found = minimize(
            self.loss_and_gradient,
            self.prior_mean if start is None else start,
            args=(a, values),
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(low, high, strict=True)),
            options={"maxiter": steps},
        )
        return found.x, float(found.fun)


class Covariance:
    """The kernel with its hyperparameters; one-hot rows are those of ``kernel.one_hot``."""

    def __init__(self, kernel: OptionKernel, theta: np.ndarray) -> None:
        d = len(kernel.counts)
        self.kernel = kernel
        self.theta = theta
        self.noise = float(np.exp(2 * theta[-1]) + JITTER)  # variance
        self._additive, self._log_m = kernel.tables(theta)
        self._constant = MEAN**2 + np.exp(2 * theta[d : 2 * d]).sum() + np.exp(2 * theta[-2])

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Covariance without noise, [n, m], of one-hot rows a [n, width] and b [m, width]."""
        joint = np.exp(a @ (self._log_m @ b.T) + 2 * self.theta[-2])
        return a @ (self._additive @ b.T) + joint + MEAN**2

    def diagonal(self, a: np.ndarray) -> np.ndarray:
        """Prior variance [n] of one-hot rows, without noise."""
        return self._constant + TREND**2 * (a @ self.kernel.slope) ** 2


def _is_number(option: object) -> bool:
    return isinstance(option, int | float) and not isinstance(option, bool)


# -- A Gaussian process over candidates -----------------------------------------------------------------

LEAST = 1e-12  # variance; rounding would make it negative at what was observed


@dataclass
class Posterior:
    """A Gaussian process given values [n] at rows [n, choices].

    Args:
        covariance: with its hyperparameters.
        rows: int [n, choices], n >= 1.
        values: float64 [n], on a scale on which the prior makes sense: mean near 0, deviation near 1.
    """

    covariance: Covariance
    rows: np.ndarray
    values: np.ndarray

    def __post_init__(self) -> None:
        self._a = self.covariance.kernel.one_hot(self.rows)
        k = self.covariance(self._a, self._a)
        k[np.diag_indices(len(k))] += self.covariance.noise
        self._lower = np.linalg.cholesky(k)
        self._white = solve_triangular(self._lower, self.values, lower=True, check_finite=False)  # L^-1 y

    def given(self, rows: np.ndarray, values: np.ndarray) -> Posterior:
        """The same with further values [m] at rows [m, choices]."""
        values = np.concatenate([self.values, values])
        return Posterior(self.covariance, np.vstack([self.rows, rows]), values)

    def mean(self, rows: np.ndarray) -> np.ndarray:
        """Mean at rows [m, choices]."""
        weights = solve_triangular(self._lower, self._white, lower=True, trans=1, check_finite=False)
        return self.covariance(self.covariance.kernel.one_hot(rows), self._a) @ weights

    def at(self, rows: np.ndarray) -> Field:
        """Mean and variance at rows [m, choices], ready to follow what is believed there."""
        b = self.covariance.kernel.one_hot(rows)
        half = solve_triangular(self._lower, self.covariance(self._a, b), lower=True, check_finite=False)
        variance = self.covariance.diagonal(b) - np.einsum("nm,nm->m", half, half)
        return Field(self.covariance, b, half, half.T @ self._white, np.maximum(variance, LEAST))


@dataclass
class Field:
    """A posterior at a fixed set of m candidates."""

    covariance: Covariance
    one_hot: np.ndarray  # [m, width]
    half: np.ndarray  # [n, m]: L^-1 K
    mean: np.ndarray  # [m]
    variance: np.ndarray  # [m], of the function without noise

    @property
    def noise(self) -> float:
        """Variance of the noise."""
        return self.covariance.noise

    def believe(self, i: int) -> None:
        """Take the mean at candidate i as observed there (kriging believer, Ginsbourger, Le Riche and
        Carraro 2010, section 4.1): the means stay, the variances shrink."""
        shared = self.covariance(self.one_hot[i : i + 1], self.one_hot)[0] - self.half[:, i] @ self.half
        row = shared / np.sqrt(self.variance[i] + self.noise)  # the next row of L^-1 K
        self.half = np.vstack([self.half, row])
        self.variance = np.maximum(self.variance - row * row, LEAST)
