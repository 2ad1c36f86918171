"""Operators that share weights: dictionaries, codebooks, versatile filters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from .connected import reading
from .site import Operator, Site, conv_reason, put, share_of
from .stages import Computed, Gather, Shift, Substitute, Tail

ATOMS = 4  # of the dictionary that each tap of a filter looks up
ROUNDS = 8  # of dictionary learning


class Dictionary(Operator):
    """A 1x1 layer to a dictionary of maps; every tap of every filter sums a few of them. Option: its size.

    That is a share of the inputs. ``W[o,:,t] = sum_s C[o,t,s] D[I[o,t,s]]``: atoms and look-ups alternate
    between orthogonal matching pursuit and least squares, from filters' taps that are far apart. At 1 the
    dictionary and all look-ups are whole, and it is exact. Parameters ``K Ci + s k^2 Co``, which is also the
    multiply-accumulates of a place.
    """

    name = "dictionary"
    source = "Bagherinezhad et al. 2017, arXiv 1611.06473 (LCNN)"

    def refuses(self, site: Site) -> str:
        if site.dims and not site.centred:
            return "has a kernel without a centre on its input"
        return conv_reason(site, kernel=False)

    def options(self, site: Site) -> Sequence[float]:
        return (0.25, 0.5) if site.inputs > 2 * ATOMS else ()

    def exact(self, site: Site) -> float:
        return 1.0

    @staticmethod
    def _sizes(site: Site, option: float) -> tuple[int, int]:
        size = share_of(site.inputs, option)
        return size, (size if option >= 1 else min(ATOMS, size))

    def build(self, site: Site, option: float) -> Substitute:
        size, each = self._sizes(site, option)
        front: nn.Module = site.pointwise(site.inputs, size)
        if site.taps > 1:  # every map at every displacement, whatever filters look up
            every = torch.arange(size, device=site.weight.device).repeat(site.taps)
            shift = Shift([offset for offset in _offsets(site) for _ in range(size)])
            front = nn.Sequential(front, Gather(every, site.axis), shift)
        # One look-up of every tap after the other; start says which.
        index = np.zeros((site.outputs, site.taps * each), dtype=np.int64)
        tails = reading(site, index, size * site.taps, one_place=True)
        return Substitute(front, *tails, axis=site.axis)

    def start(self, new: Substitute, site: Site, option: float) -> None:
        size, each = self._sizes(site, option)
        vectors = site.wide.permute(2, 0, 1).flatten(0, 1)  # [taps x outputs, inputs]
        atoms, index, values = learned_dictionary(vectors, size, each)
        put(new.layers[0].weight, atoms)
        taps = size * torch.arange(site.taps, device=index.device)[:, None, None]
        looked, values = (
            t.view(site.taps, site.outputs, each).transpose(0, 1).flatten(1)
            for t in (index.reshape(site.taps, site.outputs, each) + taps, values)
        )
        first = 0
        for tail in new.tails:
            assert isinstance(tail, Tail)
            assert tail.before is not None
            here = slice(first, first + len(tail.layer.weight))
            tail.before.index.copy_(looked[here].reshape(-1))
            put(tail.layer.weight, values[here])
            put(tail.layer.bias, None if site.bias is None else site.bias[here])
            first = here.stop


def _offsets(site: Site) -> list[tuple[int, ...]]:
    """Displacement of each tap, in the kernel's order."""
    return [
        tuple((int(i) - k // 2) * d for i, k, d in zip(at, site.kernel, site.dilation, strict=True))
        for at in torch.cartesian_prod(*(torch.arange(k) for k in site.kernel)).view(site.taps, -1)
    ]


def learned_dictionary(
    vectors: torch.Tensor, size: int, each: int, *, rounds: int = ROUNDS
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Atoms [size, n], and for every vector [m, n] the numbers and weights of ``each`` atoms, [m, each]."""
    right = torch.linalg.svd(vectors, full_matrices=False)[2][:size]
    atoms = functional.pad(right, (0, 0, 0, size - len(right)))
    if short := size - len(right):
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(short, vectors.shape[1], dtype=torch.float64, generator=generator)
        atoms[len(right) :] = functional.normalize(drawn.to(vectors.device), dim=1)
    if each >= size:
        index = torch.arange(size, device=vectors.device).expand(len(vectors), size)
        return atoms, index, torch.linalg.lstsq(atoms.T, vectors.T, driver="gelsd").solution.T
    if len(vectors) > size:
        atoms = _apart(vectors, size)
    index, values = pursuit(vectors, atoms, each)
    for _ in range(rounds):
        codes = torch.zeros(len(vectors), size, dtype=vectors.dtype, device=vectors.device)
        codes.scatter_(1, index, values)
        gram = codes.T @ codes
        gram.diagonal().add_(1e-9 * gram.diagonal().mean() + 1e-30)
        moved = torch.linalg.solve(gram, codes.T @ vectors)
        length = moved.norm(dim=1, keepdim=True)
        atoms = torch.where(length > 1e-9 * length.max(), moved / length.clamp_min(1e-30), atoms)
        index, values = pursuit(vectors, atoms, each)
    return atoms, index, values


def _apart(vectors: torch.Tensor, size: int) -> torch.Tensor:
    """Directions [size, n] of vectors each of which those before explain least: a start in which planted
    atoms show, which singular vectors mix.
    """
    length, unit = vectors.norm(dim=1), functional.normalize(vectors, dim=1)
    taken = [int(length.argmax())]
    alike = (unit @ unit[taken[0]]).abs()
    for _ in range(size - 1):
        taken.append(int(((1 - alike.square()) * length).argmax()))
        alike = torch.maximum(alike, (unit @ unit[taken[-1]]).abs())
    return unit[taken]


def pursuit(vectors: torch.Tensor, atoms: torch.Tensor, each: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthogonal matching pursuit: numbers and weights [m, each] of the unit atoms for each vector.

    From the products of atoms alone (Batch-OMP, Rubinstein et al. 2008).
    """
    products, gram = vectors @ atoms.T, atoms @ atoms.T
    left = products
    index = torch.zeros(len(vectors), 0, dtype=torch.int64, device=vectors.device)
    values = vectors.new_zeros(len(vectors), 0)
    for _ in range(each):
        gain = left.abs().scatter(1, index, -1.0)
        index = torch.cat([index, gain.argmax(1, keepdim=True)], 1)
        among = gram[index[:, :, None], index[:, None, :]]
        among.diagonal(dim1=1, dim2=2).add_(1e-12)
        values = torch.linalg.solve(among, products.gather(1, index))
        left = products - (values[:, None] @ gram[index])[:, 0]
    return index, values


class CodebookLayer(Computed):
    """A layer whose weights are numbers of a small table.

    Attributes:
        values: [size], the table.
        index: uint8, of the weight's shape.
    """

    index: torch.Tensor

    def __init__(self, site: Site, size: int) -> None:
        super().__init__(site.like(site.inputs, site.outputs, bias=site.bias is not None))
        self.values = nn.Parameter(site.weight.new_zeros(size))
        self.register_buffer("index", site.weight.new_zeros(site.weight.shape, dtype=torch.uint8))

    def weight(self) -> torch.Tensor:
        return self.values[self.index.to(torch.int64)]


class Codebook(Operator):
    """Weights from a table of a few numbers, found by k-means. Option: their number, at most 256.

    It saves size and no multiplication: a byte a weight, and the table.
    """

    name = "codebook"
    source = "Han et al. 2016, arXiv 1510.00149 (Deep Compression), section 3"

    def refuses(self, site: Site) -> str:
        if site.groups > 1:
            return f"has {site.groups} groups already"
        return "" if site.weight.numel() > 64 else "has no more weights than a codebook has entries"

    def options(self, site: Site) -> Sequence[float]:
        return [size for size in (16, 64, 256) if size < site.weight.numel() // 2]

    def build(self, site: Site, option: float) -> Substitute:
        size = max(2, min(int(option), 256))
        return Substitute(nn.Identity(), CodebookLayer(site, size), axis=site.axis)

    def start(self, new: Substitute, site: Site, option: float) -> None:
        layer = new.tails[0]
        assert isinstance(layer, CodebookLayer)
        values, index = k_means(site.wide.reshape(-1), len(layer.values))
        put(layer.values, values)
        layer.index.copy_(index.view(site.weight.shape))
        put(layer.bias, site.bias)


def k_means(numbers: torch.Tensor, size: int, *, rounds: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres [size], rising, and the number of the nearest one for each of ``numbers`` [n] (Lloyd 1982).

    Starts from evenly spread centres, which Han et al. found to keep large weights best.
    """
    ordered = numbers.sort().values
    sums = functional.pad(ordered.cumsum(0), (1, 0))
    steps = torch.linspace(0, 1, size, dtype=numbers.dtype, device=numbers.device)
    centres = ordered[0] + steps * (ordered[-1] - ordered[0])
    for _ in range(rounds):
        # Of sorted numbers, those nearest to one centre lie together.
        inner = torch.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        ends = functional.pad(functional.pad(inner, (1, 0)), (0, 1), value=len(ordered))
        count, total = ends.diff(), sums[ends].diff()
        moved = torch.where(count > 0, total / count.clamp_min(1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres, torch.bucketize(numbers, (centres[1:] + centres[:-1]) / 2)


def _inner(weight: torch.Tensor, ring: int) -> torch.Tensor:
    """Its window without the outer ``ring`` taps on every side."""
    for axis in range(2, weight.dim()):
        weight = weight.narrow(axis, ring, weight.shape[axis] - 2 * ring)
    return weight


class NestedWindows(nn.Module):
    """Filters that are used whole and by their inner windows: outputs of the whole, then of each inner one.

    Attributes:
        weight: [primaries, inputs, *kernel].
    """

    def __init__(self, site: Site, primaries: int) -> None:
        super().__init__()
        self.layer = site.spatial(site.inputs, primaries)
        self.depth = -(-min(site.kernel) // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        call = functional.conv2d if layer.weight.dim() == 4 else functional.conv1d
        made = []
        for ring in range(self.depth):
            inner = _inner(layer.weight, ring)
            around: tuple[int, ...] = layer.padding  # type: ignore[assignment]  # never a word here
            padding = [p - ring * d for p, d in zip(around, layer.dilation, strict=True)]
            made.append(call(x, inner, None, layer.stride, padding, layer.dilation))
        return torch.cat(made, 1)


class Versatile(Operator):
    """A filter gives several outputs: by its whole window and by each inner one. Option: share of the outputs
    that have filters of their own, at least one in ``ceil(k/2)``; each output has a scale.

    The outputs of the least energy off the centre become inner ones, of the filters whose centre is most like
    theirs. Parameters ``k^2 Ci P + Co``.
    """

    name = "versatile"
    source = "Wang et al. 2018, NeurIPS, Learning Versatile Filters for Efficient CNNs (spatial)"

    def refuses(self, site: Site) -> str:
        if reason := conv_reason(site):
            return reason
        square = len(set(site.kernel)) == 1 and site.centred
        return "" if square else "has a kernel that is not square around its centre"

    def options(self, site: Site) -> Sequence[float]:
        return (0.5,)

    def build(self, site: Site, option: float) -> Substitute:
        depth = -(-min(site.kernel) // 2)
        primaries = -(-site.outputs // depth)
        front = NestedWindows(site, primaries)
        before = Gather(torch.arange(site.outputs, device=site.weight.device), site.axis)
        tail = site.pointwise(site.outputs, site.outputs, groups=site.outputs, bias=site.bias is not None)
        return Substitute(front, Tail(tail, before), axis=site.axis)

    def start(self, new: Substitute, site: Site, option: float) -> None:
        from scipy.optimize import linear_sum_assignment

        layer, tail = new.layers
        primaries = len(layer.weight)
        weight = site.weight.detach().double()
        middle = site.wide[:, :, site.taps // 2]
        off = weight.flatten(1).square().sum(1) - middle.square().sum(1)
        order = off.argsort(descending=True, stable=True)
        whole = order[:primaries]
        source = torch.empty(site.outputs, dtype=torch.int64, device=weight.device)
        scale = weight.new_ones(site.outputs)
        source[whole] = torch.arange(primaries, device=weight.device)
        filters = weight[whole]
        rest = order[primaries:].split(primaries)
        for ring, members in enumerate(rest, start=1):
            theirs, ours = (_inner(w, ring).flatten(1) for w in (weight[members], filters))
            alike = functional.normalize(theirs, dim=1) @ functional.normalize(ours, dim=1).T
            rows, columns = linear_sum_assignment(-alike.abs().cpu().numpy())
            partner = torch.from_numpy(columns).to(weight.device)
            source[members[torch.from_numpy(rows)]] = ring * primaries + partner
            scale[members] = (theirs * ours[partner]).sum(1) / ours[partner].square().sum(1).clamp_min(1e-30)
        put(layer.weight, filters)
        assert isinstance(new.tails[0], Tail)
        assert new.tails[0].before is not None
        new.tails[0].before.index.copy_(source)
        put(tail.weight, scale)
        put(tail.bias, site.bias)


class SlidWindows(nn.Module):
    """Filters of some of the channels, slid along the channels: outputs of the first window, then the others.

    Attributes:
        layer: from the channels of one window to the primaries.
        starts: first channel of each window.
    """

    def __init__(self, site: Site, primaries: int, windows: int) -> None:
        super().__init__()
        width = -(-site.inputs // windows)
        self.layer, self.axis = site.like(width, primaries), site.axis
        last = site.inputs - width
        self.starts = [last * n // max(windows - 1, 1) for n in range(windows)]
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = [self.layer(x.narrow(self.axis, start, self.width)) for start in self.starts]
        return torch.cat(made, self.axis)


class VersatileChannels(Operator):
    """A filter of a share of the inputs gives an output for each of several windows of the inputs. Option:
    number of windows n, of ``Ci / n`` inputs.

    Outputs go to windows by their energy there; those that are most alike share a filter (the joint fit of
    rank one), each with a scale of its own. Exact at one window. Parameters ``k^2 Ci Co / n^2 + Co``, an n-th
    of the multiply-accumulates.
    """

    name = "versatile-channels"
    source = "Wang et al. 2018, NeurIPS, Learning Versatile Filters for Efficient CNNs (channel)"

    def refuses(self, site: Site) -> str:
        return conv_reason(site, kernel=False)

    def options(self, site: Site) -> Sequence[float]:
        return [n for n in (2, 4) if n <= min(site.inputs, site.outputs)]

    def exact(self, site: Site) -> float:
        return 1

    def build(self, site: Site, option: float) -> Substitute:
        windows = max(1, min(int(option), site.inputs, site.outputs))
        front = SlidWindows(site, -(-site.outputs // windows), windows)
        before = Gather(torch.arange(site.outputs, device=site.weight.device), site.axis)
        tail = site.pointwise(site.outputs, site.outputs, groups=site.outputs, bias=site.bias is not None)
        return Substitute(front, Tail(tail, before), axis=site.axis)

    def start(self, new: Substitute, site: Site, option: float) -> None:
        from scipy.optimize import linear_sum_assignment

        layer, tail = new.layers
        assert isinstance(new.front, SlidWindows)
        primaries, starts, width = len(layer.weight), new.front.starts, new.front.width
        parts = torch.stack(
            [site.wide[:, s : s + width].flatten(1) for s in starts]
        )  # [windows, outputs, ...]
        weights = site.variances.clamp_min(1e-12).sqrt()
        seen = torch.stack([site.wide[:, s : s + width] * weights[s : s + width, None] for s in starts])
        energy = seen.square().sum((2, 3)).T.repeat_interleave(primaries, 1)
        rows, slots = linear_sum_assignment(energy.cpu().numpy(), maximize=True)
        members = [torch.from_numpy(rows[slots // primaries == n]) for n in range(len(starts))]
        leaders = max(members, key=len)
        lead = next(n for n, m in enumerate(members) if m is leaders)
        unit = [functional.normalize(parts[n][m], dim=1) for n, m in enumerate(members)]
        alike = parts.new_zeros(len(starts), primaries, parts.shape[2])  # what shares a filter, by window
        source = torch.zeros(site.outputs, dtype=torch.int64)
        for n, m in enumerate(members):
            if n == lead:
                partner = np.arange(len(m))
            else:
                partner = linear_sum_assignment(-(unit[n] @ unit[lead].T).abs().cpu().numpy())[1]
            alike[n, partner] = parts[n][m]
            source[m] = torch.from_numpy(n * primaries + partner)
        left, values, right = torch.linalg.svd(alike.transpose(0, 1), full_matrices=False)
        scale = (left[:, :, 0] * values[:, :1]).T.reshape(-1)[source.to(parts.device)]
        put(layer.weight, right[:, 0])
        assert isinstance(new.tails[0], Tail)
        assert new.tails[0].before is not None
        new.tails[0].before.index.copy_(source)
        put(tail.weight, scale)
        put(tail.bias, site.bias)
