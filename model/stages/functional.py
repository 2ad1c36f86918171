"""A captured graph without any writing in place: what may be cut anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx
from torch.export.graph_signature import InputKind, OutputKind

from ..capture import Captured, quiet
from ..coupling.walk import operator_name
from ..recurrent_shapes import recurrent_shapes

aten = torch.ops.aten

_DROPOUTS = frozenset(["dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"])
_STATE = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR, InputKind.CUSTOM_OBJ)
# The guards that a capture with one free axis has: sizes of inputs are equal. Entries of stages check these.
_EQUAL_SIZES = re.compile(r"^L\S+\.size\(\)\[\d+\] == (L\S+\.size\(\)\[\d+\]|\d+)$")


class CutError(ValueError):
    """The network cannot be cut, or not there; the message says why and what to do."""


@dataclass(frozen=True)
class Functional:
    """A network as calls that change nothing, in an order in which they may run.

    ``graph`` reads state by ``get_attr`` and returns a flat tuple. Batch-norm and dropout calls are as the
    user's model has them, so that train flags can be switched.
    """

    graph: fx.Graph
    state: dict[str, Any]  # what the graph reads, by dotted name
    names: dict[str, tuple[str, ...]]  # state -> what goes with it: tied names, tensors that no call reads
    inputs: tuple[fx.Node, ...]  # the caller's inputs, flat
    captured: Captured
    batch: sympy.Symbol | None  # None: the batch axis is fixed
    batches: tuple[int, int | None]  # lengths that the batch axis may have, least and most

    def size(self, length: object) -> tuple[int, int] | None:
        """``(k, c)`` of an axis of length k x batch + c; ``None`` where it is no such axis."""
        if isinstance(length, int):
            return 0, length
        if self.batch is None or not isinstance(length, torch.SymInt):
            return None
        expression = sympy.expand(length.node.expr)
        k = expression.coeff(self.batch, 1)
        c = expression - k * self.batch
        return (int(k), int(c)) if k.is_Integer and c.is_Integer else None


def functionalise(captured: Captured) -> Functional:
    """The captured program with writing in place replaced by new values.

    An input that the model overwrites stays as the caller gave it.

    Raises:
        CutError: the model keeps state between calls, or has effects whose order matters.
    """
    with _dropouts_kept(captured.program) as dropouts, quiet(), recurrent_shapes(), torch.no_grad():
        program = captured.program.run_decompositions({})
    signature = program.graph_signature
    if signature.buffers_to_mutate:
        changed = ", ".join(sorted(set(signature.buffers_to_mutate.values()))[:3])
        raise CutError(
            f"{type(captured.source).__name__} has state between calls: it writes on {changed}, and stages "
            "must give the same answer whatever came before; hand it in and out of forward"
        )
    if odd := [s for s in signature.input_specs if s.kind not in (*_STATE, InputKind.USER_INPUT)]:
        raise CutError(f"the graph has an input of kind {odd[0].kind.name}, which stages cannot hand on")
    # Hidden in the public interface, which only offers them compiled into a module.
    for guard in getattr(captured.program, "_guards_code", ()):
        if not _EQUAL_SIZES.match(guard):
            raise CutError(f"the capture asks of its inputs that {guard}, which stages cannot check")
    held = {**program.state_dict, **program.constants}
    targets = {s.arg.name: str(s.target) for s in signature.input_specs if s.kind in _STATE}
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in program.graph.nodes:
        if node.op == "output":
            flat = zip(signature.output_specs, node.args[0], strict=True)
            kept = [value for spec, value in flat if spec.kind is OutputKind.USER_OUTPUT]
            graph.output(fx.node.map_arg(tuple(kept), made.__getitem__))
        elif node.name in targets:
            made[node] = graph.create_node("get_attr", targets[node.name], name=node.name)
            made[node].meta = dict(node.meta)
        else:
            made[node] = graph.node_copy(node, made.__getitem__)
            _restore(made[node], node, dropouts)
    for node in made.values():
        if not node.users and (node.op == "get_attr" or _is_batch_norm(node)):
            graph.erase_node(node)
    state = {
        str(n.target): held[str(n.target)]
        if str(n.target) in held
        else getattr(program.graph_module, n.target)
        for n in graph.nodes
        if n.op == "get_attr"
    }
    inputs = tuple(n for n in graph.nodes if n.op == "placeholder")
    batch, batches = _batch_axis(inputs, program)
    return Functional(graph, state, _company(state, captured), inputs, captured, batch, batches)


def modules(node: fx.Node) -> tuple[str, ...]:
    """Paths of the user's modules that a call lies in, outermost first, the model itself left out.

    In a graph that was captured again, calls only tell by the parameters that they read.
    """
    paths = [str(path) for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items() if path != key]
    if not any(paths):
        read = [str(i.target) for i in node.all_input_nodes if i.op == "get_attr"]
        paths = [name.rpartition(".")[0] for name in read]
    parts = [path.split(".") for path in paths if path]
    return tuple(dict.fromkeys(".".join(p[: i + 1]) for p in parts for i in range(len(p))))


def is_random(node: fx.Node) -> bool:
    """May the call give another value the next time, in eval or in train mode?"""
    return node.op == "call_function" and (
        torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        or operator_name(node.target)[0] in _DROPOUTS
    )


def base(node: fx.Node) -> fx.Node | None:
    """The value of which ``node`` is a view (or a piece), or ``None``."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        whole = node.args[0]
        return whole if node.target.__name__ == "getitem" and base(whole) is not None else None  # type: ignore[union-attr]
    alias = schema.returns[0].alias_info if len(schema.returns) == 1 else None
    return node.args[0] if alias is not None and not alias.is_write else None


@contextmanager
def _dropouts_kept(program: torch.export.ExportedProgram) -> Iterator[dict[str, tuple[Any, tuple[Any, ...]]]]:
    """Within: dropout calls, which torch leaves out of a functional graph, are calls that it keeps.

    Yields each by the node's name: its functional operator and its arguments but the first.
    """
    swapped = [
        (n, n.target, n.args)
        for n in program.graph.nodes
        if n.op == "call_function" and operator_name(n.target)[0] in _DROPOUTS and n.args[2] is False
    ]
    try:
        for n, target, args in swapped:
            writes = target._schema.is_mutable
            n.target, n.args = (
                (aten.mul_.Tensor, (args[0], 1.0)) if writes else (aten.clone.default, args[:1])
            )
        program.graph_module.recompile()
        yield {n.name: (getattr(aten, operator_name(t)[0]).default, args[1:]) for n, t, args in swapped}
    finally:
        for n, target, args in swapped:
            n.target, n.args = target, args
        program.graph_module.recompile()


def _restore(node: fx.Node, old: fx.Node, dropouts: dict[str, tuple[Any, tuple[Any, ...]]]) -> None:
    """Give a call the form that it has in the user's model."""
    if node.target in (aten.view.default, aten._unsafe_view.default):
        node.target = aten.reshape.default  # as capture does; what was sent may have other strides
    elif node.target in (aten.clone.default, aten.mul.Tensor):
        came_from = [source.name for source in old.meta.get("from_node", ())]
        if came_from and came_from[-1] in dropouts:
            node.target, rest = dropouts[came_from[-1]]
            node.args, node.kwargs = (node.args[0], *rest), {}
    elif operator_name(node.target)[0] == "getitem" and _is_batch_norm(node.args[0]) and node.args[1] == 0:
        x, weight, bias, mean, variance, momentum, eps = node.args[0].args  # type: ignore[union-attr]
        if mean.op == variance.op == "get_attr":  # type: ignore[union-attr]
            node.target = aten.batch_norm.default
            flags = (False, momentum, eps, torch.backends.cudnn.enabled)
            node.args = (x, weight, bias, mean, variance, *flags)


def _is_batch_norm(node: object) -> bool:
    return getattr(node, "target", None) is aten._native_batch_norm_legit_no_training.default


def _batch_axis(
    inputs: tuple[fx.Node, ...], program: torch.export.ExportedProgram
) -> tuple[sympy.Symbol | None, tuple[int, int | None]]:
    """The symbol of the inputs' free axis, and the lengths that it may have."""
    values = [v for n in inputs if isinstance(v := n.meta.get("val"), torch.Tensor)]
    lengths: list[Any] = [s for v in values for s in v.shape if isinstance(s, torch.SymInt)]
    symbols = sorted({q for s in lengths for q in s.node.expr.free_symbols}, key=str)
    if len(symbols) > 1:
        raise CutError(f"the inputs have {len(symbols)} free axes; stages are made along one, the batch")
    if not symbols:
        return None, (0, None)
    span = program.range_constraints[symbols[0]]
    return symbols[0], (int(span.lower), int(span.upper) if span.upper.is_Integer else None)


def _company(state: dict[str, Any], captured: Captured) -> dict[str, tuple[str, ...]]:
    """For each tensor that is read: its other names, and what lies unread in the same module."""
    whole = dict(captured.program.state_dict)
    tied: dict[int, list[str]] = {}
    for name, tensor in whole.items():
        tied.setdefault(id(tensor), []).append(name)
    known = {n for name in state if name in whole for n in tied[id(whole[name])]}
    unread: dict[str, list[str]] = {}
    for name in whole:
        if name not in known:
            unread.setdefault(name.rpartition(".")[0], []).append(name)
    return {
        name: (*(n for n in tied[id(whole[name])] if n != name), *unread.get(name.rpartition(".")[0], ()))
        for name in state
        if name in whole
    }
