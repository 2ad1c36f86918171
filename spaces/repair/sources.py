"""Tensors whose second moments are gathered, as the layers that read them see them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx

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
class Source:
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
