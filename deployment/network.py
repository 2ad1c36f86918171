"""A network as partitioners see it: its calls with what each takes here, and where it may be cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import fx, nn

from ..devices import Device
from ..evaluators.batches import Inputs, resize
from ..evaluators.profiling import Clocked
from ..evaluators.stage_timing import stopwatch, taking_turns
from ..model.capture import Example, capture
from ..model.stages import Cut, CutError, Functional, Stage, find_cuts, functionalise, split
from ..model.stages.cuts import Order
from ..model.stages.functional import modules
from .partitioners import Graph, Node, Tensor


@dataclass(frozen=True, slots=True)
class CostedCall:
    """One call of the functional graph that belongs to a side of a cut; figures are for one batch."""

    name: str
    operator: str  # under which a profile holds it, "conv2d 3x3/1 56x56"
    modules: tuple[str, ...]  # that it lies in, outermost first
    macs: float
    moved: float  # bytes read and written; 0 for a view
    weights: float  # bytes of parameters and buffers that it reads
    alive: float  # bytes of activations in memory while it runs
    ms: float  # on this machine, one thread


class Network:
    """A captured model, measured.

    Args:
        functional: of :func:`model.stages.functionalise`.
        batch: samples of an input; of no effect where the batch axis is fixed.
        seconds: about how long to measure its calls.
        known: these calls by name, where they have been measured.

    Attributes:
        cuts: all legal ones, in order.
        calls: in order.
        inputs: the example at that batch, ``(args, kwargs)``.
        input_bytes: of all inputs together.
    """

    def __init__(
        self,
        functional: Functional,
        *,
        batch: int = 1,
        seconds: float = 1.0,
        known: Mapping[str, CostedCall] | None = None,
    ) -> None:
        captured = functional.captured
        if batch < 1:
            raise ValueError(f"a batch has at least one sample, got {batch}")
        self.functional = functional
        self.order = Order(functional)
        self.batch = batch if captured.dynamic_batch else captured.batch
        self.inputs: Inputs = (captured.args, captured.kwargs)
        if captured.dynamic_batch:
            self.inputs = resize(self.inputs, batch)
        self.cuts = find_cuts(functional)
        self.input_bytes = sum(self._bytes(n) for n in functional.inputs if n in self.order.last)
        self.calls = [known[n.name] for n in self.order.calls] if known else self._calls(seconds)

    @property
    def name(self) -> str:
        return type(self.functional.captured.source).__name__

    @cached_property
    def ms(self) -> np.ndarray:
        """float64 [calls]."""
        return np.array([call.ms for call in self.calls])

    @cached_property
    def macs(self) -> np.ndarray:
        """float64 [calls]."""
        return np.array([call.macs for call in self.calls])

    def milliseconds(self, device: Device) -> np.ndarray:
        """float64 [calls]: on a device; modelled where it has a profile, else in proportion to those here."""
        if device.profile is None:
            return self.ms / device.speed
        figures = np.array([[call.macs, call.moved] for call in self.calls]) / self.batch
        names = [call.operator for call in self.calls]
        each = device.profile.milliseconds(names, figures[None, :, 0], figures[None, :, 1])[0]
        return each * self.batch / device.speed

    def chain(self, cuts: Sequence[Cut], *, input_bytes: float | None = None) -> Graph:
        """What lies between neighbouring cuts as nodes, named after the cut behind; the last is "output".

        Args:
            input_bytes: of a batch of inputs on the wire, where they are sent; None: of the tensors.
        """
        ends = [*(cut.index + 1 for cut in cuts), len(self.calls)]
        names = [*(cut.name for cut in cuts), "output"]
        nodes = []
        for name, begin, end in zip(names, [0, *ends], ends, strict=False):
            calls = self.calls[begin:end]
            nodes.append(
                Node(
                    name,
                    float(self.ms[begin:end].sum()),
                    sum(call.weights for call in calls),
                    max(call.alive for call in calls),
                )
            )
        size = self.input_bytes if input_bytes is None else input_bytes
        tensors = [Tensor("input", size, None, (names[0],))]
        for cut, one, other in zip(cuts, names, names[1:], strict=False):
            tensors.append(Tensor(one, cut.bytes * self.batch, one, (other,)))
        return Graph(tuple(nodes), tuple(tensors))

    @cached_property
    def groups(self) -> list[list[int]]:
        """Positions of the calls of each node of :attr:`dag`: single ones, but for what must not be cut."""
        order, last = self.order, len(self.calls) - 1
        together = [(0, order.last_strided)] if order.last_strided > 0 else []
        for n, at in order.at.items():
            if order.bytes(n) is None and n in order.last:
                together.append((max(at, 0), min(order.last[n], last)))
        groups: list[list[int]] = []
        end = -1
        for i in range(len(self.calls)):
            if i <= end:
                groups[-1].append(i)
            else:
                groups.append([i])
            end = max(end, *(b for a, b in together if a == i), -1)
        return groups

    @cached_property
    def dag(self) -> Graph:
        """Every call as a node (views are nodes without work), every value as a tensor.

        Any placement of it in which tensors only go forward is a row of stages in some order of the calls;
        see :meth:`reordered`.
        """
        order, node_of = self.order, {}
        nodes = []
        for group in self.groups:
            calls = [self.calls[i] for i in group]
            name = calls[-1].name
            node_of.update(dict.fromkeys(group, name))
            nodes.append(
                Node(
                    name,
                    sum(call.ms for call in calls),
                    sum(call.weights for call in calls),
                    max(call.alive for call in calls),
                )
            )
        tensors = []
        for n, at in order.at.items():
            made_in = node_of.get(at)
            readers = (node_of[order.at[user]] for user in n.users if user in order.at)
            targets = tuple(t for t in dict.fromkeys(readers) if t != made_in)
            if targets and order.bytes(n) is not None:
                tensors.append(Tensor(n.name, self._bytes(n), made_in, targets))
        return Graph(tuple(nodes), tuple(tensors))

    def crossing_bytes(self, index: int) -> float:
        """Of a batch, of what a cut after a call would send, also where it must not be; -1: the inputs."""
        if index < 0:
            return self.input_bytes
        order = self.order
        if index == len(self.calls) - 1:
            returned = next(n for n in self.functional.graph.nodes if n.op == "output").all_input_nodes
            return sum(self._bytes(n) for n in returned)
        sent = order.crossing(index)
        if sent is None:
            sent = [
                n
                for n, at in order.at.items()
                if at <= index < order.last.get(n, -1) and not order.is_view(n)
            ]
        return sum(self._bytes(n) for n in sent)

    def dag_with(self, input_bytes: float | None) -> Graph:
        """:attr:`dag` with inputs that weigh so many bytes together on the wire; None: as tensors."""
        if input_bytes is None or not self.input_bytes:
            return self.dag
        scale = input_bytes / self.input_bytes
        tensors = (t if t.source else replace(t, bytes=t.bytes * scale) for t in self.dag.tensors)
        return Graph(self.dag.nodes, tuple(tensors))

    def corrected(self, ends: Sequence[int], ms: np.ndarray) -> Network:
        """The same network, the calls of every stage scaled to the stage's measured time.

        Args:
            ends: calls up to the end of each stage.
            ms: float64 [stages].
        """
        other = copy(self)
        calls = []
        for begin, end, measured in zip([0, *ends], ends, ms.tolist(), strict=False):
            scale = measured / max(float(self.ms[begin:end].sum()), 1e-9)
            calls += [replace(call, ms=call.ms * scale) for call in self.calls[begin:end]]
        other.calls = calls
        for cached in ("ms", "dag"):
            other.__dict__.pop(cached, None)
        return other

    def reordered(self, parts: Sequence[int]) -> tuple[Network, list[Cut]]:
        """The network with its calls in the order of their parts, and the cuts between these.

        Args:
            parts: of the nodes of :meth:`dag`; tensors only go to the same or later parts.

        Raises:
            CutError: there is no legal cut between two of the parts.
        """
        part_of = {i: part for group, part in zip(self.groups, parts, strict=True) for i in group}
        if [part_of[i] for i in range(len(self.calls))] == sorted(part_of.values()):
            other = self
        else:
            other = _in_order(self, sorted(part_of, key=lambda i: (part_of[i], i)))
        sizes = np.bincount(list(part_of.values()))
        ends = np.cumsum(sizes[sizes > 0])[:-1] - 1
        chosen = []
        for end in ends.tolist():
            sent = other.order.crossing(end)
            names = None if sent is None else tuple(n.name for n in sent)
            # Of neighbours that send the same, the last is listed.
            found = [c for c in other.cuts if c.index >= end and c.tensors == names]
            if not found:
                raise CutError(f"there is no legal cut after {other.calls[end].name}")
            chosen.append(found[0])
        return other, chosen

    def stages(self, cuts: Sequence[Cut], *, check: bool = True) -> list[Stage]:
        """The stages between the cuts, as modules; ``check``: compared with the whole."""
        return split(self.functional, cuts, check=check)

    def _calls(self, seconds: float) -> list[CostedCall]:
        clocked = Clocked(self.functional, batch=self.batch)
        ms, whole = taking_turns([clocked.run, stopwatch(clocked.whole)], seconds=seconds)
        ms = ms / max(ms.sum(), 1e-9) * float(whole)  # without the clock between the calls
        alive = self._alive()
        calls = []
        for at, (n, call) in enumerate(zip(self.order.calls, clocked.calls, strict=True)):
            calls.append(
                CostedCall(
                    n.name,
                    call.operator,
                    modules(n),
                    call.macs * self.batch,
                    call.moved * self.batch,
                    self._weights(n),
                    float(alive[at]),
                    float(ms[at]),
                )
            )
        return calls

    def _bytes(self, n: fx.Node) -> float:
        """Of a batch; 0 for what is no tensor of known size."""
        return (self.order.bytes(n) or 0.0) * self.batch

    def _weights(self, n: fx.Node) -> float:
        """Bytes of all state that a call reads, also through values made of it alone."""
        found, open_nodes = set(), [i for i in n.all_input_nodes if i in self.order.free]
        while open_nodes:
            i = open_nodes.pop()
            if i.op == "get_attr":
                found.add(str(i.target))
            open_nodes += i.all_input_nodes
        held = (self.functional.state[name] for name in found)
        return float(sum(t.numel() * t.element_size() for t in held if isinstance(t, torch.Tensor)))

    def _alive(self) -> np.ndarray:
        """float64 [calls]: bytes of inputs and results in memory while each runs; views take none."""
        order, change = self.order, np.zeros(len(self.order.calls) + 1)
        needed = {n: order.last.get(n, at) for n, at in order.at.items()}
        for n in reversed(list(order.at)):
            if order.is_view(n):
                root = n.args[0]
                needed[root] = max(needed[root], needed[n])  # type: ignore[index]
        for n, at in order.at.items():
            if not order.is_view(n):
                change[max(at, 0)] += self._bytes(n)
                change[min(needed[n], len(order.calls) - 1) + 1] -= self._bytes(n)
        return np.cumsum(change)[:-1]


def read_network(model: nn.Module, example: Example, *, batch: int = 1, seconds: float = 1.0) -> Network:
    """Capture and measure a model.

    Raises:
        CaptureError: it cannot be captured.
        CutError: it keeps state between calls.
    """
    return Network(functionalise(capture(model, example)), batch=batch, seconds=seconds)


def _in_order(network: Network, positions: Sequence[int]) -> Network:
    """The same network with its calls in another topological order."""
    functional, graph = network.functional, fx.Graph()
    made = {n: graph.node_copy(n) for n in functional.inputs}

    def emit(n: fx.Node) -> fx.Node:
        if n not in made:  # sizes and what is made of parameters come before their first reader
            for i in n.all_input_nodes:
                emit(i)
            made[n] = graph.node_copy(n, made.__getitem__)
        return made[n]

    for position in positions:
        emit(network.order.calls[position])
    emit(next(n for n in functional.graph.nodes if n.op == "output"))
    inputs = tuple(made[n] for n in functional.inputs)
    known = {call.name: call for call in network.calls}
    return Network(replace(functional, graph=graph, inputs=inputs), batch=network.batch, known=known)
