"""A built network as two consecutive modules on the same parameters, without capturing it again.

:mod:`..stages` makes stages that travel: functional, with checked entries, on copies of their own. Here the
captured graph is divided as it is, in a millisecond, where one tensor crosses and no value is shared beside
it; that is what compositions are made of that a search builds by the thousand.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from ....model.captured_module import CapturedModule, assemble
from ....model.coupling.walk import get_attribute, operator_name
from ....model.stages.functional import CutError, base, is_random

aten = torch.ops.aten


class SegmentBoundary:
    """The nodes of a graph up to the last one of given names, and the tensor that crosses from there on.

    Parameters, and what is computed from them alone, belong to both sides; so do numbers that tell the batch
    length, which the far side reads from its own input.

    Args:
        before: names of nodes on the near side; nodes of other names go with those around them.

    Attributes:
        crossing: the node whose value crosses.

    Raises:
        CutError: not exactly one tensor crosses, its first axis is not the batch, or a number crosses that
            cannot be told from it.
    """

    def __init__(self, graph: fx.Graph, before: Collection[str]) -> None:
        self.nodes = list(graph.nodes)
        self.free = free_nodes(self.nodes)
        placed = ((i, n) for i, n in enumerate(self.nodes) if n not in self.free)  # the free stand anywhere
        self.last = max((i for i, n in placed if n.name in before), default=-1)
        self._at = {n: i for i, n in enumerate(self.nodes)}
        near = [n for n in self.nodes[: self.last + 1] if n not in self.free and self._is_needed(n)]
        live = [n for n in near if not _is_number(n)]
        roots = {memory(n, views=False) for n in live}
        if len(roots) != 1:
            names = ", ".join(n.name for n in live[:4]) or "nothing"
            raise CutError(f"{len(roots)} tensors cross there ({names}); there must be one")
        self.aliases = live
        self.crossing = live[-1]
        value = self.crossing.meta.get("val")
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dim() < 2:
            raise CutError(f"{self.crossing.name}, which crosses there, is no tensor of features")
        self.symbol = _symbol(value.shape[0])
        if self.symbol is None:
            raise CutError(f"the first axis of {self.crossing.name}, {list(value.shape)}, is not the batch's")
        self.numbers = {n: self._linear(n) for n in near if _is_number(n)}

    def _is_needed(self, n: fx.Node) -> bool:
        return any(self._at[user] > self.last for user in n.users)

    def _linear(self, n: fx.Node) -> tuple[int, int]:
        """``(k, c)`` of a number k x batch + c."""
        value = n.meta["val"]
        if isinstance(value, int):
            return 0, value
        expression = sympy.expand(value.node.expr)
        k = expression.coeff(self.symbol, 1)
        c = expression - k * self.symbol
        if not (k.is_Integer and c.is_Integer):
            raise CutError(f"the number {n.name} = {expression} crosses there, which the tensor cannot tell")
        return int(k), int(c)


def divide(module: CapturedModule, before: Collection[str]) -> tuple[CapturedModule, CapturedModule]:
    """``module`` as two: ``second(first(*args, **kwargs))`` is what it returns.

    The first is called as the module is, the second takes the tensor that the first returns. Both read the
    module's own parameters, under their names.

    Args:
        before: names of nodes of the first part (see :class:`SegmentBoundary`).

    Raises:
        CutError: they cannot be divided there.
    """
    boundary = SegmentBoundary(module.graph, before)
    info = _info(module.graph)
    first, second = fx.Graph(), fx.Graph()
    made: dict[fx.Node, Any] = {}
    for n in boundary.nodes[: boundary.last + 1]:
        if n not in boundary.free:
            _copy(n, first, made)
    first.output((made[boundary.crossing],))
    structure = pytree.tree_structure(0)
    first.set_codegen(_PyTreeCodeGen(_PyTreeInfo(info.orig_args, info.in_spec, structure)))

    x = second.placeholder(boundary.crossing.name)
    x.meta = dict(boundary.crossing.meta)
    made = dict.fromkeys(boundary.aliases, x)
    batch: fx.Node | None = None
    for n, (k, c) in boundary.numbers.items():
        if k and batch is None:
            batch = second.create_node("call_function", aten.sym_size.int, (x, 0), name="batch_length")
            batch.meta["val"] = boundary.crossing.meta["val"].shape[0]
        made[n] = _number(second, batch, k, c, n)
    held = memory(boundary.crossing)
    if any(writes(n) and memory(n) is held for n in boundary.nodes[boundary.last + 1 :]):
        copied = second.create_node("call_function", aten.clone.default, (x,), name="own_input")
        copied.meta = dict(x.meta)
        made |= dict.fromkeys(boundary.aliases, copied)
    for n in boundary.nodes[boundary.last + 1 :]:
        if n.op == "output":
            second.output(fx.node.map_arg(n.args[0], made.__getitem__))
        elif n not in boundary.free:
            _copy(n, second, made)
    takes = pytree.tree_structure(((x.name,), {}))
    second.set_codegen(_PyTreeCodeGen(_PyTreeInfo([x.name], takes, info.out_spec)))
    return _assembled(module, first), _assembled(module, second)


def free_nodes(nodes: Collection[fx.Node]) -> set[fx.Node]:
    """Parameters and what is computed from these alone, without chance."""
    free: set[fx.Node] = set()
    for n in nodes:
        reads = n.all_input_nodes
        computed = n.op == "call_function" and reads and not is_random(n) and free.issuperset(reads)
        if n.op == "get_attr" or (computed and not writes(n)):
            free.add(n)
    return free


def memory(n: fx.Node, *, views: bool = True) -> fx.Node:
    """The node that made the memory in which the value of ``n`` lies.

    Args:
        views: follow views too; else only calls in place.
    """
    while True:
        below = n.args[0] if writes(n) and n.args else base(n) if views else None
        if not isinstance(below, fx.Node):
            return n
        n = below


def writes(n: fx.Node) -> bool:
    """Is it a call in place?"""
    return n.op == "call_function" and hasattr(n.target, "_schema") and operator_name(n.target)[1]


def _is_number(n: fx.Node) -> bool:
    return isinstance(n.meta.get("val"), (int, torch.SymInt))


def _symbol(length: Any) -> sympy.Symbol | None:
    expression = length.node.expr if isinstance(length, torch.SymInt) else None
    return expression if isinstance(expression, sympy.Symbol) else None


def _info(graph: fx.Graph) -> _PyTreeInfo:
    codegen = graph._codegen
    assert isinstance(codegen, _PyTreeCodeGen)
    return codegen.pytree_info


def _copy(n: fx.Node, graph: fx.Graph, made: dict[fx.Node, Any]) -> Any:
    """The node in ``graph``, with the free ones that it reads."""
    if n not in made:
        for i in n.all_input_nodes:
            _copy(i, graph, made)
        made[n] = graph.node_copy(n, made.__getitem__)
    return made[n]


def _number(graph: fx.Graph, batch: fx.Node | None, k: int, c: int, n: fx.Node) -> Any:
    if k == 0:
        return c
    value: Any = batch
    for function, amount, neutral in ((operator.mul, k, 1), (operator.add, c, 0)):
        if amount != neutral:
            value = graph.create_node("call_function", function, (value, amount), name=f"{n.name}_again")
            value.meta["val"] = n.meta["val"]
    return value


def _assembled(module: CapturedModule, graph: fx.Graph) -> CapturedModule:
    """The module of one part, with the unread state of the layers that it reads (counters, say)."""
    read = [str(n.target) for n in graph.nodes if n.op == "get_attr"]
    layers = {name.rpartition(".")[0] for name in read}
    first = next(iter(graph.nodes))
    for n in module.graph.nodes:
        target = str(n.target)
        if n.op == "get_attr" and not n.users and target not in read and target.rpartition(".")[0] in layers:
            with graph.inserting_before(first):
                graph.create_node("get_attr", target)
            read.append(target)
    graph.lint()
    attributes = {target: get_attribute(module, target) for target in (*read, *_called(graph))}
    return assemble(graph, attributes)


def _called(graph: fx.Graph) -> Iterator[str]:
    return (str(n.target) for n in graph.nodes if n.op == "call_module")
