"""What the units of a group are, told by the operators that meet them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import fx

from .coupled import Coupling, Group
from .units import Vector
from .walk import IN, OUT, operator_name

HEADS, WITHIN, STATE = "attention heads", "within heads", "recurrent state"
RESIDUAL, EMBEDDING, HIDDEN, CHANNELS = "residual width", "embedding width", "MLP hidden", "channels"
_RANK = (HEADS, WITHIN, STATE, RESIDUAL, EMBEDDING)  # the first that applies names the group


def kinds(graph: fx.Graph, coupling: Coupling) -> list[str]:
    """Kind of every group.

    - ``attention heads`` lie on an axis along which products of two activations are taken side by side;
    - ``within heads`` are axes that such products sum over or give: the same places of every head;
    - ``recurrent state`` comes out of an LSTM, a GRU or the like;
    - ``residual width`` is made by several layers and carried through an addition of two activations;
    - ``embedding width`` is looked up in a table;
    - ``MLP hidden`` is made and read by matrices [out, in] alone;
    - everything else is ``channels``.
    """
    group_of = np.full(coupling.units + 1, -1)
    for i, group in enumerate(coupling.groups):
        group_of[group.labels] = i
    found: dict[int, set[str]] = {i: set() for i in range(len(coupling.groups))}
    computed: set[fx.Node] = set()  # activations; all else is parameters, and what is computed of them alone
    for n in graph.nodes:
        if n.op == "placeholder" or not computed.isdisjoint(n.all_input_nodes):
            computed.add(n)
        for kind, v in _told(n, coupling, computed) if n.op == "call_function" else ():
            for i in np.unique(group_of[v]).tolist():
                if i >= 0 and (kind != RESIDUAL or len(coupling.groups[i].makers()) > 1):
                    found[i].add(kind)
    return [
        next((k for k in _RANK if k in found[i]), _by_members(group, coupling))
        for i, group in enumerate(coupling.groups)
    ]


def _told(n: fx.Node, coupling: Coupling, computed: set[fx.Node]) -> Iterator[tuple[str, Vector]]:
    """What a node tells about the labels of some axes."""
    name = operator_name(n.target)[0]
    activations = [
        [v for _, v in coupling.tensors[o.name]]
        for o in n.args[:2]
        if isinstance(o, fx.Node) and o in computed and o.name in coupling.tensors
    ]
    if name.startswith(("lstm", "gru", "rnn_")):
        made = coupling.pieces.get(n.name) or [coupling.tensors.get(n.name, ())]
        yield from ((STATE, v) for one in made for _, v in one if v is not None)
    elif name == "embedding":
        yield from ((EMBEDDING, v) for _, v in coupling.tensors[n.name] if v is not None)
    elif len(activations) == 2 and name in ("scaled_dot_product_attention", "matmul", "bmm"):
        for axes in activations:
            yield from ((HEADS, v) for v in axes[:-2] if v is not None)
            yield from ((WITHIN, v) for v in axes[-2:] if v is not None)
    elif len(activations) == 2 and name == "add":
        shared = {id(v) for v in activations[0]}
        yield from ((RESIDUAL, v) for v in activations[1] if v is not None and id(v) in shared)


def _by_members(group: Group, coupling: Coupling) -> str:
    axes = {len(coupling.parameters[m.parameter]) for m in group.members if m.role in (OUT, IN)}
    return HIDDEN if axes == {2} else CHANNELS
