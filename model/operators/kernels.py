"""Kernels: the layer run in another way, as a sparse matrix or in blocks of channels without a workspace."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import nn
from torch.nn import functional

from .site import Operator, Site, put
from .stages import Substitute, exporting

ENTRIES = 2**17  # of the sparse matrix multiplied at once: their indices stay in the processor's cache
DENSITIES = (0.05, 0.5)  # at which layers are timed


class SparseLayer(nn.Module):
    """A convolution over one or two axes, or a linear layer, that holds and multiplies some weights alone.

    Direct sparse convolution (Park et al. 2016, arXiv 1608.01409, section 3.1): rows of the weight in CSR,
    whose columns are stretched over the padded input, so that for each of them the inputs of a row of outputs
    are a row in memory, the batch innermost: ``nnz`` multiply-accumulates an output place. Here those rows
    are bags of a table, which must not overlap: there is a copy of the input for each tap along the last
    axis, k of them, where lowering makes k^2. An exported file computes the dense layer from the same
    numbers, since no runtime of those formats multiplies sparse matrices.

    Attributes:
        values: [nnz] weights, by output.
        columns: int32 [nnz] ``(s Ci + c) kh + r``, of tap (r, s) and input c; rising in each output's row.
        starts: int32 [outputs + 1], where each output's weights begin.
        kernel_size, stride, padding, dilation: as the layer has them, () of a linear one.
    """

    columns: torch.Tensor
    starts: torch.Tensor

    def __init__(self, site: Site, entries: int) -> None:
        super().__init__()
        self.kernel_size, self.stride = site.kernel, site.stride
        self.padding, self.dilation = site.padding, site.dilation
        self.in_features, self.out_features = site.inputs, site.outputs
        self.values = nn.Parameter(site.weight.new_zeros(entries))
        self.bias = nn.Parameter(site.weight.new_zeros(site.outputs)) if site.bias is not None else None
        index = site.weight.new_zeros(entries + site.outputs + 1, dtype=torch.int32)
        self.register_buffer("columns", index[:entries].clone())
        self.register_buffer("starts", index[entries:].clone())

    @property
    def sides(self) -> tuple[int, int]:
        """Of the kernel, as one over two axes."""
        height, width = (1, 1, *self.kernel_size)[-2:]
        return height, width

    def rows(self) -> torch.Tensor:
        """Which output each weight is of, int64 [nnz]."""
        begins = self.values.new_zeros(len(self.values) + 1, dtype=torch.int64)
        inner = self.starts[1:-1].to(torch.int64)
        return begins.scatter_add(0, inner, torch.ones_like(inner))[:-1].cumsum(0)

    def matrix(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` [nnz] at their columns, zeros elsewhere: [outputs, kw x inputs x kh]."""
        width = self.in_features * math.prod(self.kernel_size)
        place = self.rows() * width + self.columns
        return values.new_zeros(self.out_features * width).scatter(0, place, values).view(-1, width)

    def dense(self) -> torch.Tensor:
        """The weight, zeros among it, in the layer's shape."""
        height, width = self.sides
        whole = self.matrix(self.values).view(-1, width, self.in_features, height).permute(0, 2, 3, 1)
        return whole.reshape(self.out_features, self.in_features, *self.kernel_size)

    def keep(self, weight: torch.Tensor, worth: torch.Tensor) -> None:
        """Take those of ``weight`` that have most ``worth``; both in the layer's shape."""
        height, width = self.sides

        def flat(of: torch.Tensor) -> torch.Tensor:
            return of.reshape(-1, self.in_features, height, width).permute(0, 3, 1, 2).flatten(1)

        kept = flat(worth).reshape(-1).argsort(descending=True, stable=True)[: len(self.values)].sort().values
        columns = self.in_features * height * width
        self.values.data.copy_(flat(weight).reshape(-1)[kept])
        self.columns.copy_(kept % columns)
        ends = torch.arange(1, self.out_features + 1, device=kept.device) * columns
        self.starts[1:] = torch.searchsorted(kept, ends)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if exporting():
            return self._as_dense(x)
        if not self.kernel_size:
            table = x.reshape(-1, self.in_features).T.contiguous()
            y = self._product(table, self.columns, self.starts[:-1], self.values)
            y = y if self.bias is None else y + self.bias[:, None]
            return y.T.contiguous().view(*x.shape[:-1], self.out_features)
        return self._convolved(x if x.dim() == 4 else x.unsqueeze(2)).view(*self._size(x))

    def _size(self, x: torch.Tensor) -> tuple[int, ...]:
        forms = zip(x.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        return len(x), self.out_features, *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in forms)

    def _convolved(self, x: torch.Tensor) -> torch.Tensor:
        """Of [batch, inputs, height, width]."""
        height, width = self.sides
        down, across = (1, *self.stride)[-2:]
        above, beside = (0, *self.padding)[-2:]
        apart, along = (1, *self.dilation)[-2:]
        padded = functional.pad(x.permute(1, 2, 3, 0), (0, 0, beside, beside, above, above))
        tall = padded.shape[1]
        rows = (tall - apart * (height - 1) - 1) // down + 1
        columns = (padded.shape[2] - along * (width - 1) - 1) // across + 1
        shifted = [
            padded[:, :, along * s : along * s + across * (columns - 1) + 1 : across] for s in range(width)
        ]
        table = torch.stack(shifted).view(width * self.in_features * tall, -1)  # a row: one of one input
        plane = self.columns // height
        stretched = plane * tall + (self.columns - plane * height) * apart
        at, made = torch.arange(rows, dtype=torch.int32, device=x.device), []
        for some in at.split(max(1, ENTRIES // max(len(stretched), 1))):
            index = (stretched + some[:, None] * down).view(-1)
            starts = (self.starts[:-1] + at[: len(some), None] * len(stretched)).view(-1)
            made.append(self._product(table, index, starts, self.values.repeat(len(some))))
        y = torch.cat(made).view(rows, self.out_features, -1)
        y = y if self.bias is None else y + self.bias[:, None]
        return y.view(rows, self.out_features, columns, len(x)).permute(3, 1, 0, 2).contiguous()

    @staticmethod
    def _product(
        table: torch.Tensor, index: torch.Tensor, starts: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """A CSR matrix times rows of ``table``: weighted sums of them, which torch calls bags."""
        return functional.embedding_bag(index, table, starts, mode="sum", per_sample_weights=values)

    def _as_dense(self, x: torch.Tensor) -> torch.Tensor:
        if not self.kernel_size:
            return functional.linear(x, self.dense(), self.bias)
        call = functional.conv2d if len(self.kernel_size) == 2 else functional.conv1d
        return call(x, self.dense(), self.bias, self.stride, self.padding, self.dilation)


class Sparse(Operator):
    """The largest weights of the layer alone, one by one. Option: their share (density).

    Weights count by the standard deviation of what they multiply, where inputs are known; those that stay are
    refitted, each output on its own. Exact at 1. Multiply-accumulates a place and parameters ``D k^2 Ci Co``;
    a parameter takes four bytes more, for its column. It does not fall into channels, so that time falls much
    less than multiply-accumulates do: :class:`Pace` says where it does at all.
    """

    name = "sparse"
    source = "Park et al. 2017, arXiv 1608.01409 (direct sparse convolution, guided sparsity)"
    by_name = True

    def refuses(self, site: Site) -> str:
        return f"has {site.groups} groups already" if site.groups > 1 else ""

    def options(self, site: Site) -> Sequence[float]:
        return (0.05, 0.1, 0.25, 0.5)

    def exact(self, site: Site) -> float:
        return 1.0

    def build(self, site: Site, option: float) -> Substitute:
        entries = max(1, min(site.weight.numel(), round(site.weight.numel() * option)))
        return Substitute(nn.Identity(), SparseLayer(site, entries), axis=site.axis)

    def start(self, new: Substitute, site: Site, option: float) -> None:
        layer = new.tails[0]
        assert isinstance(layer, SparseLayer)
        spread = site.variances.sqrt()[:, None]
        layer.keep(site.weight, site.wide.abs() * spread)
        put(layer.bias, site.bias)


def fitting_block(channels: int, most: int) -> int:
    """The largest divisor of ``channels`` up to ``most``: blocks are whole, nothing is filled up."""
    return next(size for size in range(min(channels, max(most, 1)), 0, -1) if channels % size == 0)


class BlockedLayer(nn.Module):
    """A convolution by small matrix products on blocks of channels, straight into its output.

    Attributes:
        weight: [outputs / kb, inputs / cb, kh, kw, cb, kb], as many numbers as the layer's.
    """

    def __init__(self, site: Site, block: int) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = site.stride, site.padding, site.dilation
        self.out_features, self._shape = site.outputs, tuple(site.weight.shape)
        kb, cb = fitting_block(site.outputs, block), fitting_block(site.inputs, block)
        height, width = (1, *site.kernel)[-2:]
        blocked = (site.outputs // kb, site.inputs // cb, height, width, cb, kb)
        self.weight = nn.Parameter(site.weight.new_zeros(blocked))
        self.bias = nn.Parameter(site.weight.new_zeros(site.outputs)) if site.bias is not None else None

    def keep(self, weight: torch.Tensor) -> None:
        """Take a weight in the layer's shape."""
        out, into, height, width, cb, kb = self.weight.shape
        blocks = weight.detach().view(out, kb, into, cb, height, width).permute(0, 2, 4, 5, 3, 1)
        self.weight.data.copy_(blocks)

    def dense(self) -> torch.Tensor:
        """The weight in the layer's shape."""
        return self.weight.permute(0, 5, 1, 4, 2, 3).reshape(self._shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if exporting():
            call = functional.conv2d if len(self.stride) == 2 else functional.conv1d
            return call(x, self.dense(), self.bias, self.stride, self.padding, self.dilation)
        flat = x if x.dim() == 4 else x.unsqueeze(2)
        above, beside = (0, *self.padding)[-2:]
        _, into, _, _, cb, _ = self.weight.shape
        size, (height, width) = len(x), flat.shape[2:]
        padded = x.new_zeros(size, into, height + 2 * above, width + 2 * beside, cb)
        inside = padded[:, :, above : above + height, beside : beside + width]
        inside.copy_(flat.view(size, into, cb, height, width).permute(0, 1, 3, 4, 2))
        forms = (1, *self.stride)[-2:], (1, *self.dilation)[-2:]
        y = blocked_convolution(padded, self.weight, *forms).permute(0, 1, 4, 2, 3).flatten(1, 2)
        y = y if x.dim() == 4 else y.squeeze(2)
        return y if self.bias is None else y + self.bias.view(-1, *[1] * (x.dim() - 2))


def blocked_convolution(
    x: torch.Tensor, weight: torch.Tensor, stride: Sequence[int], dilation: Sequence[int]
) -> torch.Tensor:
    """Direct convolution on blocked layouts: nothing is unfolded or packed, no workspace.

    Products add up in the output block that they belong to; what they read are views of the input.

    Args:
        x: [batch, inputs / cb, height, width, cb], padded.
        weight: [outputs / kb, inputs / cb, kh, kw, cb, kb].

    Returns:
        [batch, outputs / kb, height, width, kb].
    """
    out, into, height, width, _, kb = weight.shape
    sides = zip(x.shape[2:4], (height, width), stride, dilation, strict=True)
    rows, columns = ((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in sides)
    y = x.new_zeros(len(x), out, rows, columns, kb)
    across = 0 if len(x) <= rows else 1  # the shorter of batch and rows is looped over
    for o, i, r, s in product(*map(range, (out, into, height, width))):
        top, left = r * dilation[0], s * dilation[1]
        down = slice(top, top + (rows - 1) * stride[0] + 1, stride[0])
        along = slice(left, left + (columns - 1) * stride[1] + 1, stride[1])
        read, sums = x[:, i, down, along], y[:, o]
        for n in range(read.shape[across]):
            one = read.select(across, n)
            sums.select(across, n).baddbmm_(one, weight[o, i, r, s].expand(len(one), -1, -1))
    return y


class Direct(Operator):
    """The layer itself without a workspace. Option: most channels of a block, kb and cb.

    Activations as [C/cb][H][W][cb], weights as [Co/kb][Ci/cb][kh][kw][cb][kb], both as large as they were:
    the same result, multiply-accumulates and bytes at every option. The published gain is that of a kernel
    whose inner block stays in registers; in PyTorch every product is a call, and time is lost. Input and
    output are copied into blocks and back, which counts as memory, while what a library unfolds or packs
    within an ordinary convolution is seen by nothing and counts nowhere.
    """

    name = "direct"
    source = "Zhang et al. 2018, arXiv 1809.10170 (high performance zero-memory overhead direct convolutions)"
    by_name = True

    def refuses(self, site: Site) -> str:
        if site.groups > 1:
            return f"has {site.groups} groups already"
        return "has one tap: there is nothing to unfold" if site.taps == 1 else ""

    def options(self, site: Site) -> Sequence[float]:
        return [block for block in (8, 16, 32) if block <= max(site.inputs, site.outputs)]

    def exact(self, site: Site) -> float:
        return 1

    def build(self, site: Site, option: float) -> Substitute:
        return Substitute(nn.Identity(), BlockedLayer(site, int(option)), axis=site.axis)

    def start(self, new: Substitute, site: Site, option: float) -> None:
        layer = new.tails[0]
        assert isinstance(layer, BlockedLayer)
        layer.keep(site.weight)
        put(layer.bias, site.bias)


# -- Performance model ------------------------------------------------------------------------------------


Clock = Callable[[Sequence[nn.Module | Site], torch.Tensor], Sequence[float]]


@dataclass(frozen=True)
class Pace:
    """How long one form of layer takes on a machine, dense and at any density: where sparse ones pay.

    ``T_dense = M / eta_d`` and ``T_sparse = a + density M / eta_s`` with M multiply-accumulates of the dense
    layer (Park et al. 2017, section 3.2, who derive the rates from the processor's). The rates of one form
    are not another's, since rows of outputs may be long or short: each form is timed.

    Attributes:
        dense: seconds of a call, ``M / eta_d``.
        each: seconds that all weights take sparse, ``M / eta_s``, beside
        overhead: seconds of a call whatever the density, a.
    """

    dense: float
    each: float
    overhead: float

    def seconds(self, density: float) -> float:
        """Of a call; at a density of 1 of the dense layer."""
        return self.dense if density >= 1 else self.overhead + density * self.each

    @property
    def densest(self) -> float:
        """The density at which the sparse layer takes as long as the dense one; not above 0: at none."""
        return (self.dense - self.overhead) / self.each

    def slower(self, density: float) -> bool:
        """Whether the sparse layer takes no less time than the dense one."""
        return density < 1 and self.seconds(density) >= self.dense

    @classmethod
    def of(cls, seconds: Mapping[float, float]) -> Pace:
        """From the seconds at two densities, and at 1, where they are the dense layer's.

        Time rises with density, whatever a noisy clock said.
        """
        low, high = sorted(density for density in seconds if density < 1)
        each = max((seconds[high] - seconds[low]) / (high - low), 1e-3 * seconds[high])
        return cls(seconds[1.0], each, max(seconds[low] - low * each, 0.0))

    @classmethod
    def timed(cls, form: Site, clock: Clock, batch: int) -> Pace:
        """Of layers of a form, whose weights are not read, by three timings on the device of its weights.

        Args:
            clock: seconds of a call of each of several modules on an input.
            batch: samples of a call.
        """
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(form.weight.shape, generator=generator).to(form.weight)
        site = replace(form, weight=weight, bias=None, inputs_seen=None)
        x = torch.rand(site.example(batch).shape, generator=generator).to(form.weight)
        layers = []
        for density in DENSITIES:
            layers.append(Sparse().build(site, density).eval())
            Sparse().start(layers[-1], site, density)
        return cls.of(dict(zip((1.0, *DENSITIES), clock([site, *layers], x), strict=True)))
