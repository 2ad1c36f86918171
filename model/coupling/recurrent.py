"""Recurrent layers and cells: opaque nodes whose hidden units are followed through their gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from .units import Axes, Vector
from .walk import ALONG, IN, OUT, AxesOrList, Value, Walk, operator_name, rule


@rule("lstm")
def lstm(walk: Walk, n: fx.Node, a: dict[str, Any], out: Value) -> AxesOrList:
    """``(output, h_n, c_n)`` of :class:`torch.nn.LSTM`."""
    states = a.get("hx")
    return _recurrent(walk, n, a, gates=4, states=states if isinstance(states, (list, tuple)) else [])


@rule("gru", "rnn_tanh", "rnn_relu")
def gru(walk: Walk, n: fx.Node, a: dict[str, Any], out: Value) -> AxesOrList:
    """``(output, h_n)`` of :class:`torch.nn.GRU` and :class:`torch.nn.RNN`."""
    gates = 3 if operator_name(n.target)[0] == "gru" else 1
    return _recurrent(walk, n, a, gates=gates, states=[a["hx"]] if isinstance(a.get("hx"), fx.Node) else [])


def _recurrent(walk: Walk, n: fx.Node, a: dict[str, Any], *, gates: int, states: Sequence[Any]) -> list[Axes]:
    """A hidden unit is a row of every gate, a column of the recurrent weight and a place of the state.

    All layers and directions share one state tensor, so that they lose the same units.
    """
    parameters = a.get("params", ())
    each = 4 if a["has_biases"] else 2
    directions = 2 if a["bidirectional"] else 1
    if not states or not parameters or len(parameters) != each * a["num_layers"] * directions:
        walk.freeze_node(f"{n.name} is a recurrent layer of another form", *n.all_input_nodes)
        return [(None,) * t.dim() for t in n.meta["val"]]

    hidden = walk.of(states[0])[-1]
    walk.agree(n.name, [walk.of(s)[-1] for s in states])
    for s in states:
        walk.freeze(f"is a layer or batch axis of {n.name}", *walk.of(s)[:-1])
    read: Vector | None = walk.of(a["input"])[-1]
    walk.read(n, "input", len(walk.shape(a["input"])) - 1)
    steps = int(np.prod(walk.shape(a["input"])[:-1]))
    for k in range(0, len(parameters), each):
        layer = k // (each * directions)
        if layer and k % (each * directions) == 0:
            read = _repeated(walk.units.normal(hidden), directions)
        w_ih, w_hh = parameters[k : k + 2]
        hidden = _gate_rows(walk, n, parameters[k : k + each], gates, hidden)
        for part, (p, columns) in enumerate(((w_ih, read), (w_hh, hidden)), start=k):
            walk.role(p, 1, IN)
            walk.agree(n.name, [walk.units.normal(columns), walk.of(p)[1]])
            walk.count(n, (steps, *walk.shape(p)), (None, *walk.of(p)), part=part)
        walk.read(n, f"params.{k + 1}", 1)
        if layer:
            walk.read(n, f"params.{k}", 1)
    hidden = walk.units.normal(hidden)
    made = (*walk.of(a["input"])[:-1], _repeated(hidden, directions))
    return [made, *((*walk.of(s)[:-1], hidden) for s in states)]


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(walk: Walk, n: fx.Node, a: dict[str, Any], out: Value) -> AxesOrList:
    """One step of :class:`torch.nn.LSTMCell` and its like: ``(h, c)``, or ``h``."""
    several = isinstance(a["hx"], (list, tuple))
    states = list(a["hx"]) if several else [a["hx"]]
    w_ih, w_hh = a["w_ih"], a["w_hh"]
    hidden = walk.agree(n.name, [walk.of(s)[-1] for s in states])
    given = [p for p in (w_ih, w_hh, a["b_ih"], a["b_hh"]) if isinstance(p, fx.Node)]
    hidden = _gate_rows(walk, n, given, walk.shape(w_hh)[0] // walk.shape(w_hh)[1], hidden)
    walk.read(n, "input", len(walk.shape(a["input"])) - 1)
    walk.read(n, "w_hh", 1)
    for part, (p, columns) in enumerate(((w_ih, walk.of(a["input"])[-1]), (w_hh, hidden))):
        walk.role(p, 1, IN)
        walk.agree(n.name, [walk.units.normal(columns), walk.of(p)[1]])
        steps = int(np.prod(walk.shape(a["input"])[:-1]))
        walk.count(n, (steps, *walk.shape(p)), (None, *walk.of(p)), part=part)
    made = (*walk.of(states[0])[:-1], walk.units.normal(hidden))
    return [made for _ in out] if several else made


def _gate_rows(
    walk: Walk, n: fx.Node, parameters: Sequence[fx.Node], gates: int, hidden: Vector | None
) -> Vector | None:
    """Hidden units, each joined with its row of every gate in the weights (the first two) and biases."""
    for k, p in enumerate(parameters):
        walk.role(p, 0, OUT if k < 2 else ALONG)
        rows = walk.of(p)[0]
        if rows is not None:
            rows = walk.units.normal(walk.units.tie_rows(rows.reshape(gates, -1).T))
        hidden = walk.agree(n.name, [walk.units.normal(hidden), rows])
    return hidden


def _repeated(v: Vector | None, times: int) -> Vector | None:
    return None if v is None else np.concatenate([v] * times)
