"""Samples of what a layer sums over: one row per output place, one column per input (and kernel tap)."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from .sources import Source


def places(x: torch.Tensor, source: Source) -> tuple[int, ...]:
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


def take(x: torch.Tensor, source: Source, at: torch.Tensor) -> torch.Tensor:
    """The rows numbered ``at`` (over :func:`places`, last axis fastest), [rows, columns]."""
    shape = places(x, source)
    p = source.patch
    if p is None:
        moved = x.movedim(source.axis, -1)
        if len(at) == math.prod(shape) and moved.is_contiguous():
            return moved.reshape(len(at), -1)
        return moved[torch.unravel_index(at, shape)]
    # Channels last, so that a window's channels are read together.
    padded = functional.pad(x, (p.padding[1], p.padding[1], p.padding[0], p.padding[0])).permute(0, 2, 3, 1)
    padded = padded.contiguous()
    image, top, left = torch.unravel_index(at, shape)
    down = top[:, None] * p.stride[0] + torch.arange(p.kernel[0]) * p.dilation[0]
    right = left[:, None] * p.stride[1] + torch.arange(p.kernel[1]) * p.dilation[1]
    seen = padded[image[:, None, None], down[:, :, None], right[:, None, :]]  # [rows, *kernel, channels]
    return seen.permute(0, 3, 1, 2).reshape(len(at), -1)
