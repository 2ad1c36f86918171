"""A Gaussian process over candidates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular

from .kernel import Covariance

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
