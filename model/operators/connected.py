"""Operators of sparse connectivity between channels: groups, interleaved groups, expanders, shuffled units.

They save by running as grouped layers behind gathers: a mask would save nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from .assignment import assign, balanced_sizes
from .site import Operator, Site, conv_reason, put
from .stages import Gather, GroupLinear, Layer, Substitute, Tail, shuffle

COPIES = 4  # of all channels that layers whose outputs read apart hold at once


def _layer(site: Site, inputs: int, outputs: int, groups: int, *, bias: bool) -> Layer:
    """With the site's own kernel."""
    if site.dims:
        return site.spatial(inputs, outputs, groups=groups, bias=bias)
    return site.pointwise(inputs, outputs, groups=groups, bias=bias)


def _gather(count: int, site: Site) -> Gather:
    return Gather(torch.arange(count, device=site.weight.device), site.axis)


def _set(gather: Gather | None, index: np.ndarray | torch.Tensor) -> None:
    assert gather is not None
    gather.index.copy_(torch.as_tensor(index))


class LearnedGroups(Operator):
    """Groups of outputs that each read a group of inputs alone. Option: their number.

    Who belongs to which is found for the weights, by assignments that keep most of their energy
    (:mod:`.assignment`). Parameters and multiply-accumulates 1/G.
    """

    name = "learned-groups"
    source = "Wang et al. 2019, arXiv 1904.00346 (FLGC)"

    def refuses(self, site: Site) -> str:
        if reason := conv_reason(site, kernel=False):
            return reason
        return "" if min(site.inputs, site.outputs) >= 4 else "has fewer than four inputs or outputs"

    def options(self, site: Site) -> Sequence[float]:
        return [g for g in (2, 4, 8) if g <= min(site.inputs, site.outputs) // 2]

    def exact(self, site: Site) -> float:
        return 1

    def build(self, site: Site, option: float) -> Substitute:
        groups = max(1, min(int(option), site.inputs, site.outputs))
        into, out = balanced_sizes(site.inputs, groups), balanced_sizes(site.outputs, groups)
        order, bias = _gather(site.outputs, site), site.bias is not None
        if site.inputs % groups == 0 and site.outputs % groups == 0:
            tail = Tail(
                _layer(site, site.inputs, site.outputs, groups, bias=bias), _gather(site.inputs, site)
            )
            return Substitute(nn.Identity(), tail, axis=site.axis, order=order)
        tails = [
            Tail(_layer(site, int(i), int(o), 1, bias=bias), _gather(int(i), site))
            for i, o in zip(into, out, strict=True)
        ]
        return Substitute(nn.Identity(), *tails, axis=site.axis, order=order)

    def start(self, new: Substitute, site: Site, option: float) -> None:
        groups = max(1, min(int(option), site.inputs, site.outputs))
        found = assign(site.wide.square().sum(2).cpu().numpy(), groups)
        rows, columns = (np.argsort(a, kind="stable") for a in (found.rows, found.columns))
        out = np.split(rows, np.cumsum(np.bincount(found.rows, minlength=groups))[:-1])
        into = np.split(columns, np.cumsum(np.bincount(found.columns, minlength=groups))[:-1])
        parts = [site.wide[o][:, i] for o, i in zip(out, into, strict=True)]
        tails = [tail for tail in new.tails if isinstance(tail, Tail)]
        if len(tails) == 1:
            _set(tails[0].before, columns)
            put(tails[0].layer.weight, torch.cat(parts))
            put(tails[0].layer.bias, None if site.bias is None else site.bias[torch.from_numpy(rows)])
        else:
            for tail, part, o, i in zip(tails, parts, out, into, strict=True):
                _set(tail.before, i)
                put(tail.layer.weight, part)
                put(tail.layer.bias, None if site.bias is None else site.bias[torch.from_numpy(o)])
        _set(new.order, np.argsort(rows))


class Expander(Operator):
    """Every output reads a few inputs, chosen at random and evenly. Option: their share D of the inputs.

    A bipartite graph that is regular on both sides, as far as the widths divide, so that no input and no
    output is left alone (the published sampling is regular on one side, which may leave some). Parameters and
    multiply-accumulates D/Ci.
    """

    name = "expander"
    source = "Prabhu et al. 2018, arXiv 1711.08757 (Deep Expander Networks)"

    def refuses(self, site: Site) -> str:
        return conv_reason(site, kernel=False)

    def options(self, site: Site) -> Sequence[float]:
        return (0.125, 0.25, 0.5)

    def exact(self, site: Site) -> float:
        return 1.0

    def build(self, site: Site, option: float) -> Substitute:
        degree = max(round(site.inputs * option), -(-site.inputs // site.outputs))
        degree = max(1, min(site.inputs, degree))
        if site.weight.is_meta:
            index = np.zeros((site.outputs, degree), dtype=np.int64)
        else:
            index = regular(site.outputs, site.inputs, degree)
        return Substitute(nn.Identity(), *reading(site, index, site.inputs), axis=site.axis)

    def start(self, new: Substitute, site: Site, option: float) -> None:
        first = 0
        for tail in new.tails:
            assert isinstance(tail, Tail)
            assert tail.before is not None
            rows = torch.arange(first, first + len(tail.layer.weight), device=site.weight.device)
            put(tail.layer.weight, site.wide[rows[:, None], tail.before.index.view(len(rows), -1)])
            put(tail.layer.bias, None if site.bias is None else site.bias[rows])
            first += len(rows)


def reading(site: Site, index: np.ndarray, inputs: int, *, one_place: bool = False) -> list[Tail]:
    """Tails whose every output reads channels of its own; so many outputs a tail that no more than
    :data:`COPIES` times the channels there are copied at once.

    Args:
        index: [outputs, reads] which.
        inputs: channels there are.
        one_place: 1x1 layers with the site's stride, instead of ones with its kernel.
    """
    step, bias = max(1, COPIES * inputs // index.shape[1]), site.bias is not None
    tails = []
    for part in np.split(index, range(step, len(index), step)):
        n = len(part)
        if one_place:
            layer = site.pointwise(part.size, n, groups=n, bias=bias, strided=site.dims > 0)
        else:
            layer = _layer(site, part.size, n, n, bias=bias)
        before = torch.from_numpy(part.reshape(-1)).to(site.weight.device)
        tails.append(Tail(layer, Gather(before, site.axis)))
    return tails


@lru_cache(maxsize=256)
def regular(outputs: int, inputs: int, degree: int, *, seed: int = 0, rounds: int = 16) -> np.ndarray:
    """Inputs of each output in a random bipartite graph, int64 [outputs, degree], distinct within a row.

    Inputs have degrees that differ by one at most. From a regular start, random pairs of outputs trade what
    only one of them reads, which keeps all degrees (curveball, Strona et al. 2014,
    doi 10.1038/ncomms5114).
    """
    rng = np.random.default_rng(seed)
    rows = [set(row) for row in (np.arange(outputs * degree) % inputs).reshape(outputs, degree).tolist()]
    for _ in range(rounds if degree < inputs else 0):
        order = rng.permutation(outputs).tolist()
        for a, b in zip(order[::2], order[1::2], strict=False):
            mine, theirs, both = rows[a] - rows[b], rows[b] - rows[a], rows[a] & rows[b]
            pool = sorted(mine | theirs)
            drawn = rng.permutation(len(pool)).tolist()
            rows[a] = both | {pool[i] for i in drawn[: len(mine)]}
            rows[b] = both | {pool[i] for i in drawn[len(mine) :]}
    return np.array([sorted(row) for row in rows], dtype=np.int64)


class Interleaved(Operator):
    """A grouped convolution of L groups of M channels, then a grouped 1x1 layer across the groups. Option: L.

    Every output is joined with every input by exactly one path. In closed form: the weight between secondary
    group m (outputs, L) and primary group l (inputs and taps, M k^2) by its leading singular pair, which is
    the closest, since these blocks do not overlap. Exact at one group. Widths are filled up to L M by
    channels that occur twice. Parameters ``G^2 (k^2 / L + 1 / M)`` with G = L M.
    """

    name = "interleaved"
    source = "Zhang et al. 2017, arXiv 1707.02725 (IGC)"

    def refuses(self, site: Site) -> str:
        if reason := conv_reason(site):
            return reason
        wide, thin = max(site.inputs, site.outputs), min(site.inputs, site.outputs)
        return "" if wide < 2 * thin else "has twice as many channels on one side as on the other"

    def options(self, site: Site) -> Sequence[float]:
        wide = max(site.inputs, site.outputs)
        return [groups for groups in (2, 4, 8, 16) if groups <= wide // 2]

    def exact(self, site: Site) -> float:
        return 1

    @staticmethod
    def _sizes(site: Site, option: float) -> tuple[int, int]:
        wide = max(site.inputs, site.outputs)
        groups = max(1, min(int(option), wide))
        return groups, -(-wide // groups)

    def build(self, site: Site, option: float) -> Substitute:
        groups, each = self._sizes(site, option)
        wide, device = groups * each, site.weight.device
        front: list[nn.Module] = [site.spatial(wide, wide, groups=groups)]
        if wide > site.inputs:
            front.insert(0, Gather(torch.arange(wide, device=device) % site.inputs, site.axis))
        front.append(Gather(shuffle(wide, groups).to(device), site.axis))
        tail = site.pointwise(wide, wide, groups=each, bias=site.bias is not None)
        # Secondary group m gives the m-th output of every primary group.
        order = Gather(shuffle(wide, each)[: site.outputs].to(device), site.axis)
        return Substitute(nn.Sequential(*front), Tail(tail), axis=site.axis, order=order)

    def start(self, new: Substitute, site: Site, option: float) -> None:
        groups, each = self._sizes(site, option)
        wide = groups * each
        weight = nn.functional.pad(
            site.wide, (0, 0, 0, wide - site.inputs, 0, wide - site.outputs)
        )  # the outputs of l * each + m are those of secondary group m
        blocks = weight.view(groups, each, groups, each, site.taps).permute(1, 2, 0, 3, 4).flatten(3)
        left, values, right = torch.linalg.svd(blocks, full_matrices=False)  # [m, l, outputs, inputs x taps]
        root = values[..., 0].sqrt()
        primary, tail = new.layers
        put(primary.weight, (right[:, :, 0] * root[..., None]).transpose(0, 1))
        put(tail.weight, (left[..., 0] * root[..., None]).transpose(1, 2))
        if site.bias is not None:
            bias = nn.functional.pad(site.bias, (0, wide - site.outputs))
            put(tail.bias, bias.view(groups, each).T)


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
        each, made = between // groups, []
        for part in site.wide.chunk(groups, 1):
            unfolded = part.transpose(0, 1).flatten(1)
            basis = torch.linalg.eigh(unfolded @ unfolded.T).eigenvectors.flip(1).T  # [inputs, inputs]
            # One that answers positively is cut least.
            basis = basis * torch.where(basis.sum(1) < 0, -1.0, 1.0)[:, None]
            made.append(basis[torch.arange(each, device=basis.device) % len(basis)])
        put(first.weight, torch.cat(made))
        put(first.bias, torch.zeros(between))
        inputs = site.inputs // groups
        into = torch.cat(
            [
                nn.functional.pad(rows, (g * inputs, site.inputs - (g + 1) * inputs))
                for g, rows in enumerate(made)
            ]
        )[shuffle(between, groups).to(site.weight.device)]
        left, values, right = torch.linalg.svd(
            torch.einsum("oit,mi->mot", site.wide, into), full_matrices=False
        )
        put(filters.weight, right[:, 0])
        points = (left[:, :, 0] * values[:, :1]).T  # [outputs, between]
        parts = zip(points.chunk(groups, 0), range(groups), strict=True)
        put(tail.weight, torch.cat([rows.chunk(groups, 1)[g] for rows, g in parts]))
        put(tail.bias, site.bias)


def path_counts(new: Substitute, inputs: int) -> torch.Tensor:
    """[outputs, inputs]: paths between channels of a chain of layers and gathers, by their masks."""
    reach = torch.eye(inputs, dtype=torch.int64)
    chain = [*new.front.modules(), *(m for tail in new.tails for m in tail.modules()), new.order]
    for module in chain:
        if isinstance(module, Gather):
            reach = reach[module.index]
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear, GroupLinear)):
            groups = getattr(module, "groups", 1)
            parts = reach.chunk(groups)
            each = len(module.weight) // groups
            reach = torch.cat([part.sum(0, keepdim=True).expand(each, -1) for part in parts])
    return reach
