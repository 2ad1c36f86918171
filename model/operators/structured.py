"""Structured matrices: Kronecker products, circulant blocks, heads that share what they read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from .assignment import balanced_sizes
from .site import Operator, Site, put, share_of
from .stages import Computed, Gather, GroupLinear, Substitute, Tail


class Kronecker(Operator):
    """A linear layer as a sum of Kronecker products of two small matrices. Option: terms.

    ``W = sum_r A_r (x) B_r``, the closest by the singular vectors of a rearranged weight. Runs as two linear
    layers: parameters and multiply-accumulates ``R (o1 i1 + o2 i2)`` a weight and ``R (o2 Ci + o1 o2 i1)`` a
    row, with Co = o1 o2 and Ci = i1 i2.
    """

    name = "kronecker"
    source = "Van Loan & Pitsianis 1993; Zhou et al. 2015, arXiv 1507.05775"

    def refuses(self, site: Site) -> str:
        if site.dims:
            return "is a convolution"
        return "" if min(*_factors(site.outputs), *_factors(site.inputs)) > 1 else "has a prime width"

    def options(self, site: Site) -> Sequence[float]:
        return (1, 2, 4)

    def build(self, site: Site, option: float) -> Substitute:
        sizes = (*_factors(site.outputs), *_factors(site.inputs))
        terms = max(1, int(option))
        return Substitute(nn.Identity(), KroneckerLinear(sizes, terms, site), axis=site.axis)

    def start(self, new: Substitute, site: Site, option: float) -> None:
        layer = new.tails[0]
        assert isinstance(layer, KroneckerLinear)
        o1, o2, i1, i2 = layer.sizes
        blocks = site.wide[..., 0].view(o1, o2, i1, i2).transpose(1, 2).reshape(o1 * i1, o2 * i2)
        left, values, right = torch.linalg.svd(blocks, full_matrices=False)
        terms = len(layer.first)
        root = functional.pad(values, (0, terms))[:terms].sqrt()
        put(layer.first, functional.pad(left, (0, terms))[:, :terms].T * root[:, None])
        put(layer.second, functional.pad(right, (0, 0, 0, terms))[:terms] * root[:, None])
        put(layer.bias, site.bias)


def _factors(n: int) -> tuple[int, int]:
    """Two factors of ``n``, as equal as can be, the smaller first."""
    small = next(f for f in range(math.isqrt(n), 0, -1) if n % f == 0)
    return small, n // small


class KroneckerLinear(nn.Module):
    """``y = sum_r (A_r (x) B_r) x`` by two products of small matrices.

    Attributes:
        first, second: A [terms, o1, i1] and B [terms, o2, i2].
    """

    def __init__(self, sizes: tuple[int, int, int, int], terms: int, site: Site) -> None:
        super().__init__()
        self.sizes = o1, o2, i1, i2 = sizes
        self.first = nn.Parameter(site.weight.new_zeros(terms, o1, i1))
        self.second = nn.Parameter(site.weight.new_zeros(terms, o2, i2))
        self.bias = nn.Parameter(torch.zeros_like(site.bias)) if site.bias is not None else None

    @property
    def out_features(self) -> int:
        return self.sizes[0] * self.sizes[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, o2, i1, i2 = self.sizes
        blocks = x.unflatten(-1, (i1, i2))
        between = functional.linear(blocks, self.second.flatten(0, 1))  # [..., i1, terms x o2]
        between = between.unflatten(-1, (-1, o2)).transpose(-3, -1).flatten(-2)  # [..., o2, terms x i1]
        y = functional.linear(between, self.first.transpose(0, 1).flatten(1))  # [..., o2, o1]
        y = y.transpose(-1, -2).flatten(-2)
        return y if self.bias is None else y + self.bias


class Circulant(Operator):
    """Weights in square blocks whose rows are one another's turned by a place. Option: side b of the blocks.

    Numbers are the means along the wrapped diagonals, the closest there are, and regressed; exact at 1. It
    saves size, b-fold, and no multiplication, since it runs as the dense layer. Parameters ``k^2 Ci Co / b``.
    """

    name = "circulant"
    source = "Ding et al. 2017, arXiv 1708.08917 (CirCNN)"
    curved = True

    def refuses(self, site: Site) -> str:
        return f"has {site.groups} groups already" if site.groups > 1 else ""

    def options(self, site: Site) -> Sequence[float]:
        return [side for side in (2, 4, 8) if side <= min(site.inputs, site.outputs)]

    def exact(self, site: Site) -> float:
        return 1

    def build(self, site: Site, option: float) -> Substitute:
        side = max(1, min(int(option), site.inputs, site.outputs))
        return Substitute(nn.Identity(), CirculantLayer(site, side), axis=site.axis)

    def start(self, new: Substitute, site: Site, option: float) -> None:
        layer = new.tails[0]
        assert isinstance(layer, CirculantLayer)
        down, across, side, _ = layer.values.shape
        more = (0, 0, 0, across * side - site.inputs, 0, down * side - site.outputs)

        def diagonals(matrix: torch.Tensor) -> torch.Tensor:
            blocks = functional.pad(matrix, more).unflatten(1, (across, side)).unflatten(0, (down, side))
            blocks = blocks.permute(0, 2, 1, 3, 4).flatten(2, 3)  # [down, across, rows x columns, taps]
            summed = blocks.new_zeros(down, across, side, blocks.shape[-1])
            return summed.index_add_(2, layer.place(matrix.device).flatten(), blocks)

        count = diagonals(torch.ones_like(site.wide))
        put(layer.values, diagonals(site.wide) / count.clamp_min(1))
        put(layer.bias, site.bias)


class CirculantLayer(Computed):
    """A layer of circulant blocks.

    Attributes:
        values: [block rows, block columns, side, taps]; entry (i, j) of a block is number ``(i - j) % side``.
    """

    def __init__(self, site: Site, side: int) -> None:
        super().__init__(site.like(site.inputs, site.outputs, bias=site.bias is not None))
        blocks = (-(-site.outputs // side), -(-site.inputs // side))
        self.values = nn.Parameter(site.weight.new_zeros(*blocks, side, site.taps))
        self._shape = tuple(site.weight.shape)

    def place(self, device: torch.device) -> torch.Tensor:
        """Which number is at each entry of a block, [side, side]."""
        at = torch.arange(self.values.shape[2], device=device)
        return (at[:, None] - at) % len(at)

    def weight(self) -> torch.Tensor:
        blocks = self.values[:, :, self.place(self.values.device)]  # [down, across, side, side, taps]
        whole = blocks.transpose(1, 2).flatten(2, 3).flatten(0, 1)
        return whole[: self._shape[0], : self._shape[1]].reshape(self._shape)


class SharedHeads(Operator):
    """Fewer heads of keys or values: each head is a small map of one that a group shares. Option: their share
    of all heads.

    Grouped-query attention from multi-head: ``k_h = A_h (W_g x)``, A_h of the head's size for each head h of
    group g. The best of that form for the heads of a group: the leading eigenvectors of their outputs'
    covariance on real inputs (of the weights, without inputs). Heads whose outputs go together share; exact
    at 1. What a cache has to hold is ``W_g x``. Parameters ``G d Ci + H d^2`` for G of H heads of d channels.
    """

    name = "shared-heads"
    source = "Ainslie et al. 2023, arXiv 2305.13245 (GQA), with the best linear merge for the mean"

    def refuses(self, site: Site) -> str:
        return "gives no heads of attention" if site.dims or not site.head else ""

    def options(self, site: Site) -> Sequence[float]:
        heads = self._heads(site)[0]
        return [share for share in (0.25, 0.5) if share_of(heads, share) < heads]

    def exact(self, site: Site) -> float:
        return 1.0

    def _heads(self, site: Site) -> tuple[int, int]:
        """How many, and channels of each; of a width that its heads do not divide, smaller ones."""
        size = math.gcd(site.head, site.outputs)
        return site.outputs // size, size

    def build(self, site: Site, option: float) -> Substitute:
        heads, size = self._heads(site)
        shared = share_of(heads, option)
        groups = torch.arange(heads) % shared
        tail = GroupLinear(site.outputs, site.outputs, heads, bias=site.bias is not None).to(site.weight)
        reads = Gather(self._channels(groups, size).to(site.weight.device), site.axis)
        front = site.pointwise(site.inputs, shared * size)
        return Substitute(front, Tail(tail, reads), axis=site.axis)

    def _channels(self, groups: torch.Tensor, size: int) -> torch.Tensor:
        """Those of the shared head of each head, one after the other."""
        return (groups[:, None] * size + torch.arange(size)).flatten()

    def start(self, new: Substitute, site: Site, option: float) -> None:
        heads, size = self._heads(site)
        weight = site.wide[..., 0]
        spread = weight @ weight.T
        if site.inputs_seen is not None and len(site.inputs_seen):
            y = (site.inputs_seen.flatten(0, -2).double() @ weight.T).T.cov(correction=0)
            # Directions that these inputs do not reach follow in the weight's own order.
            spread = y + 1e-9 * y.trace() / spread.trace().clamp_min(1e-30) * spread
        front, tail = new.layers
        blocks = spread.unflatten(1, (heads, size)).unflatten(0, (heads, size)).square().sum((1, 3))
        groups = _alike(blocks, len(front.weight) // size)
        shared, maps = torch.zeros_like(front.weight).double(), torch.zeros_like(tail.weight[..., 0]).double()
        for group in range(len(front.weight) // size):
            rows = self._channels((groups == group).nonzero().flatten().cpu(), size).to(weight.device)
            leading = torch.linalg.eigh(spread[rows][:, rows]).eigenvectors[:, -size:]
            shared[group * size : (group + 1) * size] = leading.T @ weight[rows]
            maps[rows] = leading
        put(front.weight, shared)
        put(tail.weight, maps)
        put(tail.bias, site.bias)
        reads = new.tails[0].before
        assert isinstance(reads, Gather)
        reads.index.copy_(self._channels(groups, size))


def _alike(likeness: torch.Tensor, groups: int) -> torch.Tensor:
    """Groups of sizes as equal as can be, each of one member and those most like it: int64 [members].

    Args:
        likeness: [members, members], its diagonal each one's own size; the largest begin a group.
    """
    own = likeness.diagonal().clamp_min(1e-30)
    alike = likeness / (own[:, None] * own).sqrt()
    found = torch.full((len(own),), -1)
    for group, size in enumerate(balanced_sizes(len(own), groups).tolist()):
        left = (found < 0).nonzero().flatten()
        first = left[own.cpu()[left].argmax()]
        found[left[alike.cpu()[first, left].argsort(descending=True, stable=True)[:size]]] = group
    return found
