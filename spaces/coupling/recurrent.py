"""LSTM and GRU layers: opaque nodes whose hidden units are followed through their gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from .units import Axes, Vector
from .walk import ALONG, IN, OUT, AxesOrList, Walk, rule


@rule("lstm")
def lstm(walk: Walk, n: fx.Node, a: dict[str, Any], out: Any) -> AxesOrList:
    """``(output, h_n, c_n)`` of :class:`torch.nn.LSTM`."""
    states = a.get("hx")
    return _recurrent(walk, n, a, gates=4, states=states if isinstance(states, (list, tuple)) else [])


@rule("gru")
def gru(walk: Walk, n: fx.Node, a: dict[str, Any], out: Any) -> AxesOrList:
    """``(output, h_n)`` of :class:`torch.nn.GRU`."""
    return _recurrent(walk, n, a, gates=3, states=[a["hx"]] if isinstance(a.get("hx"), fx.Node) else [])


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
        for p in parameters[k : k + each]:
            walk.role(p, 0, OUT if p in (w_ih, w_hh) else ALONG)
            rows = walk.of(p)[0]
            if rows is not None:
                rows = walk.units.normal(walk.units.tie_rows(rows.reshape(gates, -1).T))
            hidden = walk.agree(n.name, [walk.units.normal(hidden), rows])
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


def _repeated(v: Vector | None, times: int) -> Vector | None:
    return None if v is None else np.concatenate([v] * times)
