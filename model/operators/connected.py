"""Operators of sparse connectivity between channels: groups, interleaved groups, expanders.

They save by running as grouped layers behind gathers: a mask would save nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from .assignment import assign, balanced_sizes
from .site import Operator, Site, conv_reason, put
from .stages import Gather, Substitute, Tail

COPIES = 4  # of all channels that layers whose outputs read apart hold at once


def _gather(count: int, site: Site) -> Gather:
    return Gather(torch.arange(count, device=site.weight.device), site.axis)


def _set(gather: Gather | None, index: np.ndarray | torch.Tensor) -> None:
    assert gather is not None
    gather.index.copy_(torch.as_tensor(index))


class LearnedGroups(Operator):
    """Groups of outputs that each read a group of inputs alone. Option: their number.

    Who belongs to which is found by assignments that keep most of the weights' energy, inputs counted by
    their variances where they are known (:mod:`.assignment`). Parameters and multiply-accumulates 1/G.
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
                site.like(site.inputs, site.outputs, groups=groups, bias=bias), _gather(site.inputs, site)
            )
            return Substitute(nn.Identity(), tail, axis=site.axis, order=order)
        tails = [
            Tail(site.like(int(i), int(o), bias=bias), _gather(int(i), site))
            for i, o in zip(into, out, strict=True)
        ]
        return Substitute(nn.Identity(), *tails, axis=site.axis, order=order)

    def start(self, new: Substitute, site: Site, option: float) -> None:
        groups = max(1, min(int(option), site.inputs, site.outputs))
        energy = site.wide.square().sum(2) * site.variances
        found = assign(energy.cpu().numpy(), groups)
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
            layer = site.like(part.size, n, groups=n, bias=bias)
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

    Every output is joined with every input by exactly one path: the m-th outputs of all primary groups are
    the m-th secondary group. In closed form, see :func:`interleaved_factors`; exact at one group. Widths that
    do not divide are filled up. Parameters ``G^2 (k^2 / L + 1 / M)`` with G = L M channels on both sides.
    """

    name = "interleaved"
    source = "Zhang et al. 2017, arXiv 1707.02725 (IGC)"

    def refuses(self, site: Site) -> str:
        return conv_reason(site)

    def options(self, site: Site) -> Sequence[float]:
        return [groups for groups in (2, 4, 8, 16) if groups <= min(site.inputs, site.outputs) // 2]

    def exact(self, site: Site) -> float:
        return 1

    @staticmethod
    def _sizes(site: Site, option: float) -> tuple[list[int], list[int]]:
        """By stage, inputs and outputs of a group."""
        groups = max(1, min(int(option), site.inputs, site.outputs))
        return [-(-site.inputs // groups), groups], [-(-site.outputs // groups), groups]

    def build(self, site: Site, option: float) -> Substitute:
        into, out = self._sizes(site, option)
        width, done, device = math.prod(into), 1, site.weight.device
        layers: list[nn.Module] = []
        for stage, (i, o) in enumerate(zip(into, out, strict=True)):
            # Channels lie as (inputs of later stages, those of this one, outputs of earlier ones).
            order = torch.arange(width, device=device).view(-1, i, done).transpose(1, 2).reshape(-1)
            before = Gather(order, site.axis) if done > 1 else None
            if not stage and width > site.inputs:
                before = Gather(order % site.inputs, site.axis)
            last = stage == len(into) - 1
            make = site.pointwise if stage or not site.dims else site.spatial
            layer = make(width, width // i * o, groups=width // i, bias=last and site.bias is not None)
            width, done = width // i * o, done * o
            layers += [Tail(layer, before)] if last else [m for m in (before, layer) if m is not None]
        places = torch.arange(width, device=device).view(out)
        index = places.permute(*reversed(range(len(out)))).reshape(-1)[: site.outputs]
        return Substitute(
            nn.Sequential(*layers[:-1]), layers[-1], axis=site.axis, order=Gather(index, site.axis)
        )

    def start(self, new: Substitute, site: Site, option: float) -> None:
        into, out = self._sizes(site, option)
        more = (math.prod(out) - site.outputs, math.prod(into) - site.inputs)
        weight = nn.functional.pad(site.wide, (0, 0, 0, more[1], 0, more[0]))
        for layer, factor in zip(new.layers, interleaved_factors(weight, into, out), strict=True):
            put(layer.weight, factor)
        if site.bias is not None:
            bias = nn.functional.pad(site.bias, (0, more[0])).view(out[::-1])
            put(new.layers[-1].bias, bias.permute(*reversed(range(len(out)))))


class InterleavedV2(Interleaved):
    """A chain of grouped layers, the first with the kernel, of groups of ``K_1, ..., K_S`` channels whose
    product is the width, each across the groups of those before. Option: number of stages S.

    Sizes are balanced, ``k^2 K_1 = K_2 = ... = K_S``, as near as whole numbers are: the kernel becomes
    depthwise. One path for every pair, found as for two stages; exact at one. Parameters
    ``C (k^2 K_1 + K_2 + ... + K_S)`` with C channels on both sides.
    """

    name = "interleaved-v2"
    source = "Xie et al. 2018, arXiv 1804.06202 (IGCV2)"

    def refuses(self, site: Site) -> str:
        return conv_reason(site, kernel=False)

    def options(self, site: Site) -> Sequence[float]:
        return [stages for stages in (2, 3, 4) if 2 ** (stages - 1) <= min(site.inputs, site.outputs)]

    @staticmethod
    def _sizes(site: Site, option: float) -> tuple[list[int], list[int]]:
        stages = max(1, int(option))
        return balanced_chain(site.inputs, stages, site.taps), balanced_chain(site.outputs, stages, site.taps)


def balanced_chain(channels: int, stages: int, taps: int = 1) -> list[int]:
    """Sizes of the groups of each stage, whose product is ``channels`` or little more."""
    if stages == 1:
        return [channels]
    even = (taps * channels) ** (1 / stages) / taps
    near = range(max(1, int(even / 1.5)), max(1, round(even * 1.5)) + 1)
    size = min(near, key=lambda k: (-(-channels // k) * k - channels, abs(math.log(k / even))))
    return [size, *balanced_chain(-(-channels // size), stages - 1)]


def interleaved_factors(weight: torch.Tensor, into: Sequence[int], out: Sequence[int]) -> list[torch.Tensor]:
    """Weights of a chain of grouped layers with one path for every pair of channels, closest to a dense one.

    For every output of a group of the first stage, the weight from that group to all outputs reached through
    it is a block; blocks do not overlap, and the path makes each of rank one: its leading singular pair. What
    is left between later stages is treated in the same way (butterfly factorisation), stage by stage.

    Args:
        weight: [outputs, inputs, taps]; the channels of the first stage's groups are neighbours, outputs
            count its members fastest.
        into, out: by stage, inputs and outputs of a group; their products are the widths.

    Returns:
        [outputs of all groups, inputs of a group, taps] each, one tap but for the first.
    """
    rest, made = weight[None], []  # [outputs of earlier stages, later outputs, later inputs, taps]
    for i, o in zip(into[:-1], out[:-1], strict=True):
        blocks = rest.unflatten(2, (-1, i)).unflatten(1, (-1, o)).permute(0, 2, 3, 1, 4, 5).flatten(4)
        left, values, right = torch.linalg.svd(blocks, full_matrices=False)
        root = values[..., :1].sqrt()
        made.append((right[..., 0, :] * root).unflatten(-1, (i, -1)).permute(2, 0, 1, 3, 4).flatten(0, 2))
        rest = (left[..., 0] * root).flatten(0, 1).transpose(1, 2).unsqueeze(-1)
    return [*made, rest.flatten(0, 1)]
