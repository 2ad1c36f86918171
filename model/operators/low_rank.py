"""Low-rank operators: a layer as a chain of thinner ones, by singular value decompositions of its weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .site import Operator, Site, conv_reason, put, share_of
from .stages import Substitute, Tail

SHARES = (0.125, 0.25, 0.5)  # of the full rank


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
        tail = site.pointwise(rank, site.outputs, bias=site.bias is not None)
        return Substitute(front, Tail(tail), axis=site.axis)

    def start(self, new: Substitute, site: Site, option: float) -> None:
        left, values, right = torch.linalg.svd(site.wide.flatten(1), full_matrices=False)
        front, tail = new.layers
        rank = len(front.weight)
        root = values[:rank].sqrt()
        put(front.weight, root[:, None] * right[:rank])
        put(tail.weight, left[:, :rank] * root)
        if site.bias is not None:
            put(tail.bias, site.bias)
