"""A captured graph as an ordinary module that can be trained, copied and exported."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import fx

from .coupling.walk import get_attribute

aten = torch.ops.aten

_BATCH_NORMS = {aten.batch_norm.default, aten.instance_norm.default}
_DROPOUTS = {
    aten.dropout.default,
    aten.dropout_.default,
    aten.feature_dropout.default,
    aten.feature_dropout_.default,
    aten.alpha_dropout.default,
    aten.alpha_dropout_.default,
    aten.feature_alpha_dropout.default,
    aten.feature_alpha_dropout_.default,
}
# Recurrent layers: their dropout between layers and, on CUDA, what backward needs.
_RECURRENT = {aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input}


class CapturedModule(fx.GraphModule):
    """The graph that ``torch.export`` saw, on parameters that carry the user's names.

    A capture freezes every train flag. Here the flags of batch-norm and dropout calls are attributes that
    :meth:`train` switches, so the module trains as the original does (equal loss and gradients).
    """

    batch_norm_training: bool
    batch_norm_momentum: float | None  # None: each call keeps its own
    dropout_training: bool

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.batch_norm_training = mode
        self.dropout_training = mode
        return self


def assemble(graph: fx.Graph, attributes: dict[str, Any]) -> CapturedModule:
    """Module in eval mode from a graph and everything that it reads, by dotted name."""
    switchable(graph)
    module = CapturedModule(
        {**attributes, "batch_norm_training": False, "dropout_training": False, "batch_norm_momentum": None},
        graph,
    )
    return module.train(False)


def trainable(module: fx.GraphModule) -> CapturedModule:
    """The module of a program, which can only evaluate, as one that trains; it comes in eval mode.

    It is on the same tensors, and its guards on shapes stay.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    graph.set_codegen(copy.copy(module.graph._codegen))
    held = {str(n.target) for n in graph.nodes if n.op in ("get_attr", "call_module")}
    made = assemble(graph, {name: get_attribute(module, name) for name in held})
    copy_specs(module, made)
    return made


def copy_specs(module: fx.GraphModule, made: fx.GraphModule) -> None:
    """How ``module`` takes its inputs apart and puts its outputs together."""
    for name in ("_in_spec", "_out_spec"):
        if hasattr(module, name):
            setattr(made, name, getattr(module, name))


def switchable(graph: fx.Graph) -> None:
    """Replace the constant train flags (and the momentum) by reads of the module's attributes.

    Dropout and batch-norm calls that were off in eval mode because the model asked for it (for instance
    frozen statistics) cannot be told from the others in the capture; all follow :meth:`train`.
    """
    first = next(iter(graph.nodes))
    flags: dict[str, fx.Node] = {}

    def flag(name: str) -> fx.Node:
        if name not in flags:
            with graph.inserting_before(first):
                flags[name] = graph.create_node("get_attr", name)
        return flags[name]

    for node, position in frozen_flags(graph):
        args = list(node.args)
        if node.target in _BATCH_NORMS:
            args[position] = flag("batch_norm_training")
            with graph.inserting_before(node):
                args[6] = graph.call_function(_momentum, (flag("batch_norm_momentum"), args[6]))
        else:
            args[position] = flag("dropout_training")
        node.args = tuple(args)


def frozen_flags(graph: fx.Graph) -> list[tuple[fx.Node, int]]:
    """Calls whose train flag is the constant False, each with the flag's position.

    One that is True stays on in eval mode too: a norm by the batch's own statistics, a dropout that drops.
    """
    positions = {
        **dict.fromkeys(_BATCH_NORMS, 5),
        **dict.fromkeys(_DROPOUTS, 2),
        **dict.fromkeys(_RECURRENT, 6),
    }
    found = [(node, positions.get(node.target)) for node in graph.nodes if node.op == "call_function"]
    return [(node, at) for node, at in found if at is not None and node.args[at] is False]


def _momentum(override: float | None, own: float) -> float:
    return own if override is None else override
