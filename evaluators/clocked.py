"""A network whose calls are timed where they run, one after the other, as in a stage."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from ..spaces.capture import flat_inputs
from ..spaces.costing.liveness import constants
from ..spaces.devices.operators import moved_bytes, operator_of
from ..spaces.stages import Functional, split
from ..spaces.stages.cuts import Order
from ..spaces.stages.work import macs
from .batches import Inputs, resize
from .latency import thread_ns

LONG_NS = 100_000  # a call for which the dearer clock, half a microsecond to read, is worth it


@dataclass(frozen=True)
class Call:
    """One call of a functional graph and its work for one sample."""

    name: str
    operator: str
    macs: float
    moved: float  # bytes of all tensors that it reads and writes; 0: a view, made for nothing


def calls_of(network: Functional) -> list[Call]:
    """The calls that belong to a side of a cut, in their order (see :class:`Order`)."""
    work, samples, order = macs(network), network.captured.batch, Order(network)
    constant = constants(network.graph)

    def moved(n: fx.Node) -> float:
        return 0.0 if order.is_view(n) else moved_bytes(n, samples, constant)

    return [Call(n.name, operator_of(n), work.get(n.name, 0.0), moved(n)) for n in order.calls]


class Clocked:
    """The network as one stage, with the clock read after every call.

    So a call is timed with the caches as the calls before leave them, and with all that its line does beside
    it: looking up its weights, freeing what is no longer needed. The times add up to that of the whole.

    Args:
        batch: samples of one call; of no effect where the batch axis is fixed.
    """

    def __init__(self, network: Functional, *, batch: int = 1) -> None:
        self.calls = calls_of(network)
        (stage,) = split(network, [], check=False)
        captured = network.captured
        self.samples = batch if captured.dynamic_batch else captured.batch  # of one call
        self.inputs: Inputs = captured.args, captured.kwargs
        if captured.dynamic_batch:
            self.inputs = resize(self.inputs, batch)
        self._flat = flat_inputs(captured.graph_module, *self.inputs)
        self._stage = stage
        self._now = self._clock()
        graph = fx.Graph()
        graph.graph_copy(stage.module.graph, {})
        known = {call.name: i for i, call in enumerate(self.calls) if call.moved}
        marks: list[fx.Node] = []
        self._of: list[int | None] = []  # for each mark the call before it; None: a helper or a view
        for node in list(graph.nodes):
            if node.op == "call_function":
                with graph.inserting_after(node):
                    marks.append(graph.call_function(self._now))
                self._of.append(known.get(node.name))
        graph.output(tuple(marks))
        self._module = fx.GraphModule(stage.module, graph)

    @torch.inference_mode()
    def _clock(self) -> Callable[[], int]:
        """The time that this thread computed where calls are long, so that others' work does not count."""
        self.whole()
        start = thread_ns()
        self.whole()
        mean = (thread_ns() - start) / max(len(self.calls), 1)
        return thread_ns if mean > LONG_NS else time.perf_counter_ns

    def whole(self) -> Any:
        """The network as it is, without clocks."""
        args, kwargs = self.inputs
        return self._stage.module(*args, **kwargs)

    def run(self) -> np.ndarray:
        """float64 [calls]: milliseconds of each call, for one sample; to be called within inference mode.

        What a helper or a view takes counts for the call that it prepares.
        """
        laps = np.diff([self._now(), *self._module(*self._flat)])
        out, waiting = np.zeros(len(self.calls)), 0
        for call, lap in zip(self._of[1:], laps[1:].tolist(), strict=True):  # the first checks the entry
            waiting += lap
            if call is not None:
                out[call] += waiting
                waiting = 0
        return out / 1e6 / self.samples
