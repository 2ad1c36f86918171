"""Repair layer by layer on the smaller network's own activations.

The closed form of :mod:`.fold` takes every layer's inputs for what they were; behind several repaired layers
they no longer are. Here the smaller network runs once over calibration inputs, and every layer on the way is
fitted, by least squares, to give the outputs of the original from the inputs that it now gets (He et al.
2017, arXiv 1707.06168, section 3.2, whole model). Running statistics of BatchNorm move as those of the batch
do, from the original to the smaller network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..capture import Captured, batch_length, flat_inputs, fresh
from ..coupling import Coupling
from ..surgery import Alive, Surgeon
from .fitting import Recorder, Smaller, record
from .gram import Inputs

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

    def mend(self, surgeon: Surgeon, alive: Alive, made: dict[str, Any]) -> None:
        """Fit the sliced parameters ``made`` (by canonical name) in place."""
        if surgeon.module is None:
            raise RuntimeError("this copy of the surgeon holds no captured graph to run")
        if alive.all():
            return
        with torch.no_grad():
            if self._original is None:
                self._original = record(surgeon, fresh(self.inputs))
            small = Smaller(surgeon, alive, made, self._original, self.ridge)
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
