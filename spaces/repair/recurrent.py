"""Recurrent layers as consumers: what W_ih reads of the input, and W_hh of the states before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import fx

from ..coupling import Coupling
from ..coupling.walk import bind, operator_name
from .sources import OUTPUT, Source

Found = tuple[str, fx.Node, tuple[str, float] | None, Any, Source]  # weight, call, offset, key, source


def recurrent(graph: fx.Graph, coupling: Coupling, users: dict[str, set[fx.Node]]) -> Iterator[Found]:
    """Weights of LSTM and GRU nodes that sum over removable units which can be measured.

    These are W_ih of the first layer, whose constant goes into b_ih, and, of layers that run forward alone
    and are not stacked, W_hh: h_t stands for h_{t-1}, and without an intercept, since h_0 is zero. States
    inside a stack, or split over two directions, are not to be seen from outside.
    """
    for n in graph.nodes:
        if n.op != "call_function" or operator_name(n.target)[0] not in ("lstm", "gru"):
            continue
        bound = bind(n)
        operand, held = bound["input"], [str(p.target) for p in bound.get("params", ())]
        followed = n.name in coupling.reads and operand.name in coupling.tensors
        if not followed or not all(p in coupling.canonical for p in held):
            continue
        names = [coupling.canonical[p] for p in held]
        each = 4 if bound["has_biases"] else 2
        axes = coupling.tensors[operand.name]
        for k in range(0, len(names) if bound["num_layers"] == 1 else each, each):
            weight, bias = names[k], names[k + 2] if each == 4 else None
            labels = axes[-1][1]
            if labels is None or coupling.parameters[weight][1] is None or users[weight] != {n}:
                continue
            source = Source(((n.name, "input"),), -1, 1, None, labels)
            offset = (bias, 1.0) if bias is not None and users[bias] == {n} else None
            yield weight, n, offset, (operand.name, len(axes) - 1, 1, None), source
        labels = coupling.parameters[names[1]][1]
        if len(names) == each and labels is not None and users[names[1]] == {n}:
            source = Source(((n.name, OUTPUT),), -1, 1, None, np.asarray(labels))
            yield names[1], n, None, (n.name, OUTPUT), source
