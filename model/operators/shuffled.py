"""Units of the ShuffleNets, each standing for one convolution: narrow, curved, regressed before use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from .site import Operator, Site, conv_reason, put
from .stages import Cat, Gather, Layer, Substitute, Tail, shuffle


def _directions(weight: torch.Tensor, count: int) -> torch.Tensor:
    """Leading directions of the inputs of [outputs, inputs, taps], as rows [count, inputs].

    One that answers positively is cut least by a ReLU.
    """
    unfolded = weight.transpose(0, 1).flatten(1)
    basis = torch.linalg.eigh(unfolded @ unfolded.T).eigenvectors.flip(1).T
    basis = basis * torch.where(basis.sum(1) < 0, -1.0, 1.0)[:, None]
    return basis[torch.arange(count, device=basis.device) % len(basis)]


def _filters_behind(weight: torch.Tensor, into: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One filter [channels, taps] for each direction ``into`` [channels, inputs], and points [outputs,
    channels] behind them.
    """
    seen = torch.einsum("oit,mi->mot", weight, into)
    left, values, right = torch.linalg.svd(seen, full_matrices=False)
    return right[:, 0], (left[:, :, 0] * values[:, :1]).T


class ShuffleUnit(Operator):
    """A grouped 1x1 layer, ReLU, a channel shuffle, a depthwise convolution, a grouped 1x1 layer.

    Option: groups. A quarter of the outputs between, as published, without the shortcut: it stands for one
    convolution. Starts, and no more, from the leading singular vectors of each group's inputs and the filters
    that fit behind them. Parameters ``(Ci m + m Co) / g + (k^2 + 1) m``.
    """

    name = "shuffle"
    source = "Zhang et al. 2018, arXiv 1707.01083 (ShuffleNet)"
    curved = True

    def refuses(self, site: Site) -> str:
        return conv_reason(site)

    def options(self, site: Site) -> Sequence[float]:
        return [g for g in (1, 2, 4) if not (site.inputs % g or site.outputs % g or site.outputs < 4 * g)]

    @staticmethod
    def _sizes(site: Site, option: float) -> tuple[int, int]:
        groups = int(option)
        while site.inputs % groups or site.outputs % groups:
            groups -= 1
        return groups, groups * max(1, round(site.outputs / 4 / groups))

    def build(self, site: Site, option: float) -> Substitute:
        groups, between = self._sizes(site, option)
        front = nn.Sequential(
            site.pointwise(site.inputs, between, groups=groups, bias=True),
            nn.ReLU(),
            Gather(shuffle(between, groups).to(site.weight.device), site.axis),
            site.spatial(between, between, groups=between),
        )
        tail = site.pointwise(between, site.outputs, groups=groups, bias=site.bias is not None)
        return Substitute(front, Tail(tail), axis=site.axis)

    def start(self, new: Substitute, site: Site, option: float) -> None:
        groups, between = self._sizes(site, option)
        first, filters, tail = new.layers
        made = [_directions(part, between // groups) for part in site.wide.chunk(groups, 1)]
        put(first.weight, torch.cat(made))
        put(first.bias, torch.zeros(between))
        inputs = site.inputs // groups
        into = torch.cat(
            [
                nn.functional.pad(rows, (g * inputs, site.inputs - (g + 1) * inputs))
                for g, rows in enumerate(made)
            ]
        )[shuffle(between, groups).to(site.weight.device)]
        shapes, points = _filters_behind(site.wide, into)
        put(filters.weight, shapes)
        parts = zip(points.chunk(groups, 0), range(groups), strict=True)
        put(tail.weight, torch.cat([rows.chunk(groups, 1)[g] for rows, g in parts]))
        put(tail.bias, site.bias)


class ShuffleV2Unit(Operator):
    """Half of the channels as they are; the others through a 1x1 layer, ReLU, a depthwise convolution and a
    1x1 layer; then in their order. Option: channels between, as a share of the outputs of that half.

    Which inputs stand for outputs is chosen where the layer's filters are most like the identity: it suits
    layers that change little. Where the map changes size, the first half is a depthwise convolution and a 1x1
    layer of all inputs, as published for stride 2, and the second reads all inputs too. Without the last
    ReLU. Parameters at stride 1 and share 1, c channels: ``c^2 / 2 + (k^2 + 1) c / 2``.
    """

    name = "shuffle-v2"
    source = "Ma et al. 2018, arXiv 1807.11164 (ShuffleNet V2)"
    curved = True

    def refuses(self, site: Site) -> str:
        return conv_reason(site)

    def options(self, site: Site) -> Sequence[float]:
        return (0.5, 1.0)

    @staticmethod
    def _halves(site: Site, option: float) -> tuple[int, int]:
        """Outputs of the first half, and channels between in the second."""
        first = min(site.inputs, site.outputs) // 2 if site.same else site.outputs // 2
        return first, max(1, round(option * (site.outputs - first)))

    def build(self, site: Site, option: float) -> Substitute:
        first, between = self._halves(site, option)
        splits = site.same and first > 0
        bias = site.bias is not None
        read = site.inputs - first if splits else site.inputs

        def gather(start: int, stop: int) -> Gather:
            return Gather(torch.arange(start, stop, device=site.weight.device), site.axis)

        branch = nn.Sequential(
            *([gather(first, site.inputs)] if splits else []),
            site.pointwise(read, between, bias=True),
            nn.ReLU(),
            site.spatial(between, between, groups=between),
        )
        end = site.pointwise(between, site.outputs - first, bias=bias)
        if not first:
            return Substitute(branch, Tail(end), axis=site.axis)
        order = gather(0, site.outputs)
        if splits:
            front = Cat(gather(0, first), branch, axis=site.axis)
            last = Tail(end, gather(first, first + between))
            return Substitute(front, gather(0, first), last, axis=site.axis, order=order)
        filters, read = site.spatial(site.inputs, site.inputs, groups=site.inputs), site.inputs
        tails = (
            Tail(site.pointwise(read, first, bias=bias), gather(0, read)),
            Tail(end, gather(read, read + between)),
        )
        return Substitute(Cat(filters, branch, axis=site.axis), *tails, axis=site.axis, order=order)

    def start(self, new: Substitute, site: Site, option: float) -> None:
        first, between = self._halves(site, option)
        kept, copied = (torch.arange(first, device=site.weight.device) for _ in range(2))
        inputs = torch.arange(site.inputs, device=site.weight.device)
        *others, expand, filters, end = new.layers if site.same or not first else self._of_second(new)
        if site.same and first:
            kept, copied = _most_alike(site, first)
            inputs = inputs[~torch.isin(inputs, copied)]
            split = [m for m in new.front.modules() if isinstance(m, Gather)]
            split[0].index.copy_(copied)
            split[1].index.copy_(inputs)
        outputs = torch.arange(site.outputs, device=site.weight.device)
        rest = outputs[~torch.isin(outputs, kept)]
        weight = site.wide[rest][:, inputs]
        into = _directions(weight, between)
        shapes, points = _filters_behind(weight, into)
        put(expand.weight, into)
        put(expand.bias, torch.zeros(between))
        put(filters.weight, shapes)
        put(end.weight, points)
        put(end.bias, None if site.bias is None else site.bias[rest])
        if others:  # the first half, where the map changes size
            shapes, points = _filters_behind(site.wide[kept], torch.eye(site.inputs).to(site.wide))
            put(others[0].weight, shapes)
            put(others[1].weight, points)
            put(others[1].bias, None if site.bias is None else site.bias[kept])
        if new.order is not None:
            new.order.index.copy_(torch.cat([kept, rest]).argsort())

    @staticmethod
    def _of_second(new: Substitute) -> list[Layer]:
        """Layers of the first half, then those of the second."""
        one, expand, filters, point, end = new.layers
        return [one, point, expand, filters, end]


def _most_alike(site: Site, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and, for each, the input that it is most like, by least ``|W_o - identity_i|``."""
    from scipy.optimize import linear_sum_assignment

    weight = site.wide
    gain = 2 * weight[:, :, site.taps // 2] - weight.square().sum((1, 2))[:, None]
    pairs = np.stack(linear_sum_assignment(gain.cpu().numpy(), maximize=True))
    best = np.argsort(-gain.cpu().numpy()[pairs[0], pairs[1]], kind="stable")[:count]
    outputs, inputs = torch.from_numpy(pairs[:, np.sort(best)]).to(weight.device)
    return outputs, inputs
