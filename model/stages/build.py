"""Stages as independent modules, what they take and give, and the check that together they are the whole."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from ..capture import Captured, fresh, state_kept, tensors_of
from ..captured_module import CapturedModule, assemble
from .cuts import Cut, Order
from .functional import CutError, Functional, functionalise

Sizes = tuple[tuple[int, int], ...]  # per axis (k, c): its length is k x batch + c


@dataclass(frozen=True)
class Port:
    """One tensor on its way into or out of a stage."""

    name: str  # the call of the functional graph that makes it, or the caller's input
    dtype: torch.dtype
    sizes: Sizes

    def shape(self, batch: int) -> tuple[int, ...]:
        return tuple(k * batch + c for k, c in self.sizes)

    def bytes(self, batch: int) -> int:
        """Of the dense tensor."""
        return math.prod(self.shape(batch)) * self.dtype.itemsize

    def __str__(self) -> str:
        return _described(self.sizes, self.dtype)


@fx.has_side_effect
def check_entry(
    stage: str,
    values: tuple[Any, ...],
    expected: tuple[tuple[Any, ...], ...],
    batches: tuple[int, int | None],
) -> None:
    """Refuse what a stage was not made for: its part of the guards of the capture.

    Args:
        stage: its name, for the message.
        values: what came in.
        expected: for each a tuple (name, dtype, sizes) of a tensor, or (name, value) of a constant.
        batches: least and most samples.

    Raises:
        ValueError: another rank, size, type or constant; tensors that disagree on the number of samples.
    """
    batch, told_by = None, ""
    for value, (name, *rest) in zip(values, expected, strict=True):
        if len(rest) == 1:
            if type(value) is not type(rest[0]) or value != rest[0]:
                raise ValueError(
                    f"{stage}: {name} is {value!r:.80}, but the network was captured with {rest[0]!r:.80}; "
                    "capture it again for another value"
                )
            continue
        dtype, sizes = rest
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{stage}: {name} must be a tensor {_described(sizes, dtype)}, got {type(value).__name__}"
            )
        if value.dim() != len(sizes) or value.dtype != dtype or not _fits(value, sizes):
            raise ValueError(
                f"{stage}: {name} is {_described(value.shape, value.dtype)}, "
                f"but it takes {_described(sizes, dtype)}; give it what the stage before returns, "
                "and the first stage inputs of the captured size and type"
            )
        for length, (k, c) in zip(value.shape, sizes, strict=True):
            if k == 0:
                continue
            samples = (length - c) // k if k > 1 else length - c
            if batch is None:
                batch, told_by = samples, name
            elif samples != batch:
                raise ValueError(
                    f"{stage}: {name} holds {samples} samples, but {told_by} holds {batch}; "
                    "all inputs must come from the same batch"
                )
    least, most = batches
    if batch is not None and (batch < least or (most is not None and batch > most)):
        raise ValueError(
            f"{stage}: {told_by} holds {batch} samples, but it takes {least} to {most or 'any number'}"
        )


def _fits(value: torch.Tensor, sizes: Sizes) -> bool:
    for length, (k, c) in zip(value.shape, sizes, strict=True):
        if (k == 0 and length != c) or (k > 1 and (length - c) % k != 0):
            return False
    return True


def _described(sizes: Iterable[Any], dtype: torch.dtype) -> str:
    lengths = [s if isinstance(s, (int, torch.SymInt)) else _length(*s) for s in sizes]
    return f"[{', '.join(map(str, lengths))}] {str(dtype).removeprefix('torch.')}"


def _length(k: int, c: int) -> str:
    if k == 0:
        return str(c)
    return ("batch" if k == 1 else f"{k} x batch") + (f" + {c}" if c > 0 else f" - {-c}" if c < 0 else "")


# -- Stages as independent modules, and the check that together they are the whole ----------------------

aten = torch.ops.aten


@dataclass(frozen=True)
class Stage:
    """One of several consecutive parts of a network.

    The module of the first stage is called as the user's model is, all others with what the one before
    returns, ``module(*tensors)``. All but the last return a tuple of tensors, the last one what the user's
    model returns. Every stage checks what it is given (see :func:`check_entry`).
    """

    name: str  # the modules after which it begins and ends: "layer1..layer3"
    module: CapturedModule  # eval mode, on its own copies of the parameters that it reads, under their names
    inputs: tuple[Port, ...]  # tensors, in order; of the first stage, the caller's, flat
    outputs: tuple[Port, ...]  # tensors, in order; of the last stage, those in the structure it returns


def split(network: Captured | Functional, cuts: Sequence[Cut | int], *, check: bool = True) -> list[Stage]:
    """A network as ``len(cuts) + 1`` consecutive stages.

    Args:
        cuts: of :func:`find_cuts`, or their indices; none gives one stage, the whole.
        check: run stages and whole on the example and, where the batch axis is free, on one more sample,
            and compare (see :func:`verify`).

    Raises:
        CutError: the model has state between calls; a cut is not legal or given twice; the check failed.
    """
    network = network if isinstance(network, Functional) else functionalise(network)
    order = Order(network)
    indices = sorted(c.index if isinstance(c, Cut) else c for c in cuts)
    if len(set(indices)) < len(indices):
        raise CutError(f"a cut is given twice: {indices}; every stage needs a call of its own")
    sent: list[list[fx.Node]] = []
    for i in indices:
        crossing = order.crossing(i) if 0 <= i < len(order.calls) - 1 else None
        if crossing is None:
            raise CutError(f"no legal cut has index {i}; find_cuts lists those of this network")
        sent.append(crossing)
    names = {c.index: c.name for c in cuts if isinstance(c, Cut)}
    marks = ["input", *(names.get(i, order.calls[i].name) for i in indices), "output"]
    ends = [-1, *indices, len(order.calls) - 1]
    stages = []
    for k in range(len(ends) - 1):
        builder = _Builder(order, f"{marks[k]}..{marks[k + 1]}", sent[k - 1] if k else None)
        builder.run(order.calls[ends[k] + 1 : ends[k + 1] + 1])
        stages.append(builder.finish(sent[k] if k < len(sent) else None))
    if check:
        verify(network.captured, stages)
    return stages


def run_stages(stages: Sequence[Stage], *args: Any, **kwargs: Any) -> Any:
    """What the whole network returns, by one stage after the other; tensors are handed on as they are."""
    out = stages[0].module(*args, **kwargs)
    for stage in stages[1:]:
        out = stage.module(*out)
    return out


def verify(captured: Captured, stages: Sequence[Stage]) -> float:
    """Largest difference between stages and whole, in eval mode, relative to the largest output (at least 1).

    On the example, and on one more sample where the batch axis is free. Tensors between stages are sent in
    dense form, as a wire would.

    Raises:
        CutError: they differ by more than 8 units of the last place of the type, about 1e-6 for float32.
    """
    batches = [(captured.args, captured.kwargs)]
    if captured.dynamic_batch:
        batches.append(pytree.tree_map(_one_more, batches[0]))
    worst = 0.0
    for args, kwargs in batches:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), state_kept(captured.graph_module):
            torch.manual_seed(0)
            whole = captured.graph_module(*fresh(args), **fresh(kwargs))
            torch.manual_seed(0)
            out = stages[0].module(*fresh(args), **fresh(kwargs))
            for stage in stages[1:]:
                out = stage.module(*(t.clone(memory_format=torch.contiguous_format) for t in out))
        if pytree.tree_structure(out) != pytree.tree_structure(whole):
            raise CutError("the stages return another structure than the whole; please report this model")
        for got, want in zip(tensors_of(out), tensors_of(whole), strict=True):
            if got.dtype != want.dtype or got.shape != want.shape:
                raise CutError(
                    f"the stages return {list(got.shape)} {got.dtype}, "
                    f"the whole {list(want.shape)} {want.dtype}; please report this model"
                )
            inexact = want.is_floating_point() or want.is_complex()
            allowed = 8 * torch.finfo(want.dtype).eps if inexact else 0.0
            wide = torch.complex128 if want.is_complex() else torch.float64
            gap = _gap(got.to(wide), want.to(wide))
            worst = max(worst, gap)
            if not gap <= allowed:
                raise CutError(
                    f"the stages differ from the whole by {gap:.1e}, more than {allowed:.1e}: "
                    "its result depends on more than its inputs (memory layout, random values)"
                )
    return worst


class _Builder:
    """Copies consecutive calls into the graph of one stage."""

    def __init__(self, order: Order, name: str, received: list[fx.Node] | None) -> None:
        self._order = order
        self._network = order.network
        self._name = name
        self._first = received is None
        self._received = list(self._network.inputs) if received is None else received
        self._graph = fx.Graph()
        copied = self._graph.node_copy if self._first else self._placeholder
        self._made = {n: copied(n) for n in self._received}
        self._batch: fx.Node | int | None = None
        self._inputs = dict(self._made)
        values = tuple(self._inputs.values())
        self._graph.call_function(check_entry, (name, values, self._expected(), self._network.batches))
        if not self._first:
            self._made = {n: self._laid_out(n, made) for n, made in self._made.items()}

    def run(self, calls: Sequence[fx.Node]) -> None:
        for n in calls:
            if not self._order.is_view(n):  # views are made where they are read
                self._get(n)

    def finish(self, sent: list[fx.Node] | None) -> Stage:
        """The stage that sends these tensors; ``None``: returns what the network does."""
        network = self._network
        codegen = network.captured.graph_module.graph._codegen
        assert isinstance(codegen, _PyTreeCodeGen)
        info = codegen.pytree_info
        (result,) = next(n for n in network.graph.nodes if n.op == "output").args
        assert isinstance(result, tuple)
        given = result if sent is None else tuple(sent)
        self._graph.output(fx.node.map_arg(given, self._get))
        names = [str(n.target) for n in self._inputs.values()]
        takes = pytree.tree_structure((tuple(names), {}))
        gives = pytree.tree_structure(tuple(range(len(given))))
        self._graph.set_codegen(
            _PyTreeCodeGen(
                _PyTreeInfo(
                    info.orig_args if self._first else names,
                    info.in_spec if self._first else takes,
                    info.out_spec if sent is None else gives,
                )
            )
        )
        tensors = [n for n in given if isinstance(n, fx.Node) and self._is_tensor(n)]
        module = assemble(self._graph, self._state())
        return Stage(
            self._name,
            module,
            tuple(self._port(n) for n in self._received if self._is_tensor(n)),
            tuple(self._port(n) for n in tensors),
        )

    def _get(self, n: fx.Node) -> fx.Node | int:
        """The value of a node of the network, in this stage: its own call, or a recomputed one."""
        if n in self._order.sizes:
            return self._size(*self._order.sizes[n])
        if n not in self._made:
            made = self._graph.node_copy(n, self._get)
            self._made[n] = made
        return self._made[n]

    def _size(self, k: int, c: int) -> fx.Node | int:
        """k x batch + c, of the tensors that this stage is given."""
        if k == 0:
            return c
        if self._batch is None:
            self._batch = self._samples()
        value = self._batch if k == 1 else self._graph.call_function(operator.mul, (self._batch, k))
        return self._graph.call_function(operator.add, (value, c)) if c else value

    def _samples(self) -> fx.Node:
        axes = [
            (size, n, axis)
            for n in self._received
            if self._is_tensor(n)
            for axis, size in enumerate(self._network.size(s) for s in n.meta["val"].shape)
            if size is not None and size[0] > 0
        ]
        (k, c), source, axis = min(axes, key=lambda a: a[0])
        value = self._graph.call_function(aten.sym_size.int, (self._inputs[source], axis))
        if c:
            value = self._graph.call_function(operator.sub, (value, c))
        return value if k == 1 else self._graph.call_function(operator.floordiv, (value, k))

    def _placeholder(self, n: fx.Node) -> fx.Node:
        made = self._graph.placeholder(n.name)
        made.meta = dict(n.meta)
        return made

    def _laid_out(self, n: fx.Node, made: fx.Node) -> fx.Node:
        """The value, its axes in memory as in the whole (channels last, say): kernels round accordingly."""
        strides = [self._network.size(s) for s in n.meta["val"].stride()]
        if any(s is None or s == (0, 0) for s in strides):
            return made
        at_seven = [7 * s[0] + s[1] for s in strides if s is not None]  # any batch length gives the order
        order = sorted(range(len(strides)), key=lambda axis: -at_seven[axis])
        if order == list(range(len(order))):
            return made
        value = self._graph.call_function(aten.permute.default, (made, order))
        value = self._graph.call_function(aten.contiguous.default, (value,))
        back = [order.index(axis) for axis in range(len(order))]
        return self._graph.call_function(aten.permute.default, (value, back))

    def _expected(self) -> tuple[tuple[Any, ...], ...]:
        ports = ((n, self._port(n)) if self._is_tensor(n) else (n, None) for n in self._received)
        return tuple(
            (n.name, n.meta.get("val")) if port is None else (port.name, port.dtype, port.sizes)
            for n, port in ports
        )

    def _port(self, n: fx.Node) -> Port:
        value = n.meta["val"]
        sizes = [self._network.size(s) for s in value.shape]
        if any(s is None for s in sizes):
            raise CutError(f"{n.name} has a size that the data decide, {list(value.shape)}: not for stages")
        return Port(n.name, value.dtype, tuple(s for s in sizes if s is not None))

    def _is_tensor(self, n: fx.Node) -> bool:
        return isinstance(n.meta.get("val"), torch.Tensor)

    def _state(self) -> dict[str, Any]:
        """Copies of what the graph reads, and of what goes with it, by name; tied ones stay tied."""
        network, whole = self._network, self._network.captured.program.state_dict
        read = list(dict.fromkeys(str(n.target) for n in self._graph.nodes if n.op == "get_attr"))
        held = {name: network.state[name] for name in read}
        first = next(iter(self._graph.nodes))
        for name in read:
            for other in network.names.get(name, ()):
                if other not in held:
                    held[other] = whole[other]
                    with self._graph.inserting_before(first):
                        self._graph.create_node("get_attr", other)  # a module keeps what its graph reads
        copies: dict[int, Any] = {}
        return {name: copies.setdefault(id(value), _own(value)) for name, value in held.items()}


def _own(value: object) -> Any:
    if isinstance(value, nn.Parameter):
        return nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad)
    return value.detach().clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)


def _one_more(leaf: object) -> Any:
    return torch.cat([leaf, leaf[:1]]) if isinstance(leaf, torch.Tensor) and leaf.dim() else leaf


def _gap(got: torch.Tensor, want: torch.Tensor) -> float:
    if torch.equal(got, want) or not want.numel():
        return 0.0
    finite = want.abs()[want.isfinite()]
    scale = max(1.0, float(finite.max())) if finite.numel() else 1.0
    same = (got == want) | (got.isnan() & want.isnan())
    return float((got - want).abs().masked_fill(same, 0).nan_to_num(nan=float("inf")).max()) / scale
