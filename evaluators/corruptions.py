"""Corruptions of inputs: pure functions of tensors, strengths and a generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# Strengths by default, in units of the data, so that they mean the same for [0, 1] and standardised inputs.
IMAGES: dict[str, float] = {
    "noise": 0.25,  # standard deviation of Gaussian noise, in standard deviations of the data
    "shift": 0.125,  # share of height and width that an image is moved, at least a pixel
    "contrast": 0.5,  # share of the contrast that is lost
    "blur": 1 / 64,  # standard deviation of a Gaussian kernel, as a share of the width; at least half a pixel
    "fgsm": 0.1,  # step in the direction of the gradient's sign, in standard deviations of the data
}
VECTORS: dict[str, float] = {name: IMAGES[name] for name in ("noise", "fgsm")}


@dataclass(frozen=True, slots=True)
class Scale:
    """What numbers the data have: noise and FGSM stay in their range."""

    deviation: float
    low: float
    high: float

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Scale:
        """Of all values together; a deviation of 0 (constant data) counts as 1."""
        count = sum(t.numel() for t in tensors)
        mean = sum(float(t.sum(dtype=torch.float64)) for t in tensors) / count
        squares = sum(float(((t.double() - mean) ** 2).sum()) for t in tensors)
        low, high = min(float(t.min()) for t in tensors), max(float(t.max()) for t in tensors)
        return cls(math.sqrt(squares / count) or 1.0, low, high)


def corrupted(name: str, x: Tensor, strength: float, scale: Scale, generator: torch.Generator) -> Tensor:
    """``x`` [batch, ...] under one of :data:`IMAGES`, FGSM excepted.

    Args:
        generator: of noise and directions, seeded by the caller.
    """
    if name == "noise":
        drawn = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)
        return (x + strength * scale.deviation * drawn).clamp(scale.low, scale.high)
    if name == "shift":
        return shifted(x, strength, generator)
    if name == "contrast":
        return contrast(x, strength)
    if name == "blur":
        return blurred(x, strength)
    raise ValueError(f"unknown corruption {name!r}")


def shifted(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Each image [n, c, h, w] moved along one of the 8 directions drawn for it; the edge is repeated."""
    n, _, h, w = x.shape
    down, right = max(1, round(share * h)), max(1, round(share * w))
    ways = torch.tensor([(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)])
    way = ways[torch.randint(0, 8, (n,), generator=generator)]
    rows = (torch.arange(h) - way[:, :1] * down).clamp(0, h - 1)  # [n, h]
    columns = (torch.arange(w) - way[:, 1:] * right).clamp(0, w - 1)
    # Advanced indices apart from the channels' slice put theirs first: [n, h, w, c].
    return x[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def contrast(x: Tensor, share: float) -> Tensor:
    """Each image drawn to its mean by ``share`` of the distance."""
    mean = x.mean(dim=tuple(range(1, x.dim())), keepdim=True)
    return mean + (1 - min(share, 1.0)) * (x - mean)


def blurred(x: Tensor, share: float) -> Tensor:
    """Each channel [n, c, h, w] under a Gaussian kernel; the edge is repeated."""
    sigma = max(0.5, share * x.shape[-1])
    reach = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(x.dtype)
    channels = x.shape[1]
    padded = functional.pad(x, (reach, reach, reach, reach), mode="replicate")
    across = functional.conv2d(padded, kernel.expand(channels, 1, 1, -1), groups=channels)
    return functional.conv2d(across, kernel[:, None].expand(channels, 1, -1, 1), groups=channels)
