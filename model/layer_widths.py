"""Widths of layers: what each choice of a space decides about each layer, without building anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import fx

from .blocks import Block
from .coupling import Coupling
from .coupling.walk import OUT, operator_name


@dataclass(frozen=True)
class LayerWidth:
    """Outputs of a layer that multiplies by a weight: ``fixed``, and for each choice some a kept unit."""

    name: str  # module of the weight
    width: int  # outputs in the unchanged network
    fixed: int  # outputs that no choice decides about
    units: dict[str, int]  # choice -> outputs for each unit that it keeps
    drops: tuple[str, ...]  # choices that take the layer away once they drop their block


def layer_widths(
    graph: fx.Graph,
    coupling: Coupling,
    blocks: Sequence[Block],
    pruned: Mapping[str, str],
    dropped: Mapping[str, str],
) -> list[LayerWidth]:
    """All layers of a captured network, in network order, each weight once.

    Args:
        pruned: name of the choice that decides about a group, by the group's name.
        dropped: the same for blocks.
    """
    owner = np.zeros(coupling.units + 1, dtype=np.int64)  # label -> place of its group, from 1
    for place, group in enumerate(coupling.groups, start=1):
        owner[group.labels] = place
    makes = {(m.parameter, m.axis) for g in coupling.groups for m in g.members if m.role == OUT}
    dropping = [(dropped[b.name], set(b.nodes)) for b in blocks if b.name in dropped]
    multiplies = {node for node, _ in coupling.macs}
    found: dict[str, LayerWidth] = {}
    for node in graph.nodes:
        weight = _weight(node) if node.name in multiplies else None
        if weight is None:
            continue
        name = coupling.canonical[str(weight.target)]
        shape = weight.meta["val"].shape
        transposed = operator_name(node.target)[0].startswith("conv_transpose")
        axis = next((a for a in range(len(shape)) if (name, a) in makes), int(transposed))
        labels = coupling.parameters.get(name, (None,) * len(shape))[axis]
        count = np.zeros(len(coupling.groups) + 1, dtype=np.int64)
        if labels is not None:
            count = np.bincount(owner[labels], minlength=len(count))
        units = {
            pruned[group.name]: int(count[place]) // group.size
            for place, group in enumerate(coupling.groups, start=1)
            if count[place] and group.name in pruned
        }
        cut = sum(int(count[p]) for p, g in enumerate(coupling.groups, start=1) if g.name in pruned)
        found.setdefault(
            name,
            LayerWidth(
                name.removesuffix(".weight"),
                int(shape[axis]),
                int(shape[axis]) - cut,
                units,
                tuple(choice for choice, nodes in dropping if node.name in nodes),
            ),
        )
    return list(found.values())


def _weight(node: fx.Node) -> fx.Node | None:
    return next((n for n in node.all_input_nodes if n.op == "get_attr" and n.meta["val"].dim() > 1), None)
