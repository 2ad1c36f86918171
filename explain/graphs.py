"""Two networks as graphs whose layers can be told apart by name, watched and interfered with as they run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from ..evaluators.batches import Batch, Inputs, batch_size
from ..model.capture import CaptureError, capture, flat_inputs
from ..model.captured_module import CapturedModule
from ..model.coupling.walk import operator_name
from ..spaces.kinds.branches import Branches
from ..spaces.kinds.exits import Cascade
from .section import Skipped

# Operators that multiply their input by a weight.
# fmt: off
WEIGHTED = frozenset([
    "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "linear", "addmm", "mm", "matmul", "bmm", "einsum", "embedding",
])
# What follows a layer's product position by position and belongs to the layer.
NORMS = frozenset(["batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm"])
ACTIVATIONS = frozenset([
    "relu", "relu6", "leaky_relu", "gelu", "silu", "elu", "selu", "hardtanh", "hardswish", "hardsigmoid",
    "sigmoid", "tanh", "softplus", "mish", "clamp", "clamp_min", "prelu",
])
DROPOUTS = frozenset(["dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"])
# fmt: on
COMPOSITIONS: dict[type[nn.Module], str] = {
    Cascade: r"stages\.\d+\.",
    Branches: r"(?:trunk|branches\.\d+)\.",
}
T = TypeVar("T")
Watch = Callable[[fx.Node, Any], Any]  # (node, what it gives) -> what it shall give


class LayerGraph:
    """One network as a captured graph.

    Args:
        inside: what precedes the original's names in a composition of its parts, as a pattern.

    Attributes:
        layers: the nodes that multiply by a weight, by the weight's module, in network order; a second use of
            a weight, and the layer of a second branch, has ``#2`` behind its name.
        ends: by the same names, the last node of each layer, after its norm and activation.
    """

    def __init__(self, module: fx.GraphModule, inside: str = "") -> None:
        self.module = module
        self.layers: dict[str, fx.Node] = {}
        for node in module.graph.nodes:
            weight = weight_of(node)
            if weight is not None:
                name = re.sub(f"^{inside}", "", str(weight.target).rpartition(".")[0]) or str(weight.target)
                uses = sum(known.partition("#")[0] == name for known in self.layers)
                self.layers[name if not uses else f"{name}#{uses + 1}"] = node
        self.ends = {name: _end(node) for name, node in self.layers.items()}

    def run(self, inputs: Inputs, watch: Watch) -> Any:
        """The network's output, with ``watch`` shown every node's value, which it hands on or replaces."""
        args, kwargs = inputs
        found = _Watched(self.module, watch).run(
            *flat_inputs(self.module, args, kwargs), enable_io_processing=False
        )
        return self.module.graph.process_outputs(found)

    def values(
        self, batches: list[Batch], nodes: Mapping[fx.Node, str], reduce: Callable[[Tensor], T]
    ) -> Iterator[dict[str, T]]:
        """What ``reduce`` makes of some nodes' values, by name, batch after batch.

        It is called at once, so that no two large tensors are held, and gives copies, since what follows may
        overwrite a value. Values without the batch axis are left out.
        """
        for args, kwargs, _ in batches:
            seen: dict[str, T] = {}
            size = batch_size((args, kwargs))

            def watch(node: fx.Node, value: object, seen: dict[str, T] = seen, size: object = size) -> Any:
                if node in nodes and isinstance(value, Tensor) and value.dim() > 1 and len(value) == size:
                    seen[nodes[node]] = reduce(value)
                return value

            with torch.no_grad():
                self.run((args, kwargs), watch)
            yield seen


def graph_of(model: nn.Module, example: Inputs) -> LayerGraph:
    """The graph of a network: its own where it is a captured one.

    Raises:
        Skipped: it cannot be captured, or only for one size of batch.
    """
    inside = next((pattern for kind, pattern in COMPOSITIONS.items() if isinstance(model, kind)), "")
    # What stands for layers is called as a module, whose own layers a new capture shows. Guards give nothing.
    if (
        isinstance(model, CapturedModule)
        and hasattr(model, "_in_spec")
        and not any(n.op == "call_module" and n.users for n in model.graph.nodes)
    ):
        return LayerGraph(model)
    try:
        captured = capture(model, example)
    except CaptureError as error:
        raise Skipped(f"its layers cannot be watched: {error}") from None
    if not captured.dynamic_batch:
        raise Skipped("its layers cannot be watched: the graph is captured for one size of batch alone")
    return LayerGraph(captured.graph_module, inside)


def weight_of(node: fx.Node) -> fx.Node | None:
    """The parameter of two axes or more that a node multiplies by, as the node that reads it."""
    if node.op != "call_function" or operator_name(node.target)[0] not in WEIGHTED:
        return None
    return next((n for n in node.all_input_nodes if n.op == "get_attr" and _axes(n) > 1), None)


def uses_of(graph: LayerGraph, name: str) -> list[fx.Node]:
    """The nodes of a layer that multiply by different weights: one, but for the layers of branches."""
    nodes = (node for known, node in graph.layers.items() if name in (known, known.partition("#")[0]))
    return list({str(weight.target): node for node in nodes if (weight := weight_of(node))}.values())


def parameter(module: nn.Module, name: str) -> Any:
    """What a node reads, by dotted name."""
    for part in name.split("."):
        module = getattr(module, part)
    return module


def place_of(node: fx.Node) -> tuple[str, str, int]:
    """(module path, operator, how many-th of it there): the same in a smaller network of the same code."""
    path, name = _path(node), operator_name(node.target)[0]
    alike = (
        n
        for n in node.graph.nodes
        if n.op == "call_function" and operator_name(n.target)[0] == name and _path(n) == path
    )
    return path, name, next(i for i, n in enumerate(alike) if n is node)


def find_place(graph: LayerGraph, place: tuple[str, str, int]) -> fx.Node | None:
    """The node at a place of :func:`place_of`, where there is one."""
    path, name, index = place
    alike = [
        n
        for n in graph.module.graph.nodes
        if n.op == "call_function" and operator_name(n.target)[0] == name and _path(n) == path
    ]
    return alike[index] if index < len(alike) else None


class _Watched(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, watch: Watch) -> None:
        super().__init__(module)
        self._watch = watch

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        return self._watch(n, value) if n.op == "call_function" else value


def _end(node: fx.Node) -> fx.Node:
    while len(node.users) == 1:
        user = next(iter(node.users))
        if user.op != "call_function" or not user.args or user.args[0] is not node:
            break
        if operator_name(user.target)[0] not in NORMS | ACTIVATIONS | DROPOUTS:
            break
        node = user
    return node


def _axes(node: fx.Node) -> int:
    owner = node.graph.owning_module
    value = parameter(owner, str(node.target)) if owner is not None else None
    return value.dim() if isinstance(value, Tensor) and value.is_floating_point() else 0


def _path(node: fx.Node) -> str:
    entries = list((node.meta.get("nn_module_stack") or {}).values())
    return str(entries[-1][0]) if entries else ""
