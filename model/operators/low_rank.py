"""Low-rank operators: a layer as a chain of thinner ones, by decompositions of its weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .site import Operator, Site, conv_reason, put, share_of
from .stages import Cat, Layer, Substitute, Tail

SHARES = (0.125, 0.25, 0.5)  # of the full rank
ROUNDS = 8  # of alternating least squares
TURNS = 4  # in which Tucker's two subspaces better each other


def _chain(site: Site, front: nn.Module, tail: Layer) -> Substitute:
    return Substitute(front, Tail(tail), axis=site.axis)


def _plane_reason(site: Site) -> str:
    """Why a layer is no convolution over a plane, whose two axes may be treated apart."""
    if site.dims != 2:
        return "is no convolution over two axes"
    return conv_reason(site) or ("" if min(site.kernel) > 1 else "has a kernel of one row or column already")


class ChannelSVD(Operator):
    """A layer of few outputs with the layer's kernel, then a 1x1 layer. Option: rank, as a share of the full.

    The closest of that rank: the leading singular vectors of the weight as [outputs, inputs x taps]
    (Eckart & Young 1936). Parameters ``r (k^2 Ci + Co)``.
    """

    name = "svd"
    source = "Zhang et al. 2016, arXiv 1505.06798; Denton et al. 2014, arXiv 1404.0736"

    def refuses(self, site: Site) -> str:
        return conv_reason(site, kernel=False)

    def options(self, site: Site) -> Sequence[float]:
        return SHARES

    def exact(self, site: Site) -> float:
        return 1.0

    def build(self, site: Site, option: float) -> Substitute:
        rank = share_of(min(site.outputs, site.inputs * site.taps), option)
        front: nn.Module = site.spatial(site.inputs, rank) if site.dims else site.pointwise(site.inputs, rank)
        return _chain(site, front, site.pointwise(rank, site.outputs, bias=site.bias is not None))

    def start(self, new: Substitute, site: Site, option: float) -> None:
        left, values, right = torch.linalg.svd(site.wide.flatten(1), full_matrices=False)
        front, tail = new.layers
        rank = len(front.weight)
        root = values[:rank].sqrt()
        put(front.weight, root[:, None] * right[:rank])
        put(tail.weight, left[:, :rank] * root)
        put(tail.bias, site.bias)


class OutputPCA(ChannelSVD):
    """As the channel SVD, but onto the directions in which the layer's responses vary most.

    ``y ~ Q Q^T (y - m) + m`` with Q the leading eigenvectors of the covariance of real responses and m their
    mean; without inputs, the channel SVD.
    """

    name = "output-pca"
    source = "Zhang et al. 2016, arXiv 1505.06798, section 3.1"

    def start(self, new: Substitute, site: Site, option: float) -> None:
        if site.inputs_seen is None or not len(site.inputs_seen):
            super().start(new, site, option)
            return
        front, tail = new.layers
        rank = len(front.weight)
        y = site(site.inputs_seen).movedim(site.axis, -1).reshape(-1, site.outputs).double()
        bias = y.new_zeros(site.outputs) if site.bias is None else site.bias.double()
        mean = y.mean(0) if site.bias is not None else torch.zeros_like(bias)
        seen, weight = (y - mean).T @ (y - mean), site.wide.flatten(1)
        spread = weight @ weight.T
        # Directions that these inputs do not reach follow in the weight's own order.
        q = torch.linalg.eigh(seen + 1e-9 * seen.trace() / spread.trace() * spread).eigenvectors.flip(1)[
            :, :rank
        ]
        put(front.weight, q.T @ weight)
        put(tail.weight, q)
        put(tail.bias, mean + q @ (q.T @ (bias - mean)))


class SpatialSVD(Operator):
    """A column of taps, then a row of taps. Option: rank, as a share of the full ``k min(Ci, Co)``.

    Singular vectors of the weight as [inputs x rows, columns x outputs]. Parameters ``r k (Ci + Co)``.
    """

    name = "spatial-svd"
    source = "Jaderberg et al. 2014, arXiv 1405.3866, scheme 2"

    def refuses(self, site: Site) -> str:
        return _plane_reason(site)

    def options(self, site: Site) -> Sequence[float]:
        return SHARES

    def exact(self, site: Site) -> float:
        return 1.0

    def build(self, site: Site, option: float) -> Substitute:
        rows, columns = site.kernel
        rank = share_of(min(site.inputs * rows, site.outputs * columns), option)
        front = site.spatial(site.inputs, rank, along=(0,))
        return _chain(site, front, site.spatial(rank, site.outputs, along=(1,), bias=site.bias is not None))

    def start(self, new: Substitute, site: Site, option: float) -> None:
        front, tail = new.layers
        rank = len(front.weight)
        matrix = site.weight.detach().double().permute(1, 2, 3, 0)  # inputs, rows, columns, outputs
        left, values, right = torch.linalg.svd(matrix.flatten(2).flatten(0, 1), full_matrices=False)
        root = values[:rank].sqrt()
        put(front.weight, (left[:, :rank] * root).T)
        put(tail.weight, (root[:, None] * right[:rank]).view(rank, site.kernel[1], -1).permute(2, 0, 1))
        put(tail.bias, site.bias)


class Tucker(Operator):
    """Fewer inputs by a 1x1 layer, the kernel between few channels, more outputs by a 1x1 layer.

    Option: both ranks, as shares of inputs and outputs. Factors are the leading singular vectors of the
    unfoldings along each, by orthogonal iteration (HOOI). Parameters ``Ci r1 + k^2 r1 r2 + r2 Co``.
    """

    name = "tucker"
    source = "Kim et al. 2016, arXiv 1511.06530 (Tucker-2)"

    def refuses(self, site: Site) -> str:
        return conv_reason(site)

    def options(self, site: Site) -> Sequence[float]:
        return SHARES

    def exact(self, site: Site) -> float:
        return 1.0

    def build(self, site: Site, option: float) -> Substitute:
        first, second = share_of(site.inputs, option), share_of(site.outputs, option)
        front = nn.Sequential(site.pointwise(site.inputs, first), site.spatial(first, second))
        return _chain(site, front, site.pointwise(second, site.outputs, bias=site.bias is not None))

    def start(self, new: Substitute, site: Site, option: float) -> None:
        reduce, core, expand = new.layers
        first, second = len(reduce.weight), len(core.weight)
        weight = site.wide
        out = _leading(weight.flatten(1), second)
        for _ in range(TURNS):  # HOOI: inputs as the outputs' subspace sees them, and the other way round
            into = _leading(torch.einsum("oit,or->irt", weight, out).flatten(1), first)
            out = _leading(torch.einsum("oit,is->ost", weight, into).flatten(1), second)
        put(reduce.weight, into.T)
        put(core.weight, torch.einsum("oct,cr,os->srt", weight, into, out))
        put(expand.weight, out)
        put(expand.bias, site.bias)


def _leading(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """Leading left singular vectors [rows, rank]; any others that are orthogonal to them where few are."""
    return torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(1)[:, :rank]


def _filled(vectors: torch.Tensor, rank: int) -> torch.Tensor:
    """The first ``rank`` orthonormal columns; zeros where there are fewer."""
    short = rank - vectors.shape[1]
    return vectors[:, :rank] if short <= 0 else nn.functional.pad(vectors, (0, short))


class CP(Operator):
    """A 1x1 layer, a depthwise filter along each axis in turn, a 1x1 layer. Option: rank, as a multiple of
    the inputs.

    ``W[o,c,i,j] ~ sum_r a[o,r] b[c,r] u[i,r] v[j,r]`` by alternating least squares, from terms of one input
    each: leading singular triples of its [outputs, taps] slice, their filters of rank one. Exact at k^2,
    where every tap of every input has a term. Parameters ``r (Ci + 2k + Co)``.
    """

    name = "cp"
    source = "Lebedev et al. 2015, arXiv 1412.6553"

    def refuses(self, site: Site) -> str:
        return conv_reason(site)

    def options(self, site: Site) -> Sequence[float]:
        return (0.5, 1, 2)

    def exact(self, site: Site) -> float:
        return site.taps

    @staticmethod
    def _rank(site: Site, option: float) -> int:
        return max(1, min(round(option * site.inputs), site.inputs * site.taps))

    def build(self, site: Site, option: float) -> Substitute:
        rank = self._rank(site, option)
        filters = [site.spatial(rank, rank, along=(axis,), groups=rank) for axis in range(site.dims)]
        front = nn.Sequential(site.pointwise(site.inputs, rank), *filters)
        return _chain(site, front, site.pointwise(rank, site.outputs, bias=site.bias is not None))

    def start(self, new: Substitute, site: Site, option: float) -> None:
        rank = self._rank(site, option)
        tensor = site.wide.unflatten(2, site.kernel)
        if rank == site.inputs * site.taps:
            places = torch.unravel_index(torch.arange(rank), tensor.shape[1:])
            ones = [
                nn.functional.one_hot(at, n).to(tensor)
                for at, n in zip(places, tensor.shape[1:], strict=True)
            ]
            factors = [tensor.flatten(1), *(one.T for one in ones)]
        else:
            factors = alternating_terms(tensor, _terms_of_inputs(tensor, rank), ROUNDS)
        out, into, *along = factors
        reduce, *filters, expand = new.layers
        put(reduce.weight, into.T)
        for layer, factor in zip(filters, along, strict=True):
            put(layer.weight, factor.T)
        put(expand.weight, out)
        put(expand.bias, site.bias)


def _terms_of_inputs(tensor: torch.Tensor, rank: int) -> list[torch.Tensor]:
    """Factors [length, rank] along every axis of [outputs, inputs, *kernel], of one input a term."""
    left, values, right = torch.linalg.svd(tensor.flatten(2).transpose(0, 1), full_matrices=False)
    best = values.flatten().argsort(descending=True, stable=True)[:rank]
    best = best.repeat(-(-rank // len(best)))[:rank]  # more terms than triples: ties are broken below
    channel, place = best // values.shape[1], best % values.shape[1]
    factors = [left[channel, :, place].T, nn.functional.one_hot(channel, tensor.shape[1]).to(tensor).T]
    rest = right[channel, place].unflatten(1, tensor.shape[2:])
    for _ in range(tensor.dim() - 3):
        u, s, v = torch.linalg.svd(rest.flatten(2), full_matrices=False)
        factors.append(u[:, :, 0].T)
        rest = (s[:, :1] * v[:, 0]).unflatten(1, rest.shape[2:])
    factors.append(rest.T)
    generator = torch.Generator().manual_seed(0)
    for factor in factors[2:]:  # terms of one input and one singular vector must not stay in step
        noise = torch.randn(factor.shape, generator=generator, dtype=torch.float64).to(factor)
        factor += 1e-2 * factor.norm(dim=0) * noise
    return factors


def alternating_terms(tensor: torch.Tensor, factors: list[torch.Tensor], rounds: int) -> list[torch.Tensor]:
    """Alternating least squares of a sum of rank-one terms of [outputs, inputs, *kernel]; lengths end in the
    outputs' factor, which each round solves for last.
    """
    out, *inner = factors
    flat = tensor.flatten(1)

    def gram(others: list[torch.Tensor]) -> torch.Tensor:
        product = torch.stack([f.T @ f for f in others]).prod(0)
        product.diagonal().add_(1e-9 * product.diagonal().mean() + 1e-30)
        return product

    for _ in range(rounds):
        # What the outputs' factor sees is small, and all that the other factors need.
        seen = (out.T @ flat).unflatten(1, tensor.shape[1:])  # [rank, inputs, *kernel]
        for axis in range(len(inner)):
            part = seen
            for other in reversed(range(len(inner))):
                if other != axis:
                    shape = [1] * len(inner)
                    shape[other] = -1
                    part = (part * inner[other].T.unflatten(1, shape)).sum(other + 1, keepdim=True)
            others = [out, *inner[:axis], *inner[axis + 1 :]]
            solved = torch.linalg.solve(gram(others), part.flatten(1)).T
            inner[axis] = nn.functional.normalize(solved, dim=0)
        columns = inner[0]
        for factor in inner[1:]:
            columns = (columns[:, None] * factor).flatten(0, 1)
        out = torch.linalg.solve(gram(inner), (flat @ columns).T).T
    return [out, *inner]


class CrossBasis(Operator):
    """Rows of taps and columns of taps side by side, then a 1x1 layer that combines them.

    Option: their number, as a share of the outputs, half of each shape; at 1 each shape has its full rank,
    and square kernels join, which make it exact. Starts from the singular vectors of the weight's centre row
    and centre column (the centre tap shared half and half), square ones of what is left. Parameters
    ``Ci k (m_h + m_v) + (m_h + m_v) Co``.
    """

    name = "basis"
    source = "Ioannou et al. 2016, arXiv 1511.06744"

    def refuses(self, site: Site) -> str:
        return _plane_reason(site) or ("" if site.centred else "has a kernel without a centre on its input")

    def options(self, site: Site) -> Sequence[float]:
        return (0.25, 0.5, 0.75)

    def exact(self, site: Site) -> float:
        return 1.0

    def build(self, site: Site, option: float) -> Substitute:
        full = min(site.outputs, site.inputs * max(site.kernel))
        each = min(site.outputs, full) if option >= 1 else max(1, round(site.outputs * option / 2))
        across = site.spatial(site.inputs, each, along=(1,), everywhere=True)
        down = site.spatial(site.inputs, each, along=(0,), everywhere=True)
        square = []
        if option >= 1:
            square.append(site.spatial(site.inputs, min(site.outputs, site.inputs * site.taps)))
        front = Cat(across, down, *square, axis=site.axis)
        total = 2 * each + sum(len(s.weight) for s in square)
        return _chain(site, front, site.pointwise(total, site.outputs, bias=site.bias is not None))

    def start(self, new: Substitute, site: Site, option: float) -> None:
        *shapes, tail = new.layers
        rest = site.weight.detach().double().clone()
        row, column = (k // 2 for k in site.kernel)
        parts = [rest[:, :, row, :].clone(), rest[:, :, :, column].clone()]
        parts[0][:, :, column] /= 2
        parts[1][:, :, row] /= 2
        rest[:, :, row, :] = 0
        rest[:, :, :, column] = 0
        out = []
        for layer, part in zip(shapes, [*parts, rest], strict=False):
            left, values, right = torch.linalg.svd(part.flatten(1), full_matrices=False)
            rank = len(layer.weight)
            root = values[:rank].sqrt()
            put(layer.weight, _filled((root[:, None] * right[:rank]).T, rank).T)
            out.append(_filled(left[:, :rank] * root, rank))
        put(tail.weight, torch.cat(out, 1))
        put(tail.bias, site.bias)
