"""One pass over the original that records, and one over the smaller network that fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from ..coupling.walk import bind, operator_name
from ..surgery import Alive, Surgeon, rewrite
from .consumers import Consumer, find_consumers
from .rows import draw, places, take
from .sources import Source

aten = torch.ops.aten

COLUMNS = 1536  # of a layer that is fitted; wider ones keep the one-step repair
ROWS = 4096  # samples of a layer, or four a column
LEAST_ROWS = 32  # with fewer the one-step repair stays: a fit would follow the samples' noise
FITTED = ("linear", "conv2d", "mm", "addmm", "matmul")


@dataclass(frozen=True)
class _Fit:
    """A layer of the original, and what it gave at some places."""

    consumer: Consumer
    source: Source
    at: torch.Tensor  # [rows] numbers of the places
    outputs: torch.Tensor  # [rows, outputs]


class Recorder(fx.Interpreter):
    """Runs the original; keeps outputs of the layers that can be fitted, and statistics, by node."""

    def __init__(self, module: fx.GraphModule, layers: Sequence[tuple[Consumer, Source]]) -> None:
        super().__init__(module)
        self._layers = {c.calls[0]: (c, s) for c, s in layers if len(c.calls) == 1}
        self._generator = torch.Generator().manual_seed(0)
        self.fits: dict[str, _Fit] = {}
        self.statistics: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.target is aten.batch_norm.default and _owns_statistics(n):
            self.statistics[n.name] = _mean_and_variance(self.env[n.all_input_nodes[0]])
        out = super().run_node(n)
        if n.name in self._layers and operator_name(n.target)[0] in FITTED:
            consumer, source = self._layers[n.name]
            shape = places(self.env[bind(n)[source.calls[0][1]]], source)
            count = math.prod(shape)
            if count * out.shape[source.axis] != out.numel() or len(consumer.coverage) != source.taps:
                return out  # a window of a form that is not followed
            if count < LEAST_ROWS:
                return out
            wanted = max(ROWS, 4 * len(source.columns) // source.groups)
            at = draw(count, wanted, self._generator)
            # Outputs lie along the axis that the inputs had.
            rows = out.movedim(source.axis, -1)[torch.unravel_index(at, shape)]
            self.fits[n.name] = _Fit(consumer, source, at, rows)
        return out


def record(surgeon: Surgeon, inputs: Sequence[Any]) -> Recorder:
    """Run the original on ``inputs``, the placeholders' values."""
    assert surgeon.module is not None
    consumers, sources = find_consumers(surgeon.module.graph, surgeon.coupling)
    recorder = Recorder(surgeon.module, [(c, sources[c.source]) for c in consumers])
    recorder.run(*inputs, enable_io_processing=False)
    return recorder


def _owns_statistics(n: fx.Node) -> bool:
    """Whether a batch-norm call has running statistics that no other call uses."""
    return all(isinstance(a, fx.Node) and a.op == "get_attr" and len(a.users) == 1 for a in n.args[3:5])


def _mean_and_variance(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per channel (axis 1), float64."""
    variance, mean = torch.var_mean(x.double(), [d for d in range(x.dim()) if d != 1], correction=0)
    return mean, variance


class Smaller(fx.Interpreter):
    """Runs the original's graph on sliced parameters, fitting them on the way."""

    def __init__(
        self, surgeon: Surgeon, alive: Alive, made: dict[str, Any], original: Recorder, ridge: float
    ) -> None:
        assert surgeon.module is not None
        super().__init__(surgeon.module)
        self._surgeon, self._alive, self._made = surgeon, alive, made
        self._original, self._ridge = original, ridge

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._made[self._surgeon.coupling.canonical[str(target)]]

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        if n.name not in self._surgeon.constants:
            return super().fetch_args_kwargs_from_env(n)
        args, kwargs = rewrite(n, self._surgeon.constants[n.name], self._alive)
        return self.map_nodes_to_values(args, n), self.map_nodes_to_values(kwargs, n)

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self._original.fits:
            fit = self._original.fits[n.name]
            self._fit(fit, self.env[bind(n)[fit.source.calls[0][1]]])
        elif n.name in self._original.statistics:
            self._shift(n)
        return super().run_node(n)

    def _shift(self, n: fx.Node) -> None:
        """Move a batch-norm's running statistics by as much as the batch's differ from the original's."""
        names = [self._surgeon.coupling.canonical[str(a.target)] for a in n.args[3:5]]  # type: ignore[union-attr]
        labels = self._surgeon.coupling.parameters[names[0]][0]
        kept = slice(None) if labels is None else torch.from_numpy(np.flatnonzero(self._alive[labels]))
        old_mean, old_variance = (s[kept] for s in self._original.statistics[n.name])
        mean, variance = _mean_and_variance(self.env[n.all_input_nodes[0]])
        tensors = self._surgeon.tensors
        self._made[names[0]].copy_(tensors[names[0]][kept] + (mean - old_mean))
        ratio = torch.where(old_variance > 0, variance / old_variance, 1.0)
        self._made[names[1]].copy_(tensors[names[1]][kept] * ratio)

    def _fit(self, fit: _Fit, x: torch.Tensor) -> None:
        consumer, source, alive = fit.consumer, fit.source, self._alive
        labels = self._surgeon.coupling.parameters[consumer.weight][consumer.out]
        rows = np.ones(fit.outputs.shape[1], dtype=bool) if labels is None else alive[labels]
        wanted = fit.outputs[:, torch.from_numpy(rows)]
        columns = int(alive[source.columns].sum()) // source.groups
        if columns > COLUMNS:
            return
        seen = take(x, source, fit.at)
        weight = self._made[consumer.weight].detach()
        target = weight.movedim((consumer.out, consumer.axis), (0, 1))
        bias = consumer.offset[0] if consumer.offset and consumer.offset[1] > 0 else None
        new, constants = [], []
        parts = zip(
            seen.chunk(source.groups, 1),
            wanted.chunk(source.groups, 1),
            target.double().flatten(1).chunk(source.groups, 0),
            strict=True,
        )
        for x_part, y_part, w in parts:
            fitted, constant = fitted_layer(x_part, y_part, w, consumer.offset is not None, self._ridge)
            new.append(fitted)
            constants.append(constant)
        target.copy_(torch.cat(new).reshape(target.shape))
        if bias is not None:
            self._made[bias].detach().copy_(torch.cat(constants))


def fitted_layer(
    x: torch.Tensor, y: torch.Tensor, prior: torch.Tensor, intercept: bool, ridge: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """W and c of least ``|y - x W^T - c|^2 + lambda |W - prior|^2``.

    Args:
        x, y: [rows, inputs] and [rows, outputs]. Products are summed in their type, at least float32, and
            solved in float64: the damping stands far above the rounding.
        prior: [outputs, inputs], float64.
        ridge: lambda, relative to the mean variance of the inputs times the rows.

    Returns:
        W [outputs, inputs] and c [outputs] (zeros without an intercept).
    """
    kind = torch.promote_types(x.dtype, torch.float32)
    x, y = x.to(kind), y.to(kind)
    mx = x.mean(0) if intercept else x.new_zeros(x.shape[1])
    my = y.mean(0) if intercept else y.new_zeros(y.shape[1])
    x, y = x - mx, y - my
    second, cross = (x.T @ x).double(), (x.T @ y).double()
    damping = ridge * float(second.diagonal().mean()) + 1e-30
    second.diagonal().add_(damping)
    w = torch.cholesky_solve(cross + damping * prior.T, torch.linalg.cholesky(second)).T
    return w, my.double() - w @ mx.double()
