"""Operators that treat space and channels apart: depthwise convolutions, shifts, and 1x1 layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import nn

from .site import Operator, Site, conv_reason, put, share_of
from .stages import Gather, Shift, Substitute, Tail


class Linear(Operator):
    """One linear map with a smaller kernel: the layer's inner window, refitted. Option: its longest side.

    Of the branch of a residual block, the map closest to it. Parameters ``s^2 Ci Co``.
    """

    name = "linear"
    source = "as Li et al. 2018, arXiv 1708.04728 (DeepRebirth), re-learn one layer for several"

    def refuses(self, site: Site) -> str:
        if site.dims and site.groups == 1 and not site.centred:
            return "has a kernel without a centre on its input"
        return conv_reason(site, kernel=False)

    def options(self, site: Site) -> Sequence[float]:
        return [*range(max(site.kernel, default=1) - 2, 0, -2)]

    def exact(self, site: Site) -> float:
        return max(site.kernel, default=1)

    def _inner(self, site: Site, option: float) -> Site:
        weight, padding = site.weight, list(site.padding)
        for axis, side in enumerate(site.kernel):
            cut = (side - min(side, int(option))) // 2
            weight = weight.narrow(2 + axis, cut, side - 2 * cut)
            padding[axis] -= cut * site.dilation[axis]
        return replace(site, weight=weight, padding=tuple(padding))

    def build(self, site: Site, option: float) -> Substitute:
        layer = self._inner(site, option).like(site.inputs, site.outputs, bias=site.bias is not None)
        return Substitute(nn.Identity(), Tail(layer), axis=site.axis)

    def start(self, new: Substitute, site: Site, option: float) -> None:
        (layer,) = new.layers
        put(layer.weight, self._inner(site, option).weight)
        put(layer.bias, site.bias)


class Separable(Operator):
    """A depthwise convolution, then a 1x1 layer. Option: depthwise filters of each channel.

    The closest by weights: for every input channel the leading singular vectors of its [outputs, taps] slice.
    Exact at ``min(k^2, Co)``. Parameters ``D (k^2 Ci + Ci Co)``.
    """

    name = "separable"
    source = "Howard et al. 2017, arXiv 1704.04861 (MobileNet), without the inner non-linearity"

    def refuses(self, site: Site) -> str:
        return conv_reason(site)

    def options(self, site: Site) -> Sequence[float]:
        return [d for d in (1, 2, 4) if d < min(site.taps, site.outputs)]

    def exact(self, site: Site) -> float | None:
        return min(site.taps, site.outputs)

    def _inside(self) -> list[nn.Module]:
        return []

    def build(self, site: Site, option: float) -> Substitute:
        inner = site.inputs * max(1, min(int(option), site.taps, site.outputs))
        filters = site.spatial(site.inputs, inner, groups=site.inputs, bias=self.curved)
        front = nn.Sequential(filters, *self._inside())
        tail = site.pointwise(inner, site.outputs, bias=site.bias is not None)
        return Substitute(front, Tail(tail), axis=site.axis)

    def start(self, new: Substitute, site: Site, option: float) -> None:
        depthwise, tail = new.layers
        each = len(depthwise.weight) // site.inputs
        left, values, right = torch.linalg.svd(site.wide.transpose(0, 1), full_matrices=False)
        left, values, right = left[:, :, :each], values[:, :each], right[:, :each]
        if self.curved:  # a filter whose mean response is positive is cut least by what follows
            sign = torch.where(right.sum(2) < 0, -1.0, 1.0)
            left, right = left * sign[:, None], right * sign[:, :, None]
        put(depthwise.weight, right)
        put(depthwise.bias, torch.zeros(len(depthwise.weight)))
        put(tail.weight, (left * values[:, None]).permute(1, 0, 2).flatten(1))
        put(tail.bias, site.bias)


class MobileNetBlock(Separable):
    """A depthwise convolution with constants, ReLU, then a 1x1 layer. Option: filters of each channel.

    Parameters ``D Ci (k^2 + 1 + Co)``.
    """

    name = "mobilenet"
    source = "Howard et al. 2017, arXiv 1704.04861"
    curved = True

    def exact(self, site: Site) -> float | None:
        return None

    def _inside(self) -> list[nn.Module]:
        return [nn.ReLU()]


class InvertedResidual(Operator):
    """Each channel t times, ReLU, a depthwise convolution, ReLU, a 1x1 linear projection. Option: t, even.

    On inputs that are not negative the first ReLU changes nothing, and
    ``d * x = relu(d * x) - relu(-d * x)``: pairs of depthwise filters of opposite sign make the block equal
    the rank-t/2 separable one, through the ReLUs. Exact at ``t = 2 min(k^2, Co)``. Parameters
    ``t Ci (Ci + k^2 + Co)``. ReLU in place of ReLU6, which would cut inherited activations at 6.
    """

    name = "inverted-residual"
    source = "Sandler et al. 2018, arXiv 1801.04381 (MobileNetV2)"

    def refuses(self, site: Site) -> str:
        return conv_reason(site) or (
            "" if site.nonnegative else "reads numbers below zero, which ReLU would cut"
        )

    def options(self, site: Site) -> Sequence[float]:
        return [t for t in (2, 4, 6) if t < 2 * min(site.taps, site.outputs)]

    def exact(self, site: Site) -> float:
        return 2 * min(site.taps, site.outputs)

    def build(self, site: Site, option: float) -> Substitute:
        inner = 2 * site.inputs * max(1, min(int(option) // 2, site.taps, site.outputs))
        front = nn.Sequential(
            site.pointwise(site.inputs, inner), nn.ReLU(), site.spatial(inner, inner, groups=inner), nn.ReLU()
        )
        tail = site.pointwise(inner, site.outputs, bias=site.bias is not None)
        return Substitute(front, Tail(tail), axis=site.axis)

    def start(self, new: Substitute, site: Site, option: float) -> None:
        expand, depthwise, tail = new.layers
        pairs = len(depthwise.weight) // (2 * site.inputs)
        left, values, right = torch.linalg.svd(site.wide.transpose(0, 1), full_matrices=False)
        filters = right[:, :pairs]
        project = (left * values[:, None])[:, :, :pairs]
        put(expand.weight, torch.eye(site.inputs).repeat_interleave(2 * pairs, 0))
        put(depthwise.weight, torch.stack([filters, -filters], 2))
        put(tail.weight, torch.stack([project, -project], 3).permute(1, 0, 2, 3).flatten(1))
        put(tail.bias, site.bias)


class ShiftModule(Operator):
    """A 1x1 layer, channels shifted by the taps' displacements, a 1x1 layer. Option: inner channels.

    They are a share of the full ``k^2 min(Ci, Co)``, at which it is exact.
    ``W = sum_rs shift_rs (B_rs A_rs)``: the singular vectors of every tap's [outputs, inputs] matrix, the
    largest singular values of all taps first. Parameters ``M (Ci + Co)``; shifts cost no multiplication.
    """

    name = "shift"
    source = "Wu et al. 2018, arXiv 1711.08141"

    def refuses(self, site: Site) -> str:
        return conv_reason(site) or ("" if site.centred else "has a kernel without a centre on its input")

    def options(self, site: Site) -> Sequence[float]:
        return (0.0625, 0.125, 0.25)

    def exact(self, site: Site) -> float:
        return 1.0

    def build(self, site: Site, option: float) -> Substitute:
        inner = share_of(site.taps * min(site.inputs, site.outputs), option)
        reach = [k // 2 * d for k, d in zip(site.kernel, site.dilation, strict=True)]
        shift = Shift([(0,) * site.dims] * inner, reach)
        front = nn.Sequential(site.pointwise(site.inputs, inner), shift)
        tail = site.pointwise(inner, site.outputs, bias=site.bias is not None, strided=True)
        return Substitute(front, Tail(tail), axis=site.axis)

    def start(self, new: Substitute, site: Site, option: float) -> None:
        first, tail = new.layers
        inner = len(first.weight)
        left, values, right = torch.linalg.svd(site.wide.permute(2, 0, 1), full_matrices=False)
        full = values.shape[1]
        taken = values.flatten().argsort(descending=True, stable=True)[:inner].sort().values
        tap, rank = taken // full, taken % full
        root = values[tap, rank].sqrt()
        put(first.weight, root[:, None] * right[tap, rank])
        put(tail.weight, (left[tap, :, rank] * root[:, None]).T)
        put(tail.bias, site.bias)
        offsets = [
            tuple((i - k // 2) * d for i, k, d in zip(at, site.kernel, site.dilation, strict=True))
            for at in product(*map(range, site.kernel))
        ]
        shift = next(m for m in new.modules() if isinstance(m, Shift))
        shift.move([offsets[t] for t in tap.tolist()])


class LinearFire(Operator):
    """Fewer channels by a 1x1 layer, then half of the outputs by a 1x1 layer, the others by the kernel.

    Option: channels between, as a share of the inputs; at 1 all outputs have the kernel, and it is exact.
    Outputs of the least energy off the centre go to the 1x1 branch. Parameters
    ``s Ci + s e1 + k^2 s e3``. Without the ReLU between.
    """

    name = "fire-linear"
    source = "Iandola et al. 2016, arXiv 1602.07360 (SqueezeNet), without the inner non-linearity"

    def refuses(self, site: Site) -> str:
        return conv_reason(site) or ("" if site.centred else "has a kernel without a centre on its input")

    def options(self, site: Site) -> Sequence[float]:
        return (0.125, 0.25, 0.5)

    def exact(self, site: Site) -> float | None:
        return 1.0

    def _inside(self) -> list[nn.Module]:
        return []

    def build(self, site: Site, option: float) -> Substitute:
        between = share_of(site.inputs, option)
        point = 0 if option >= 1 else site.outputs // 2
        bias = site.bias is not None
        tails = [Tail(site.spatial(between, site.outputs - point, bias=bias))]
        if point:
            tails.insert(0, Tail(site.pointwise(between, point, bias=bias, strided=True)))
        front = nn.Sequential(site.pointwise(site.inputs, between, bias=self.curved), *self._inside())
        order = Gather(torch.arange(site.outputs, device=site.weight.device), site.axis)
        return Substitute(front, *tails, axis=site.axis, order=order)

    def start(self, new: Substitute, site: Site, option: float) -> None:
        squeeze, *expands = new.layers
        between = len(squeeze.weight)
        centre = site.taps // 2
        energy = site.wide.square().sum(1)
        order = (energy.sum(1) - energy[:, centre]).argsort(stable=True)
        if between == site.inputs:
            basis = torch.eye(between, dtype=torch.float64, device=site.weight.device)
        else:
            basis = torch.linalg.svd(site.wide.transpose(0, 1).flatten(1), full_matrices=False)[0][
                :, :between
            ]
            basis = nn.functional.pad(basis, (0, between - basis.shape[1]))
            # One that answers positively is cut least by a ReLU.
            basis = basis * torch.where(basis.sum(0) < 0, -1.0, 1.0)
        projected = torch.einsum("oct,cr->ort", site.wide, basis)[order]
        put(squeeze.weight, basis.T)
        put(squeeze.bias, torch.zeros(between))
        bias = None if site.bias is None else site.bias[order]
        at = 0
        for expand in expands:
            here = slice(at, at + len(expand.weight))
            whole = projected[here]
            put(expand.weight, whole if expand.weight[0, 0].numel() == site.taps else whole[:, :, centre])
            put(expand.bias, None if bias is None else bias[here])
            at = here.stop
        assert new.order is not None
        new.order.index.copy_(order.argsort())


class Fire(LinearFire):
    """As published: ReLU behind the first layer, which at full width cuts nothing from inputs of a ReLU.

    That layer has constants: ``s`` parameters more.
    """

    name = "fire"
    source = "Iandola et al. 2016, arXiv 1602.07360 (SqueezeNet)"
    curved = True

    def exact(self, site: Site) -> float | None:
        return 1.0 if site.nonnegative else None

    def _inside(self) -> list[nn.Module]:
        return [nn.ReLU()]
