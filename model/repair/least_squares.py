"""Least squares of repair: removed columns as combinations of kept ones, and the cache of such changes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

RIDGE = 0.03  # of the mean variance of the columns
LEAST = 1e-12  # of the same, where without damping the moments are singular


def moments(gram: np.ndarray, *, intercept: bool = True, ridge: float = RIDGE) -> np.ndarray:
    """Damped second moments [n, n]: about the mean with an intercept, else about zero.

    Args:
        gram: [n + 1, n + 1], sum over samples of z z^T with z = (x, 1).
        ridge: times the mean of the diagonal, added to the diagonal (Hassibi & Stork 1993, section 2.2).
    """
    n = len(gram) - 1
    second = gram[:n, :n]
    if intercept:
        second = second - np.outer(gram[:n, n], gram[n, :n]) / max(gram[n, n], 1.0)
    else:
        second = second.copy()
    diagonal = np.einsum("ii->i", second)
    diagonal += ridge * max(float(diagonal.mean()), 0.0) + 1e-30
    return second


class ColumnSplit:
    """``x[removed]`` as ``x[kept] @ A + b``, in the ridge least-squares sense; factorised once.

    The intercept is not damped, so the mean error is zero, and no combination can be worse than none.

    Args:
        gram: [n + 1, n + 1] float64, sum over samples of z z^T with z = (x, 1).
        kept, removed: column numbers, disjoint.
    """

    def __init__(
        self, gram: np.ndarray, kept: np.ndarray, removed: np.ndarray, *, ridge: float, intercept: bool
    ) -> None:
        n = len(gram) - 1
        mean = gram[n, :n] / max(gram[n, n], 1.0) if intercept else np.zeros(n)
        second = torch.from_numpy(gram[np.ix_(kept, np.concatenate([kept, removed]))])
        self._kept_mean, self._removed_mean = torch.from_numpy(mean[kept]), torch.from_numpy(mean[removed])
        if intercept:
            both = torch.cat([self._kept_mean, self._removed_mean])
            second -= torch.outer(self._kept_mean, both) * gram[n, n]
        spread = np.maximum(gram.diagonal()[:n] - mean**2 * gram[n, n], 0.0).mean() if n else 0.0
        self._cross = second[:, len(kept) :]
        self._lower = _factor(second[:, : len(kept)], ridge * float(spread), LEAST * float(spread))

    def absorb(self, outgoing: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What must be added where ``x[removed] @ outgoing`` is left out.

        Args:
            outgoing: [removed, m] float64.

        Returns:
            A @ outgoing [kept, m] and b @ outgoing [m] (zeros without an intercept).
        """
        if outgoing.shape[1] <= outgoing.shape[0]:
            taken = torch.cholesky_solve(self._cross @ outgoing, self._lower)
        else:  # fewer columns to solve for
            taken = torch.cholesky_solve(self._cross, self._lower) @ outgoing
        return taken, self._removed_mean @ outgoing - self._kept_mean @ taken


def _factor(second: torch.Tensor, damping: float, least: float) -> torch.Tensor:
    """Lower Cholesky factor of ``second + damping``, with more damping where it is singular."""
    damped = second.clone()
    while True:
        damped.diagonal().copy_(second.diagonal() + damping + 1e-30)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return lower
        damping = max(10 * damping, least, 1e-30)


def mixing(
    gram: np.ndarray, kept: np.ndarray, removed: np.ndarray, *, ridge: float = RIDGE, intercept: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """A [kept, removed] and b [removed] of :class:`ColumnSplit`."""
    split = ColumnSplit(gram, kept, removed, ridge=ridge, intercept=intercept)
    a, b = split.absorb(torch.eye(len(removed), dtype=torch.float64))
    return a.numpy(), b.numpy()


# -- What a layer's weights gain when some of its inputs go, kept for the next candidate with the same cut

BYTES = 64 * 2**20  # of all changes kept


@dataclass(frozen=True)
class Change:
    """For every output of a consumer, whether or not it stays."""

    weight: torch.Tensor  # [outputs, kept columns of one convolution group, shared], in the weight's type
    constant: torch.Tensor  # [outputs]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.constant.nbytes


class Changes:
    """Changes by consumer and cut, at most ``bytes`` of them; the least recently used go first.

    Candidates of one space cut a group in only a few ways, so that most changes are found here.
    """

    def __init__(self, *, bytes: int = BYTES) -> None:
        self.bytes = bytes
        self.nbytes = 0
        self._held: OrderedDict[Hashable, Change] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable, make: Callable[[], Change]) -> Change:
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        change = make()
        if change.nbytes > self.bytes // 4:
            return change
        self._held[key] = change
        self.nbytes += change.nbytes
        while self.nbytes > self.bytes:
            self.nbytes -= self._held.popitem(last=False)[1].nbytes
        return change

    def __getstate__(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "nbytes": 0, "_held": OrderedDict()}
