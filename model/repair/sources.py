"""Tensors that repair reads: their second moments, and samples of their rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.nn import functional

from ..coupling.walk import bind, operator_name

# In place of an operand's name: what layer 1 of a recurrent call gives ("output.1"), or one direction of it
# ("output.1.0").
OUTPUT = "output"


@dataclass(frozen=True)
class Patch:
    """The window of a 2-d convolution, (rows, columns) each."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


@dataclass(frozen=True)
class MomentSource:
    """A tensor axis (or the windows of a convolution over it) whose second moments are gathered.

    Its columns are the positions along the axis; with a window, ``position * taps + tap``.
    """

    calls: tuple[tuple[str, str], ...]  # (node, operand's schema name or OUTPUT...); several: a shared weight
    axis: int  # counted from the end, below 0
    groups: int  # of a grouped convolution: each sees its own part of the axis
    patch: Patch | None
    labels: np.ndarray  # [positions] unit labels, 0 fixed

    @property
    def taps(self) -> int:
        return math.prod(self.patch.kernel) if self.patch else 1

    @property
    def columns(self) -> np.ndarray:
        """Unit label of each column, [columns]."""
        return np.repeat(self.labels, self.taps)


def patch_of(node: fx.Node, rank: int) -> Patch | None:
    """The window of a call, if it has one: not for pointwise layers, nor for forms that are not followed.

    Args:
        rank: number of axes of the input.
    """
    bound = bind(node)
    if operator_name(node.target)[0] != "conv2d" or rank != 4:
        return None
    kernel = _pair(bound["weight"].meta["val"].shape[2:])
    stride, dilation = _pair(bound["stride"]), _pair(bound["dilation"])
    if bound["padding"] == "same":
        span = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if span[0] % 2 or span[1] % 2:
            return None  # padded more on one side than on the other
        padding = (span[0] // 2, span[1] // 2)
    else:
        padding = (0, 0) if bound["padding"] == "valid" else _pair(bound["padding"])
    pointwise = kernel == (1, 1) and stride == (1, 1) and padding == (0, 0)
    return None if pointwise else Patch(kernel, stride, padding, dilation)


def _pair(sizes: Any) -> tuple[int, int]:
    return (sizes[0], sizes[-1])


# -- Samples of what a layer sums over: one row per output place, one column per input (and kernel tap)


def places(x: torch.Tensor, source: MomentSource) -> tuple[int, ...]:
    """Axes that samples run over: batch and, for a convolution, the output map."""
    if source.patch is None:
        return tuple(n for axis, n in enumerate(x.shape) if axis != source.axis % x.dim())
    p = source.patch
    span = [d * (k - 1) + 1 for k, d in zip(p.kernel, p.dilation, strict=True)]
    sizes = zip(x.shape[2:], p.padding, span, p.stride, strict=True)
    return (len(x), *((length + 2 * pad - s) // step + 1 for length, pad, s, step in sizes))


def draw(total: int, wanted: int, generator: torch.Generator) -> torch.Tensor:
    """At most ``wanted`` of ``total`` row numbers; all of them, in order, where that is enough."""
    if total <= wanted:
        return torch.arange(total)
    return torch.randint(total, (wanted,), generator=generator)


class Picker:
    """Takes the rows numbered ``at`` (over :func:`places`, last axis fastest) out of a source's tensor.

    Made once for tensors that differ from ``x`` in the number of channels alone.
    """

    def __init__(self, x: torch.Tensor, source: MomentSource, at: torch.Tensor) -> None:
        self._source = source
        shape = places(x, source)
        self._all = len(at) == math.prod(shape)
        index = torch.unravel_index(at, shape)
        p = source.patch
        if p is None:
            self._index: tuple[torch.Tensor, ...] = index
            return
        image, top, left = index
        high, wide = (n + 2 * pad for n, pad in zip(x.shape[2:], p.padding, strict=True))
        down = top[:, None] * p.stride[0] + torch.arange(p.kernel[0]) * p.dilation[0]
        right = left[:, None] * p.stride[1] + torch.arange(p.kernel[1]) * p.dilation[1]
        self._index = (((image[:, None] * high + down)[:, :, None] * wide + right[:, None, :]).reshape(-1),)

    def __call__(self, x: torch.Tensor, rows: int) -> torch.Tensor:
        """The first ``rows`` of the rows, [rows, taps, channels]; may be a view of ``x``."""
        p = self._source.patch
        if p is None:
            moved = x.movedim(self._source.axis, -1)
            if self._all and rows == len(self._index[0]) and moved.is_contiguous():
                return moved.reshape(-1, 1, moved.shape[-1])
            return moved[tuple(i[:rows] for i in self._index)].unsqueeze(1)
        # Channels last, so that a window's channels are read together.
        sides = (p.padding[1], p.padding[1], p.padding[0], p.padding[0])
        padded = (functional.pad(x, sides) if any(sides) else x).permute(0, 2, 3, 1)
        flat = padded.reshape(-1, x.shape[1])
        taps = self._source.taps
        return flat.index_select(0, self._index[0][: rows * taps]).view(-1, taps, x.shape[1])


def take(x: torch.Tensor, source: MomentSource, at: torch.Tensor) -> torch.Tensor:
    """The rows numbered ``at``, [rows, columns]."""
    return Picker(x, source, at)(x, len(at)).transpose(1, 2).reshape(len(at), -1)
