"""Multiply-accumulates of each call of a network."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator

from ..capture import flat_inputs
from ..costing.counter import Counter
from .functional import Functional


def macs(network: Functional) -> dict[str, float]:
    """Multiply-accumulates per sample of every call that has some, by running the network on its example."""
    captured = network.captured
    inputs = iter(flat_inputs(captured.graph_module, captured.args, captured.kwargs))
    values: dict[fx.Node, Any] = {}
    out: dict[str, float] = {}
    with torch.no_grad():
        for n in network.graph.nodes:
            if n.op == "placeholder":
                values[n] = next(inputs)
            elif n.op == "get_attr":
                values[n] = network.state[str(n.target)]
            elif n.op == "call_function":
                args, kwargs = fx.node.map_arg((n.args, n.kwargs), values.__getitem__)
                counter = Counter()
                # Within it torch cannot run control flow, which therefore counts nothing.
                with nullcontext() if isinstance(n.target, HigherOrderOperator) else counter:
                    values[n] = n.target(*args, **kwargs)
                if counter.macs:
                    out[n.name] = counter.macs / captured.batch
    return out
