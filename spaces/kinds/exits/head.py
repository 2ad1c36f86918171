"""An exit head: pooled features, and a linear layer fitted in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

FEATURES = 256  # most that a finer pooling than the global average may give
RIDGE = 1e-2  # of the mean variance of the features


def grid_of(shape: tuple[int, ...], channels: int) -> tuple[int, ...]:
    """Cells per axis (that of channels left out) that features are averaged over.

    All positions where that gives at most 256 features, else 2 cells an axis where these do, else one cell:
    the global average.

    Args:
        shape: of one sample's tensor, without the batch.
        channels: which axis holds channels, the batch counted.
    """
    places = tuple(n for axis, n in enumerate(shape, start=1) if axis != channels)
    for grid in (places, tuple(min(n, 2) for n in places)):
        if shape[channels - 1] * math.prod(grid) <= FEATURES:
            return grid
    return (1,) * len(places)


class Head(nn.Module):
    """Scores [batch, classes] from a tensor [batch, ...] that crosses a place: pool, then one linear layer.

    Args:
        width: channels that there are.
        channels: their axis, the batch counted.
        grid: cells per other axis, see :func:`grid_of`.
        classes: scores per sample.
        dtype: of the tensor.
    """

    def __init__(
        self,
        width: int,
        channels: int,
        grid: tuple[int, ...],
        classes: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.channels, self.grid = channels, grid
        self.linear = nn.Linear(width * math.prod(grid), classes, dtype=dtype)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def features(self, x: Tensor) -> Tensor:
        """[batch, features]."""
        x = x.movedim(self.channels, 1)
        if x.dim() == 2:
            return x
        if math.prod(self.grid) == 1:
            return x.flatten(2).mean(2)
        if x.dim() > 5:
            return x.flatten(1)
        if tuple(x.shape[2:]) != self.grid:
            x = _POOLS[x.dim() - 3](x, self.grid)
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x))


_POOLS: tuple[Callable[..., Tensor], ...] = (
    functional.adaptive_avg_pool1d,
    functional.adaptive_avg_pool2d,
    functional.adaptive_avg_pool3d,
)


class Moments:
    """Sums from which a head is fitted: of features, of outputs, and of their products, float64."""

    def __init__(self, features: int, outputs: int) -> None:
        self.count = 0
        self.x, self.y = torch.zeros(features).double(), torch.zeros(outputs).double()
        self.xx = torch.zeros(features, features).double()
        self.xy = torch.zeros(features, outputs).double()

    def add(self, x: Tensor, y: Tensor) -> None:
        """Features [samples, features] and wanted outputs [samples, outputs]."""
        x, y = x.double(), y.double()
        self.count += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x
        self.xy += x.T @ y

    def solve(self, *, ridge: float) -> tuple[Tensor, Tensor]:
        """W [outputs, features] and b [outputs] of least ``|y - W x - b|^2 + lambda |W|^2``, in float64.

        Args:
            ridge: lambda, relative to the mean variance of the features times the samples; b is not damped.
        """
        mx, my = self.x / self.count, self.y / self.count
        second = self.xx - self.count * torch.outer(mx, mx)
        cross = self.xy - self.count * torch.outer(mx, my)
        scale = float(second.diagonal().mean().clamp_min(0))
        second.diagonal().add_(ridge * scale + 1e-30)
        # By eigenvalues: constant features, or fewer samples than features, leave it singular.
        values, vectors = torch.linalg.eigh(second)
        inverse = torch.where(values > 1e-12 * values[-1], 1 / values.clamp_min(1e-300), 0.0)
        w = (vectors * inverse) @ (vectors.T @ cross)
        return w.T, my - w.T @ mx
