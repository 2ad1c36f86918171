"""Initialisation of substitutes, the same for every operator: start, regression, least squares."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import nn
from torch.nn import functional

from ..repair.sequential import fitted_layer
from .kernels import SparseLayer
from .site import Operator, Site
from .stages import GroupLinear, Layer, Substitute, Tail

RIDGE = 1e-3  # of the mean variance of what a tail reads; pulls towards the started weights
ROWS = 4096  # samples of one tail, or four a column
ROUNDS = 100  # of conjugate gradients, at most
BLOCK = 2**22  # numbers of the small systems solved at once
STEPS = 80  # of the regression
BATCH = 16  # its samples a step
RATE = 1.5e-2  # its Adam's


@dataclass(frozen=True, eq=False)
class Targets:
    """What a layer gave at some places of its outputs.

    Attributes:
        at: index of each row over the batch and the output's spatial axes, int64 [rows] each.
        values: [rows, outputs].
    """

    at: tuple[torch.Tensor, ...]
    values: torch.Tensor
    complete: bool = False  # every place once, in order

    @classmethod
    def of(cls, y: torch.Tensor, axis: int, *, rows: int = ROWS, seed: int = 0) -> Targets:
        """At most ``rows`` random places of outputs ``y``, whose channels are along ``axis``."""
        moved = y.detach().movedim(axis, -1)
        shape, count = moved.shape[:-1], moved[..., 0].numel()
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.arange(count) if count <= rows else torch.randint(count, (rows,), generator=generator)
        at = tuple(i.to(y.device) for i in torch.unravel_index(drawn, shape))
        return cls(at, moved[at], count <= rows)

    def kept(self, outputs: torch.Tensor) -> Targets:
        """Of some outputs alone, int64."""
        return Targets(self.at, self.values[:, outputs.to(self.values.device)], self.complete)

    def first(self, rows: int) -> Targets:
        """Of that many rows; as random as all of them, unless all places are there, in order: then all."""
        return self if self.complete else Targets(tuple(i[:rows] for i in self.at), self.values[:rows])


def initialise(
    operator: Operator,
    site: Site,
    option: float,
    x: torch.Tensor | None = None,
    *,
    y: torch.Tensor | None = None,
    seed: int = 0,
    steps: int = STEPS,
) -> Substitute:
    """A substitute from the layer's weights and, with inputs ``x``, fitted to what the layer gives on them,
    or to ``y``.

    Weights start in closed form; where the operator is curved they are regressed on ``x``; then the last
    linear stage is solved for.
    """
    if x is not None and site.inputs_seen is None:
        site = replace(site, inputs_seen=x)
    with torch.no_grad():
        new = operator.build(site, option)
        operator.start(new, site, option)
        new.eval()
        if x is None:
            return new
        y = site(x) if y is None else y
    if operator.curved:
        regress(new, x, y, steps=steps, seed=seed)
    targets = Targets.of(y, site.axis, rows=max(ROWS, 4 * columns_of(new)), seed=seed)
    refit(new, x, targets, intercept=site.bias is not None)
    return new


@torch.no_grad()
def refit(
    new: Substitute, x: torch.Tensor, targets: Targets, *, intercept: bool, ridge: float = RIDGE
) -> torch.Tensor:
    """Solve the tails' weights by ridge least squares for the targets, in place, from inputs ``x``.

    ``min |Y - Z W^T - c|^2 + lambda |W - W_0|^2`` with Z what the tail reads (windows, where its kernel has
    several taps) and W_0 its weights before.

    Args:
        x: inputs of the place that the targets were seen at: of the original, or of the compressed network.
        intercept: fit constants too; a tail with a bias takes its own.

    Returns:
        [outputs] constants to be added to what the substitute gives; zeros where its tails took them.
    """
    front = new.front(x)
    left_over = targets.values.new_zeros(targets.values.shape[1])
    moments: _Moments | None = None  # of all that tails of one form gather from
    for tail, outputs in zip(new.tails, new.outputs(), strict=True):
        if isinstance(tail, SparseLayer):
            left_over += _refit_sparse(tail, front, targets, intercept, ridge)
        if not isinstance(tail, Tail):
            continue
        layer, before = tail.layer, tail.before
        outputs = outputs.to(targets.values.device)
        read = outputs >= 0
        y = targets.values[:, outputs.clamp(min=0)]
        priors = layer.weight.detach().movedim(1, -1).flatten(1).double()  # taps first, channels last
        if before is not None and len(before.index) > front.shape[new.axis]:
            if moments is None:
                moments = _Moments(windows(front, layer, targets.at), targets.values, intercept)
            weight, constant = moments.solve(before.index, outputs.clamp(min=0), priors, ridge)
        else:
            weight, constant = _by_group(
                windows(tail.reads(front), layer, targets.at), y, priors, intercept, ridge
            )
        moved = layer.weight.detach().movedim(1, -1)
        moved.copy_(torch.where(read[:, None], weight, priors).view(moved.shape))
        if layer.bias is not None:
            layer.bias.copy_(torch.where(read, constant, layer.bias))
        else:
            left_over[outputs[read]] = constant[read].to(left_over)
    return left_over


def _refit_sparse(
    layer: SparseLayer, x: torch.Tensor, targets: Targets, intercept: bool, ridge: float
) -> torch.Tensor:
    """The weights that a sparse layer holds, in place, those of each output from what it reads alone.

    Returns:
        [outputs] constants that it has no bias for.
    """
    height, width = layer.sides
    seen = windows(x, layer, targets.at).unflatten(1, (height, width)).permute(0, 2, 3, 1).flatten(1)
    kind = torch.promote_types(seen.dtype, torch.float32)
    seen, y = seen.to(kind), targets.values.to(kind)
    mx, my = (v.mean(0) * float(intercept) for v in (seen, y))
    seen, y = seen - mx, y - my
    second, cross = (seen.T @ seen).double(), (y.T @ seen).double()
    damping = ridge * float(second.diagonal().mean()) + 1e-30
    second.diagonal().add_(damping)
    support = layer.matrix(torch.ones_like(layer.values)).double()
    prior = layer.matrix(layer.values).double()
    weight = _on_support(second, cross + damping * prior, prior, support)
    layer.values.copy_(weight[layer.rows(), layer.columns.to(torch.int64)])
    constant = (my.double() - weight @ mx.double()).to(targets.values)
    if layer.bias is None:
        return constant
    layer.bias.copy_(constant)
    return torch.zeros_like(constant)


def _on_support(a: torch.Tensor, b: torch.Tensor, w: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
    """Rows W with ``(W A - B) * support = 0``, zero elsewhere, by conjugate gradients from ``w``: of every
    row its own, all at once, so that no row's matrix has to be factorised. Each round lowers the error.

    Args:
        a: [columns, columns], symmetric and positive definite.
        b, w, support: [rows, columns]; ``support`` of ones and zeros.
    """
    left = (b - w @ a) * support
    step, square = left, left.square().sum(1, keepdim=True)
    least = 1e-20 * (b * support).square().sum(1, keepdim=True)
    for _ in range(ROUNDS):
        if bool((square <= least).all()):
            break
        moved = (step @ a) * support
        length = square / (step * moved).sum(1, keepdim=True).clamp_min(1e-300)
        w, left = w + length * step, left - length * moved
        before, square = square, left.square().sum(1, keepdim=True)
        step = left + square / before.clamp_min(1e-300) * step
    return w


def _by_group(
    x: torch.Tensor, y: torch.Tensor, priors: torch.Tensor, intercept: bool, ridge: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and constants of a layer whose groups read different inputs ``x``, [rows, taps, inputs]."""
    groups = x.shape[1] * x.shape[2] // priors.shape[1]
    parts = zip(x.chunk(groups, 2), y.chunk(groups, 1), priors.chunk(groups, 0), strict=True)
    fitted = [fitted_layer(a.flatten(1), b, prior, intercept, ridge) for a, b, prior in parts]
    return torch.cat([w for w, _ in fitted]), torch.cat([c for _, c in fitted])


class _Moments:
    """Second moments of inputs that groups of a layer share, so that each group only takes its part.

    Args:
        x: [rows, taps, inputs].
        y: [rows, outputs], of the whole layer.
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor, intercept: bool) -> None:
        self._taps, self._inputs = x.shape[1:]
        kind = torch.promote_types(x.dtype, torch.float32)
        x, y = x.flatten(1).to(kind), y.to(kind)
        self._mx, self._my = (v.mean(0) * float(intercept) for v in (x, y))
        x, y = x - self._mx, y - self._my
        self._second, self._cross = (x.T @ x).double(), (x.T @ y).double()

    def solve(
        self, index: torch.Tensor, outputs: torch.Tensor, priors: torch.Tensor, ridge: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and constants of a grouped layer; see :func:`.fitted_layer`.

        Args:
            index: what its groups read, one after the other.
            outputs: which ones it gives.
            priors: [outputs, taps x inputs of a group].
        """
        groups = self._taps * len(index) // priors.shape[1]
        taps = torch.arange(self._taps, device=index.device)[:, None] * self._inputs
        columns = (taps + index.view(groups, 1, -1)).flatten(1)  # [groups, unknowns]
        made, constants = torch.empty_like(priors), []
        step = max(1, BLOCK // columns.shape[1] ** 2)
        each = len(outputs) // groups
        for first in range(0, groups, step):
            part = columns[first : first + step]
            rows = slice(first * each, (first + len(part)) * each)
            at, prior = outputs[rows].view(len(part), -1), priors[rows].view(len(part), each, -1)
            second = self._second[part[:, :, None], part[:, None, :]]
            diagonal = second.diagonal(dim1=1, dim2=2)
            damping = ridge * diagonal.mean(1)[:, None, None] + 1e-30
            diagonal.add_(damping[:, 0])
            cross = self._cross[part[:, :, None], at[:, None, :]] + damping * prior.mT
            w = torch.cholesky_solve(cross, torch.linalg.cholesky(second)).mT
            made[rows] = w.flatten(0, 1)
            mean = (w @ self._mx[part].double().unsqueeze(-1)).flatten()
            constants.append(self._my[outputs[rows]].double() - mean)
        return made, torch.cat(constants)


def windows(z: torch.Tensor, layer: Layer | SparseLayer, at: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """What ``layer`` reads for its outputs at the places ``at``: [rows, taps, inputs].

    Args:
        z: its input.
        at: index over the batch and the axes of the output's places.
    """
    if isinstance(layer, (nn.Linear, GroupLinear)) or not layer.kernel_size:
        return z[at].unsqueeze(1)
    around: tuple[int, ...] = layer.padding  # type: ignore[assignment]  # never a word here
    padding = [p for p in reversed(around) for _ in range(2)]
    last = (functional.pad(z, padding) if any(padding) else z).movedim(1, -1)
    taps = []
    for tap in product(*map(range, layer.kernel_size)):
        steps = zip(at[1:], layer.stride, layer.dilation, tap, strict=True)
        taps.append(last[(at[0], *(i * s + t * d for i, s, d, t in steps))])
    return torch.stack(taps, 1)


def closest_map(x: torch.Tensor, y: torch.Tensor, kernel: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the one linear map that gives ``y`` from ``x`` with the least squared error.

    Args:
        x, y: of one shape: [batch, channels, *map], or [*rows, channels] for ``kernel`` 0.
        kernel: odd side of a convolution over the map, padded; 0: a linear layer.
    """
    dims = x.dim() - 2 if kernel else 0
    channels = x.shape[1] if kernel else x.shape[-1]
    layer: Layer = nn.Linear(channels, channels)
    if dims:
        make = nn.Conv2d if dims == 2 else nn.Conv1d
        layer = make(channels, channels, kernel, padding=kernel // 2)
    targets = Targets.of(y, -1 - dims, rows=max(ROWS, 4 * channels * kernel**dims))
    seen = windows(x, layer, targets.at).flatten(1)
    prior = seen.new_zeros(channels, seen.shape[1], dtype=torch.float64)
    weight, bias = fitted_layer(seen, targets.values, prior, True, RIDGE)
    shaped = weight.view(channels, -1, channels).movedim(-1, 1)  # taps first, channels last
    return shaped.reshape(layer.weight.shape).to(x), bias.to(x)


def columns_of(new: Substitute) -> int:
    """Most unknowns of any output of a substitute's tails."""
    unknowns = [math.prod(t.layer.weight.shape[1:]) for t in new.tails if isinstance(t, Tail)]
    unknowns += [int(t.starts.diff().max()) for t in new.tails if isinstance(t, SparseLayer)]
    return max(unknowns, default=0)


def regress(new: Substitute, x: torch.Tensor, y: torch.Tensor, *, steps: int = STEPS, seed: int = 0) -> None:
    """Train a substitute alone to give ``y`` from ``x``, in place: Adam on the mean squared error, from tails
    that fit what its front gives at first.
    """
    refit(new, x, Targets.of(y, new.axis, seed=seed), intercept=False)
    generator = torch.Generator().manual_seed(seed)
    wanted = [p for p in new.parameters() if p.is_floating_point()]
    scale = y.detach().var().clamp_min(1e-12)
    with torch.enable_grad(), torch.inference_mode(False):
        for p in wanted:
            p.requires_grad_(True)
        optimiser = torch.optim.Adam(wanted, lr=RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(steps):
            rows = torch.randint(len(x), (min(BATCH, len(x)),), generator=generator).to(x.device)
            loss = functional.mse_loss(new(x[rows]), y[rows]) / scale
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
