"""Repair layer by layer on the smaller network's own activations.

The closed form of :mod:`.fold` takes every layer's inputs for what they were; behind several repaired layers
they no longer are. Here the smaller network runs once over calibration inputs, and every layer on the way is
fitted, by least squares, to give the outputs of the original from the inputs that it now gets (He et al.
2017, arXiv 1707.06168, section 3.2, whole model), with BatchNorm re-estimated as the batch passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from ..capture import Captured, batch_length, flat_inputs
from ..coupling import Coupling
from ..coupling.walk import bind, operator_name
from ..surgery import Alive, Surgeon, rewrite
from .consumers import Consumer, Source, find_consumers
from .gram import Inputs
from .rows import draw, places, take

aten = torch.ops.aten

RIDGE = 1e-2  # of the mean variance of the inputs; pulls towards the weights of the one-step repair
SAMPLES = 256  # in the batch that runs through
ACTIVATION_BYTES = 128 * 2**20  # of the largest activation of that batch; fewer samples where it is larger
COLUMNS = 2560  # of a layer that is fitted; wider ones keep the one-step repair
ROWS = 4096  # samples of a layer, or four a column
FITTED = ("linear", "conv1d", "conv2d", "mm", "addmm", "matmul")


class Sequential:
    """Fits the layers of networks cut from one original. Small to send: it recomputes what it can.

    Args:
        inputs: placeholders' values of one batch, in the graph's order.
        ridge: damping, relative to the mean variance of a layer's inputs.
    """

    def __init__(self, inputs: Sequence[Any], *, ridge: float = RIDGE) -> None:
        self.inputs = list(inputs)
        self.ridge = ridge
        self._fits: dict[str, _Fit] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_fits": None}

    def mend(self, surgeon: Surgeon, alive: Alive, made: dict[str, Any]) -> None:
        """Fit the sliced parameters ``made`` (by canonical name) in place."""
        if surgeon.module is None:
            raise RuntimeError("this copy of the surgeon holds no captured graph to run")
        if alive.all():
            return
        with torch.no_grad():
            if self._fits is None:
                self._fits = _record(surgeon, self.inputs)
            small = _Small(surgeon, alive, made, self._fits, self.ridge)
            small.run(*self.inputs, enable_io_processing=False)


def sequential(captured: Captured, coupling: Coupling, batches: Sequence[Inputs]) -> Sequential:
    """The repair over as many samples of ``batches`` as memory allows, at most 256."""
    largest = max(
        (math.prod(n for n, _ in axes) / captured.batch for axes in coupling.tensors.values()), default=1.0
    )
    wanted = max(1, min(SAMPLES, int(ACTIVATION_BYTES / (4 * largest))))
    args, kwargs = _joined(batches, wanted if captured.dynamic_batch else captured.batch)
    return Sequential(flat_inputs(captured.graph_module, args, kwargs))


def _joined(batches: Sequence[Inputs], samples: int) -> Inputs:
    """``samples`` samples spread over the batches as one batch; the first batch where they do not join."""
    first, spec = pytree.tree_flatten(batches[0])
    columns = list(zip(*(pytree.tree_leaves(b) for b in batches), strict=True))
    lengths = [batch_length(*b) for b in batches]

    def joined(column: tuple[Any, ...]) -> Any:
        if not isinstance(column[0], torch.Tensor) or not column[0].dim():
            return column[0]
        return torch.cat(column)[rows]

    if None not in lengths:
        total = sum(n for n in lengths if n)
        # Evenly spaced; a capture of fixed batch length may ask for more than there are.
        rows = torch.arange(samples) * max(total, samples) // samples % total
        rows = rows[: samples if samples <= total else None]
        try:
            return pytree.tree_unflatten([joined(c) for c in columns], spec)
        except RuntimeError:  # ragged batches
            pass
    return pytree.tree_unflatten(first, spec)


class _Fit:
    """A layer of the original, and what it gave at some places."""

    def __init__(self, consumer: Consumer, source: Source, at: torch.Tensor, outputs: torch.Tensor) -> None:
        self.consumer, self.source = consumer, source
        self.at = at  # [rows] numbers of the places
        self.outputs = outputs  # [rows, outputs] float32


def _record(surgeon: Surgeon, inputs: Sequence[Any]) -> dict[str, _Fit]:
    """Run the original and keep what the layers that can be fitted give, by node."""
    assert surgeon.module is not None
    consumers, sources = find_consumers(surgeon.module.graph, surgeon.coupling)
    recorder = _Recorder(surgeon.module, [(c, sources[c.source]) for c in consumers])
    recorder.run(*inputs, enable_io_processing=False)
    return recorder.fits


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, layers: Sequence[tuple[Consumer, Source]]) -> None:
        super().__init__(module)
        self._of = {}
        for consumer, source in layers:
            # A tensor's layers share the source but not the call.
            for node in module.graph.nodes:
                if node.op == "call_function" and operator_name(node.target)[0] in FITTED:
                    weights = [a for a in node.all_input_nodes if a.op == "get_attr"]
                    del weights
        self.fits: dict[str, _Fit] = {}
