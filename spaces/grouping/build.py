"""A dense layer of a built graph as groups that do not mix."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx, nn

from ..captured_module import CapturedModule
from ..coupling.walk import bind, get_attribute, schema

aten = torch.ops.aten

# Call -> groups of its outputs and of its inputs, for the weights that it has now.
Marks = dict[fx.Node, tuple[np.ndarray, np.ndarray]]


def build(made: CapturedModule, marks: Marks) -> None:
    """Let every marked call compute its groups alone: gather the inputs, one small layer each, gather back.

    Groups of one size are a single grouped convolution.
    """
    for node, (rows, columns) in marks.items():
        with made.graph.inserting_before(node):
            node.replace_all_uses_with(_grouped(made, node, rows, columns))
        made.graph.erase_node(node)


def _grouped(made: CapturedModule, node: fx.Node, rows: np.ndarray, columns: np.ndarray) -> fx.Node:
    bound = bind(node)
    path = str(bound["weight"].target).rpartition(".")[0]
    weight = get_attribute(made, str(bound["weight"].target))
    bias = get_attribute(made, str(bound["bias"].target)) if isinstance(bound["bias"], fx.Node) else None
    axis = 1 - weight.dim()  # of the channels, counted from the end
    outs = [np.flatnonzero(rows == g) for g in np.unique(rows)]
    ins = [np.flatnonzero(columns == g) for g in np.unique(rows)]
    with_inputs = [k for k, part in enumerate(ins) if len(part)]
    equal = len({(len(o), len(i)) for o, i in zip(outs, ins, strict=True)}) == 1
    if equal and len(outs) > 1 and weight.dim() > 2:
        order, places = np.concatenate(outs), np.concatenate(ins)
        small = torch.stack([weight.detach()[o][:, i] for o, i in zip(outs, ins, strict=True)]).flatten(0, 1)
        x = _gather(made, bound["input"], axis, places, f"{path}.grouped", "inputs")
        made_of = _call(made, node, x, f"{path}.grouped", small, weight, bias, order, groups=len(outs))
        return _gather(made, made_of, axis, np.argsort(order), f"{path}.grouped", "outputs")
    pieces: list[fx.Node] = []
    done: list[np.ndarray] = []
    for k in with_inputs:
        name = f"{path}.group{k}"
        x = _gather(made, bound["input"], axis, ins[k], name, "inputs")
        small = weight.detach()[outs[k]][:, ins[k]]
        pieces.append(_call(made, node, x, name, small, weight, bias, outs[k], groups=1))
        done.append(outs[k])
    if rest := [outs[k] for k in range(len(outs)) if k not in with_inputs]:
        # All inputs of these outputs are in other branches: they have their bias alone.
        done.append(np.concatenate(rest))
        pieces.append(_constant(made, pieces[0], axis, f"{path}.rest", bias, done[-1], weight))
    joined = pieces[0] if len(pieces) == 1 else made.graph.call_function(aten.cat.default, (pieces, axis))
    return _gather(made, joined, axis, np.argsort(np.concatenate(done)), f"{path}.grouped", "outputs")


def _call(
    made: CapturedModule,
    node: fx.Node,
    x: fx.Node,
    path: str,
    small: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    order: np.ndarray,
    *,
    groups: int,
) -> fx.Node:
    """``node`` on other weights: ``small``, and the entries ``order`` of the bias."""
    bound = bind(node) | {"input": x, "weight": _store(made, path, "weight", small, like=weight)}
    if bias is not None:
        bound["bias"] = _store(made, path, "bias", bias.detach()[torch.from_numpy(order)], like=bias)
    if "groups" in bound:
        bound["groups"] = groups
    args = tuple(bound[a.name] for a in schema(node))
    new = made.graph.call_function(node.target, args)  # type: ignore[arg-type]
    new.meta = {k: v for k, v in node.meta.items() if k == "nn_module_stack"}
    return new


def _constant(
    made: CapturedModule,
    like: fx.Node,
    axis: int,
    path: str,
    bias: torch.Tensor | None,
    order: np.ndarray,
    weight: torch.Tensor,
) -> fx.Node:
    graph = made.graph
    values = weight.new_zeros(len(order)) if bias is None else bias.detach()[torch.from_numpy(order)]
    held = _store(made, path, "bias", values, like=values if bias is None else bias)
    one = graph.call_function(
        aten.zeros_like.default, (graph.call_function(aten.narrow.default, (like, axis, 0, 1)),)
    )
    shaped = graph.call_function(aten.reshape.default, (held, [len(order)] + [1] * (-axis - 1)))
    return graph.call_function(aten.add.Tensor, (one, shaped))


def _gather(made: CapturedModule, x: fx.Node, axis: int, index: np.ndarray, path: str, name: str) -> fx.Node:
    """The positions ``index`` along ``axis``; ``x`` itself where they are all of them in order."""
    if name == "outputs" and np.array_equal(index, np.arange(len(index))):
        return x
    at = torch.from_numpy(np.ascontiguousarray(index))
    return made.graph.call_function(
        aten.index_select.default, (x, axis, _store(made, path, name, at, like=at))
    )


def _store(made: CapturedModule, path: str, leaf: str, value: torch.Tensor, *, like: Any) -> fx.Node:
    path = path.lstrip(".")
    try:
        holder = made.get_submodule(path)
    except AttributeError:
        made.add_submodule(path, nn.Module())
        holder = made.get_submodule(path)
    if isinstance(like, nn.Parameter):
        holder.register_parameter(leaf, nn.Parameter(value.clone(), requires_grad=like.requires_grad))
    else:
        holder.register_buffer(leaf, value)
    return made.graph.create_node("get_attr", f"{path}.{leaf}")
