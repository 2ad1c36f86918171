"""Linear maps: chains and sums of convolutions, average pools and batch norms as one convolution, exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from .coupling.walk import bind, operator_name

_CONVOLVE = {1: functional.conv1d, 2: functional.conv2d}
CONVOLUTIONS = ("conv1d", "conv2d")
MEANS = ("avg_pool1d", "avg_pool2d")
SCALES = ("batch_norm",)
SUMS = ("add",)
LINEAR = (*CONVOLUTIONS, *MEANS, *SCALES, *SUMS)

Read = Callable[[fx.Node], torch.Tensor]  # the tensor of a ``get_attr`` node


# -- Linear maps over one or two spatial axes ----------------------------------------------------------------


@dataclass(frozen=True)
class LinearMap:
    """A convolution: ``y[o, p] = bias[o] + sum over i, t of weight[o, i, t] x[i, stride p + t - padding]``.

    Attributes:
        weight: [outputs, inputs, *kernel], float64; [1, 1, *kernel] of what does the same to every channel by
            itself (``alike``), such as an average pool.
        bias: [outputs]; ``None``: zero.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    alike: bool = False

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[2:])

    def dense(self, channels: int) -> LinearMap:
        """The same with a weight between all channels."""
        if not self.alike:
            return self
        taps = self.weight[0, 0]
        eye = torch.eye(channels, dtype=taps.dtype, device=taps.device)
        return replace(self, weight=eye.view(channels, channels, *[1] * taps.dim()) * taps, alike=False)

    def size(self, given: Sequence[int]) -> tuple[int, ...]:
        """Spatial sizes of the output from those of the input."""
        parts = zip(given, self.kernel, self.stride, self.padding, strict=True)
        return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in parts)


def mean(
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    *,
    divisor: float | None = None,
    device: torch.device | str | None = None,
) -> LinearMap:
    """An average pool; of kernel and stride 1 the identity. Padded zeros count."""
    taps = torch.ones(1, 1, *kernel, dtype=torch.float64, device=device)
    taps /= divisor or math.prod(kernel)
    return LinearMap(taps, None, tuple(stride), tuple(padding), alike=True)


def compose(first: LinearMap, then: LinearMap) -> LinearMap:
    """``then`` of what ``first`` gives, as one map: kernel ``k1 + (k2 - 1) s1``, stride ``s1 s2``.

    Raises:
        ValueError: ``then`` pads with zeros what is not zero there.
    """
    if any(then.padding) and (any(first.padding) or first.bias is not None or max(first.kernel) > 1):
        raise ValueError("zeros are padded between two layers, where one convolution would go on computing")
    dims = len(first.kernel)
    sides = [(k - 1) * s + 1 for k, s in zip(then.kernel, first.stride, strict=True)]
    spread = then.weight.new_zeros(*then.weight.shape[:2], *sides)
    steps = [slice(None, None, s) for s in first.stride]
    spread[(slice(None), slice(None), *steps)] = then.weight
    turned = spread.flip(list(range(2, dims + 2)))
    convolve = partial(_CONVOLVE[dims], padding=[side - 1 for side in sides])
    outer = then.weight.shape[:2] if first.alike else first.weight.shape[:2]
    if first.alike:
        weight = convolve(first.weight, turned.flatten(0, 1).unsqueeze(1)).squeeze(0)
    elif then.alike:
        weight = convolve(first.weight.flatten(0, 1).unsqueeze(1), turned).squeeze(1)
    else:
        weight = convolve(first.weight.transpose(0, 1), turned).transpose(0, 1)
        outer = weight.shape[:2]
    bias = then.bias
    if first.bias is not None:
        gain = then.weight.flatten(2).sum(2)
        moved = first.bias * gain.view(()) if then.alike else gain @ first.bias
        bias = moved if bias is None else moved + bias
    pads = zip(first.padding, then.padding, first.stride, strict=True)
    return LinearMap(
        weight.reshape(*outer, *weight.shape[-dims:]),
        bias,
        tuple(a * b for a, b in zip(first.stride, then.stride, strict=True)),
        tuple(a + b * s for a, b, s in pads),
        first.alike and then.alike,
    )


def summed(one: LinearMap, other: LinearMap) -> LinearMap:
    """Their sum on one input, in the smallest kernel that holds both.

    Raises:
        ValueError: their strides differ.
    """
    if one.stride != other.stride:
        raise ValueError(f"branches of strides {one.stride} and {other.stride} are added")
    if one.alike != other.alike:
        channels = (other if one.alike else one).weight.shape[0]
        one, other = one.dense(channels), other.dense(channels)
    padding = tuple(map(max, one.padding, other.padding))
    after = [max(m.kernel[i] - m.padding[i] for m in (one, other)) for i in range(len(padding))]

    def embedded(m: LinearMap) -> torch.Tensor:
        sides: list[int] = []
        for i in reversed(range(len(padding))):
            before = padding[i] - m.padding[i]
            sides += [before, padding[i] + after[i] - before - m.kernel[i]]
        return functional.pad(m.weight, sides)

    biases = [m.bias for m in (one, other) if m.bias is not None]
    bias = sum(biases[1:], biases[0]) if biases else None
    return LinearMap(embedded(one) + embedded(other), bias, one.stride, padding, one.alike)


@dataclass(frozen=True)
class Follower:
    """Reads convolutions, average pools, norms and sums of a graph as one map of what ``source`` gives.

    Args:
        read: gives parameters and statistics; on the meta device all but the values is found.
    """

    source: fx.Node
    read: Read
    dims: int
    device: torch.device | str

    def __call__(self, node: fx.Node) -> LinearMap:
        """
        Raises:
            ValueError: it is not one convolution, and why.
        """
        if node is self.source:
            ones = (1,) * self.dims
            return mean(ones, ones, (0,) * self.dims, device=self.device)
        name, bound = operator_name(node.target)[0], bind(node)
        if name in SUMS:
            if bound["alpha"] != 1:
                raise ValueError("a branch is scaled before it is added")
            return summed(self(bound["self"]), self(bound["other"]))
        if name in SCALES:
            return self._scaled(self(bound["input"]), bound)
        if name in MEANS:
            return compose(self(bound["self"]), self._mean(bound))
        return compose(self(bound["input"]), self._convolution(bound))

    def _held(self, node: fx.Node | None) -> torch.Tensor | None:
        return None if node is None else self.read(node).detach().double()

    def _scaled(self, m: LinearMap, bound: dict[str, Any]) -> LinearMap:
        """Behind it a batch norm in eval mode."""
        average, variance = self._held(bound["running_mean"]), self._held(bound["running_var"])
        if average is None or variance is None or bound["training"] is True:
            raise ValueError("a norm takes its statistics from the batch")
        m = m.dense(len(average))
        weight, shift = self._held(bound["weight"]), self._held(bound["bias"])
        gain = (variance + bound["eps"]).rsqrt() * (1.0 if weight is None else weight)
        bias = gain * ((0.0 if m.bias is None else m.bias) - average) + (0.0 if shift is None else shift)
        return replace(m, weight=m.weight * gain.view(-1, 1, *[1] * self.dims), bias=bias)

    def _mean(self, bound: dict[str, Any]) -> LinearMap:
        kernel, stride, padding = window_of(bound, self.dims)
        if any(padding) and not bound["count_include_pad"]:
            raise ValueError("an average pool does not count what it pads")
        divisor = bound.get("divisor_override")
        return mean(kernel, stride, padding, divisor=divisor, device=self.device)

    def _convolution(self, bound: dict[str, Any]) -> LinearMap:
        _, stride, padding = window_of(bound, self.dims)
        weight = self._held(bound["weight"])
        assert weight is not None
        return LinearMap(weight, self._held(bound["bias"]), stride, padding)


def window_of(bound: dict[str, Any], dims: int) -> tuple[tuple[int, ...], ...]:
    """Kernel, stride and padding of a convolution's or a pool's arguments.

    Raises:
        ValueError: a convolution with groups, dilation or padding by a word; a pool with dilation.
    """
    weight = bound.get("weight")
    kernel = tuple(weight.meta["val"].shape[2:]) if weight is not None else _sized(bound["kernel_size"], dims)
    if bound.get("groups", 1) != 1:
        raise ValueError("a convolution has groups")
    if isinstance(bound["padding"], str) or set(_sized(bound.get("dilation", 1), dims)) != {1}:
        raise ValueError("a window is dilated, or padded by a word")
    return kernel, _sized(bound["stride"] or kernel, dims), _sized(bound["padding"], dims)


def _sized(value: Any, dims: int) -> tuple[int, ...]:
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(int(v) for v in (listed * dims if len(listed) == 1 else listed)[:dims])
