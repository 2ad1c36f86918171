"""Multiply-accumulates of each call of a network."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..capture import flat_inputs
from ..coupling.walk import bind, operator_name
from .functional import Functional

_RECURRENT = frozenset(["lstm", "gru", "rnn_tanh", "rnn_relu"])


def macs(network: Functional) -> dict[str, float]:
    """Multiply-accumulates per sample of every call that has some, by running the network on its example."""
    captured = network.captured
    inputs = iter(flat_inputs(captured.graph_module, captured.args, captured.kwargs))
    values: dict[fx.Node, Any] = {}
    out: dict[str, float] = {}
    # Fused attention counts nothing.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for n in network.graph.nodes:
            if n.op == "placeholder":
                values[n] = next(inputs)
            elif n.op == "get_attr":
                values[n] = network.state[str(n.target)]
            elif n.op == "call_function":
                args, kwargs = fx.node.map_arg((n.args, n.kwargs), values.__getitem__)
                counter = FlopCounterMode(display=False)
                # Within it torch cannot run control flow, which therefore counts nothing.
                with nullcontext() if isinstance(n.target, HigherOrderOperator) else counter:
                    values[n] = n.target(*args, **kwargs)
                count = counter.get_total_flops() / 2
                if operator_name(n.target)[0] in _RECURRENT:  # fused too
                    count = max(count, _recurrent(fx.node.map_arg(bind(n), values.__getitem__)))
                if count:
                    out[n.name] = count / captured.batch
    return out


def _recurrent(given: dict[str, Any]) -> float:
    """Every weight of a recurrent layer meets every step of every sequence once."""
    x = given["input"] if "input" in given else given["data"]
    steps = x.shape[:-1].numel()
    return float(sum(w.numel() for w in given["params"] if w.dim() == 2) * steps)
