"""A dense layer of a built graph as groups that do not mix."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import fx, nn

from ....model.captured_module import CapturedModule
from ....model.coupling.walk import bind, get_attribute, schema

aten = torch.ops.aten

# Call -> groups of its outputs and of its inputs, for the weights that it has now.
Marks = dict[fx.Node, tuple[np.ndarray, np.ndarray]]


def build(made: CapturedModule, marks: Mapping[fx.Node, tuple[np.ndarray, np.ndarray]]) -> None:
    """Let every marked call that still stands compute its groups alone.

    Inputs are gathered, one small layer computes each group, and outputs are gathered back.

    Groups of one size are a single grouped convolution. A layer may have outputs of groups of which it has no
    inputs, where units were divided into branches: these have their bias alone.
    """
    standing = set(made.graph.nodes)
    for node, (rows, columns) in list(marks.items()):
        if node not in standing:
            continue
        with made.graph.inserting_before(node):
            node.replace_all_uses_with(_Builder(made, node).groups(rows, columns))
        made.graph.erase_node(node)


class _Builder:
    """Makes small layers from one call."""

    def __init__(self, made: CapturedModule, node: fx.Node) -> None:
        self._made, self._node, self._bound = made, node, bind(node)
        weight, bias = self._bound["weight"], self._bound["bias"]
        self._path = str(weight.target).rpartition(".")[0]
        self._weight = get_attribute(made, str(weight.target))
        self._bias = get_attribute(made, str(bias.target)) if isinstance(bias, fx.Node) else None
        self._axis = 1 - self._weight.dim()  # of the channels, counted from the end

    def groups(self, rows: np.ndarray, columns: np.ndarray) -> fx.Node:
        parts = [(np.flatnonzero(rows == g), np.flatnonzero(columns == g)) for g in np.unique(rows)]
        full = [part for part in parts if len(part[1])]
        alone = [out for out, into in parts if not len(into)]
        if (
            not alone
            and len(parts) > 1
            and self._weight.dim() > 2
            and len({(len(o), len(i)) for o, i in parts}) == 1
        ):
            order = np.concatenate([out for out, _ in parts])
            x = self._gather(self._bound["input"], np.concatenate([into for _, into in parts]), "inputs")
            small = torch.cat([self._weight.detach()[o][:, i] for o, i in parts])
            return self._gather(
                self._call(x, "grouped", small, order, len(parts)), np.argsort(order), "outputs"
            )
        done = [out for out, _ in full]
        pieces = []
        for k, (out, into) in enumerate(full):
            x = self._gather(self._bound["input"], into, "inputs", f"group{k}")
            pieces.append(self._call(x, f"group{k}", self._weight.detach()[out][:, into], out, 1))
        if alone:
            done.append(np.concatenate(alone))
            pieces.append(self._constant(done[-1], pieces))
        joined = pieces[0]
        if len(pieces) > 1:
            joined = self._made.graph.call_function(aten.cat.default, (pieces, self._axis))
        return self._gather(joined, np.argsort(np.concatenate(done)), "outputs")

    def _call(self, x: fx.Node, name: str, small: torch.Tensor, order: np.ndarray, groups: int) -> fx.Node:
        """The call on other weights: ``small``, and the entries ``order`` of the bias."""
        bound = self._bound | {"input": x, "weight": self._store(name, "weight", small, self._weight)}
        if self._bias is not None:
            bound["bias"] = self._store(name, "bias", self._bias.detach()[order], self._bias)
        if "groups" in bound:
            bound["groups"] = groups
        args = tuple(bound[a.name] for a in schema(self._node))
        new = self._made.graph.call_function(self._node.target, args)  # type: ignore[arg-type]
        new.meta = {k: v for k, v in self._node.meta.items() if k == "nn_module_stack"}
        return new

    def _constant(self, order: np.ndarray, pieces: list[fx.Node]) -> fx.Node:
        """The entries ``order`` of the bias at every place of the output."""
        graph = self._made.graph
        if pieces:
            like = graph.call_function(aten.narrow.default, (pieces[0], self._axis, 0, 1))
        else:
            like = graph.call_function(aten.narrow.default, (self._bound["input"], self._axis, 0, 1))
            like = self._shaped(like)
        zeros = graph.call_function(aten.zeros_like.default, (like,))
        if self._bias is None:
            values = self._store("alone", "constant", self._weight.detach().new_zeros(len(order)), None)
        else:
            values = self._store("alone", "bias", self._bias.detach()[order], self._bias)
        shaped = graph.call_function(aten.reshape.default, (values, [len(order)] + [1] * (-self._axis - 1)))
        return graph.call_function(aten.add.Tensor, (zeros, shaped))

    def _shaped(self, one: fx.Node) -> fx.Node:
        """Something of the places that the layer gives, from one of its inputs, without a multiplication."""
        padding = self._bound.get("padding", "same")
        if padding == "same":  # a linear layer too
            return one
        kernel = list(self._weight.shape[2:])
        sizes = [0] * len(kernel) if padding == "valid" else list(padding)
        pool = (aten.max_pool1d, aten.max_pool2d, aten.max_pool3d)[len(kernel) - 1].default
        around = [p - k // 2 for p, k in zip(sizes * len(kernel), kernel, strict=False)]
        if max(around) > 0:  # more than a pool takes
            wide = [side for a in reversed(around) for side in (max(a, 0), max(a, 0))]
            one = self._made.graph.call_function(aten.constant_pad_nd.default, (one, wide))
            sizes = [min(p, k // 2) for p, k in zip(sizes * len(kernel), kernel, strict=False)]
        stride, dilation = self._bound["stride"], self._bound["dilation"]
        return self._made.graph.call_function(pool, (one, kernel, stride, sizes, dilation))

    def _gather(self, x: fx.Node, index: np.ndarray, leaf: str, name: str = "grouped") -> fx.Node:
        """The positions ``index`` of the channels; of outputs nothing where they are all in order."""
        if leaf == "outputs" and np.array_equal(index, np.arange(len(index))):
            return x
        at = self._store(name, leaf, torch.from_numpy(np.ascontiguousarray(index)), None)
        return self._made.graph.call_function(aten.index_select.default, (x, self._axis, at))

    def _store(self, name: str, leaf: str, value: torch.Tensor, like: torch.Tensor | None) -> fx.Node:
        """Put a tensor beside the layer's own: a parameter where ``like`` is one, else a buffer."""
        path = f"{self._path}.{name}".lstrip(".")
        try:
            holder = self._made.get_submodule(path)
        except AttributeError:
            self._made.add_submodule(path, nn.Module())
            holder = self._made.get_submodule(path)
        if isinstance(like, nn.Parameter):
            holder.register_parameter(leaf, nn.Parameter(value.clone(), requires_grad=like.requires_grad))
        else:
            holder.register_buffer(leaf, value)
        return self._made.graph.create_node("get_attr", f"{path}.{leaf}")
