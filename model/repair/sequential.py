"""Sequential repair: layer by layer, on the smaller network's own activations.

The closed form of :mod:`.fold` takes every layer's inputs for what they were; behind several repaired layers
they no longer are. Here the smaller network runs once over calibration inputs, and every layer on the way is
fitted, by least squares, to give the outputs of the original from the inputs that it now gets (He et al.
2017, arXiv 1707.06168, section 3.2, whole model). Running statistics of BatchNorm move as those of the batch
do, from the original to the smaller network.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from ..capture import Captured, batch_length, flat_inputs, fresh
from ..coupling import Coupling
from ..coupling.walk import bind, operator_name
from ..surgery import Alive, Surgeon, rewrite
from .consumers import Consumer, find_consumers
from .gram import Inputs
from .sources import MomentSource, Picker, draw, places

aten = torch.ops.aten

COLUMNS = 1536  # of a layer that is fitted; wider ones keep the one-step repair
ROWS = 4096  # samples of a layer, or four a kept column
LEAST_ROWS = 32  # with fewer the one-step repair stays: a fit would follow the samples' noise
FITTED = ("linear", "conv2d", "mm", "addmm", "matmul")


@dataclass(frozen=True)
class _Fit:
    """A layer of the original, and what it gave at some places."""

    consumer: Consumer
    source: MomentSource
    operand: fx.Node  # what it reads
    picker: Picker  # of its inputs at those places
    outputs: torch.Tensor  # [rows, outputs]
    drawn: bool  # the rows are a random choice, so that the first of them are one as well


class Recorder(fx.Interpreter):
    """Runs the original; keeps outputs of the layers that can be fitted, and statistics, by node."""

    def __init__(self, module: fx.GraphModule, layers: Sequence[tuple[Consumer, MomentSource]]) -> None:
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
            operand = bind(n)[source.calls[0][1]]
            shape = places(self.env[operand], source)
            count = math.prod(shape)
            if count * out.shape[source.axis] != out.numel() or len(consumer.coverage) != source.taps:
                return out  # a window of a form that is not followed
            if count < LEAST_ROWS:
                return out
            wanted = max(ROWS, 4 * len(source.columns) // source.groups)
            at = draw(count, wanted, self._generator)
            # Outputs lie along the axis that the inputs had.
            rows = out.movedim(source.axis, -1)[torch.unravel_index(at, shape)]
            picker = Picker(self.env[operand], source, at)
            self.fits[n.name] = _Fit(consumer, source, operand, picker, rows, count > wanted)
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
    """Per channel (axis 1), float64, from sums in the tensor's type."""
    mean, variance = torch.batch_norm_update_stats(x.contiguous(), None, None, 0.0)
    return mean.double(), variance.double()


def changed(surgeon: Surgeon, alive: Alive, replaced: Collection[str] = ()) -> set[fx.Node]:
    """Nodes that may give something else than in the original: something before them was cut or dropped.

    Args:
        replaced: nodes that something else stands for.
    """
    assert surgeon.module is not None
    coupling, handed = surgeon.coupling, surgeon.handed(alive)

    def cut(n: fx.Node) -> bool:
        vectors = [c.vector for c in surgeon.constants.get(n.name, ())]
        if n.op == "get_attr":
            vectors += coupling.parameters.get(coupling.canonical.get(str(n.target), ""), ())
        return any(v is not None and not alive[v].all() for v in vectors)

    found: set[fx.Node] = set()
    for n in surgeon.module.graph.nodes:
        if n.name in handed or n.name in replaced or not found.isdisjoint(n.all_input_nodes) or cut(n):
            found.add(n)
            if n.op == "call_function" and operator_name(n.target)[1]:
                found.add(n.all_input_nodes[0])  # overwritten in place
    return found


class Replacing(Protocol):
    """What stands for calls of the original in one smaller network, by node."""

    @property
    def wanted(self) -> Collection[str]:
        """The nodes."""

    def call(self, node: str, x: torch.Tensor, alive: Alive, made: Mapping[str, Any]) -> torch.Tensor:
        """What it gives in the place of ``node`` for its first operand, or for what a dropped block that ends
        in it hands on; fitted to the original if need be.
        """


class Smaller(fx.Interpreter):
    """Runs the original's graph on sliced parameters, fitting them on the way."""

    def __init__(
        self,
        surgeon: Surgeon,
        alive: Alive,
        made: dict[str, Any],
        original: Recorder,
        ridge: float,
        replacing: Replacing | None = None,
    ) -> None:
        assert surgeon.module is not None
        super().__init__(surgeon.module)
        self._replacing = replacing
        self._surgeon, self._alive, self._made = surgeon, alive, made
        self._original, self._ridge = original, ridge
        self._dead, self._handed = surgeon.dead(alive), surgeon.handed(alive)
        self._named = {n.name: n for n in surgeon.module.graph.nodes} if self._handed else {}
        self._changed = changed(surgeon, alive, () if replacing is None else replacing.wanted)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._made[self._surgeon.coupling.canonical[str(target)]]

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        if n.name not in self._surgeon.constants:
            return super().fetch_args_kwargs_from_env(n)
        args, kwargs = rewrite(n, self._surgeon.constants[n.name], self._alive)
        return self.map_nodes_to_values(args, n), self.map_nodes_to_values(kwargs, n)

    def run_node(self, n: fx.Node) -> Any:
        stands = self._replacing is not None and n.name in self._replacing.wanted
        if n.name in self._handed:
            source, copies = self._handed[n.name]
            value = self.env[self._named[source]]
            if not stands:
                return value.clone() if copies else value
        elif n.name in self._dead:
            return None
        elif stands:
            value = self.env[n.args[0]]  # type: ignore[index]
        if stands:
            assert self._replacing is not None
            return self._replacing.call(n.name, value, self._alive, self._made)
        if n.name in self._original.fits:
            fit = self._original.fits[n.name]
            if fit.operand in self._changed or not self._alive[fit.source.labels].all():
                self._fit(fit, self.env[fit.operand])
        elif n.name in self._original.statistics and n.all_input_nodes[0] in self._changed:
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
        rows = slice(None) if labels is None else torch.from_numpy(np.flatnonzero(alive[labels]))
        columns = int(alive[source.columns].sum()) // source.groups
        if columns > COLUMNS:
            return
        wanted = min(len(fit.outputs), max(ROWS, 4 * columns) if fit.drawn else len(fit.outputs))
        seen = fit.picker(x, wanted)
        weight = self._made[consumer.weight].detach().movedim((consumer.out, consumer.axis), (0, 1))
        bias = consumer.offset[0] if consumer.offset and consumer.offset[1] > 0 else None
        new, constants = [], []
        # Columns run over the taps of a kernel first, over channels last.
        priors = weight.movedim(1, -1).double()
        parts = zip(
            seen.chunk(source.groups, 2),
            fit.outputs[:wanted, rows].chunk(source.groups, 1),
            priors.chunk(source.groups, 0),
            strict=True,
        )
        for x_part, y_part, w in parts:
            fitted, constant = fitted_layer(
                x_part.flatten(1), y_part, w.flatten(1), consumer.offset is not None, self._ridge
            )
            new.append(fitted.view(w.shape))
            constants.append(constant)
        weight.copy_(torch.cat(new).movedim(-1, 1))
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
    each = x.new_full((len(x),), float(intercept) / len(x))
    mx, my = each @ x, each @ y
    if intercept:
        x, y = x - mx, y - my
    second, cross = (x.T @ x).double(), (x.T @ y).double()
    damping = ridge * float(second.diagonal().mean()) + 1e-30
    second.diagonal().add_(damping)
    w = torch.cholesky_solve(cross + damping * prior.T, torch.linalg.cholesky(second)).T
    return w, my.double() - w @ mx.double()


# -- Repair layer by layer on the smaller network's own activations -------------------------------------

RIDGE = 0.03  # of the mean variance of the inputs; pulls towards the weights of the one-step repair
SAMPLES = 256  # in the batch that runs through
ACTIVATION_BYTES = 128 * 2**20  # of the largest activation of that batch; fewer samples where it is larger


class Sequential:
    """Fits the layers of networks cut from one original. Small to send: it recomputes what it can.

    Args:
        inputs: placeholders' values of one batch, in the graph's order.
        ridge: damping, relative to the mean variance of a layer's inputs.
    """

    def __init__(self, inputs: Sequence[Any], *, ridge: float = RIDGE) -> None:
        self.inputs = list(inputs)
        self.ridge = ridge
        self._original: Recorder | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_original": None}

    def mend(
        self, surgeon: Surgeon, alive: Alive, made: dict[str, Any], replacing: Replacing | None = None
    ) -> None:
        """Fit the sliced parameters ``made`` (by canonical name) in place.

        Args:
            replacing: what stands for some calls; it is fitted on the way too.
        """
        if surgeon.module is None:
            raise RuntimeError("this copy of the surgeon holds no captured graph to run")
        if alive.all() and not (replacing is not None and replacing.wanted):
            return
        with torch.no_grad():
            if self._original is None:
                self._original = record(surgeon, fresh(self.inputs))
            small = Smaller(surgeon, alive, made, self._original, self.ridge, replacing)
            small.run(*fresh(self.inputs), enable_io_processing=False)


def sequential(captured: Captured, coupling: Coupling, batches: Sequence[Inputs]) -> Sequential:
    """The repair over as many samples of ``batches`` as memory allows, at most 256."""
    largest = max(
        (math.prod(n for n, _ in axes) / captured.batch for axes in coupling.tensors.values()), default=1.0
    )
    wanted = max(1, min(SAMPLES, int(ACTIVATION_BYTES / (4 * largest))))
    lengths = [batch_length(*b) for b in batches]
    total = sum(n or 0 for n in lengths)
    count = min(wanted, total) if captured.dynamic_batch else captured.batch
    args, kwargs = batches[0]
    if None not in lengths and count:
        # Evenly spaced; a capture of fixed batch length may ask for more than there are, which repeats some.
        rows = torch.arange(count) * max(total, count) // count % total
        args, kwargs = pytree.tree_map(lambda *leaves: _joined(leaves, rows), *batches)
    return Sequential(flat_inputs(captured.graph_module, args, kwargs))


def _joined(leaves: tuple[Any, ...], rows: torch.Tensor) -> Any:
    """Some rows of one input over all batches; what has no batch axis as the first batch has it."""
    if not isinstance(leaves[0], torch.Tensor) or not leaves[0].dim():
        return leaves[0]
    return torch.cat(leaves)[rows]
