"""Regions: where the units of a coupled group are computed one by one, from their makers to their readers.

A network's part between makers and readers can be divided by units when every operator in it treats each
unit alone, and every reader sums over the units. Both are told by the labels of :mod:`..coupling`: whatever
carries a group's labels is computed unit by unit, except where an operator sums or takes statistics over
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from ....model.coupling import Coupling, Group
from ....model.coupling.groups import Lengths
from ....model.coupling.units import Vector
from ....model.coupling.walk import bind, operator_name

# Readers that are linear in what they sum over; schema name of what is added once, whatever is summed.
BIAS = {
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d", "convolution"), "bias"),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), "bias"),
    **dict.fromkeys(("matmul", "mm", "bmm", "einsum", "sum"), ""),
    "addmm": "self",
    "baddbmm": "self",
}


@dataclass(frozen=True)
class Region:
    """Names of the calls between the makers and the readers of one group, readers included."""

    group: str
    labels: np.ndarray  # [units] int64
    inside: frozenset[str]  # calls that work on each unit alone, makers included
    readers: frozenset[str]  # calls that sum over the units


class _WholeError(Exception):
    """Why a group cannot be divided."""


def find_regions(graph: fx.Graph, coupling: Coupling) -> tuple[dict[str, Region], dict[str, str]]:
    """The region of every group that can be divided, and why the others cannot, by group name."""
    regions: dict[str, Region] = {}
    reasons: dict[str, str] = {}
    for group in coupling.groups:
        try:
            regions[group.name] = _region(graph, coupling, group)
        except _WholeError as reason:
            reasons[group.name] = str(reason)
    return regions, reasons


def _region(graph: fx.Graph, coupling: Coupling, group: Group) -> Region:
    mine = np.zeros(coupling.units + 1, dtype=bool)
    mine[group.labels] = True
    followed = _Followed(coupling, mine)
    _unmixed(followed)
    inside: set[str] = set()
    readers: set[str] = set()
    after: set[fx.Node] = set()  # what depends on the units through their sum
    for n in graph.nodes:
        if n.op != "call_function":
            continue
        carries = bool(followed.axes(n.name))
        if not after.isdisjoint(n.all_input_nodes):
            after.add(n)
            if carries:
                raise _WholeError(f"{n.name} needs the sum over all units before the units are read")
        if not carries and not any(i.name in inside or followed.axes_of(i) for i in n.all_input_nodes):
            continue
        _alone(n, coupling, followed)
        sums = [at for at in coupling.reads.get(n.name, ()) if followed.reads(n, *at)]
        if carries and sums:
            raise _WholeError(f"{n.name} makes units from all of them")
        if carries or _is_number(n, coupling):
            inside.add(n.name)
        elif _adds(n, sums):
            readers.add(n.name)
            after.add(n)
        elif any(followed.axes_of(i) for i in n.all_input_nodes):
            raise _WholeError(f"is read by {n.name}, whose results for parts of the units do not add up")
    if not readers:
        raise _WholeError("nothing sums over its units")
    return Region(group.name, group.labels, frozenset(inside), frozenset(readers))


class _Followed:
    """Along which axes the labels of one group run."""

    def __init__(self, coupling: Coupling, mine: np.ndarray) -> None:
        self.coupling, self.mine = coupling, mine

    def axes(self, node: str) -> list[int]:
        """Of a node's value, or of any of its values."""
        pieces = self.coupling.pieces.get(node) or [self.coupling.tensors.get(node, ())]
        return [axis for one in pieces for axis in self._along(one)]

    def axes_of(self, node: fx.Node) -> list[int]:
        """As :meth:`axes`, of a parameter too."""
        if node.op != "get_attr":
            return self.axes(node.name)
        vectors = self.coupling.parameters.get(self.coupling.canonical.get(str(node.target), ""), ())
        return [axis for axis, v in enumerate(vectors) if self.has(v)]

    def has(self, v: Vector | None) -> bool:
        return v is not None and bool(self.mine[v].any())

    def reads(self, n: fx.Node, argument: str, axis: int) -> bool:
        """Whether ``n`` sums over the units along ``axis`` of an operand (``"tensors.1"`` in a list)."""
        name, _, at = argument.partition(".")
        operand: Any = bind(n)[name]
        operand = operand[int(at)] if at else operand
        return isinstance(operand, fx.Node) and axis % max(1, _rank(operand)) in self.axes_of(operand)

    def places(self) -> Iterator[tuple[str, list[Vector | None]]]:
        """Every tensor and parameter with its labels per axis."""
        for node, axes in self.coupling.tensors.items():
            yield node, [v for _, v in axes]
        for node, several in self.coupling.pieces.items():
            yield from ((node, [v for _, v in axes]) for axes in several)
        for name, vectors in self.coupling.parameters.items():
            yield name, list(vectors)

    def _along(self, axes: Lengths) -> list[int]:
        return [axis for axis, (_, v) in enumerate(axes) if self.has(v)]


def _unmixed(followed: _Followed) -> None:
    """Refuse axes that the units share with others, and tensors of pairs of units."""
    for place, vectors in followed.places():
        mine = [v for v in vectors if followed.has(v)]
        if any(not followed.mine[v].all() for v in mine if v is not None):
            raise _WholeError(f"its units share an axis of {place} with others")
        if len(mine) > 1:
            raise _WholeError(f"{place} holds pairs of its units")


def _alone(n: fx.Node, coupling: Coupling, followed: _Followed) -> None:
    """Refuse statistics over the units."""
    if n.name not in coupling.statistics:
        return
    bound, rank = bind(n), _rank(n.args[0])
    name = operator_name(n.target)[0]
    if name in ("layer_norm", "rms_norm"):
        over = set(range(rank - len(bound["normalized_shape"]), rank))
    elif name == "group_norm":
        over = {1}
    elif name in ("batch_norm", "instance_norm"):
        over = set(range(rank)) - {1}
    else:
        dims = bound.get("dim")
        dims = range(rank) if dims in (None, []) else [dims] if isinstance(dims, int) else dims
        over = {d % rank for d in dims}
    if over & set(followed.axes_of(n.args[0])):  # type: ignore[arg-type]
        raise _WholeError(f"{n.name} takes statistics over its units")


def _rank(operand: Any) -> int:
    value = operand.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) else 0


def _is_number(n: fx.Node, coupling: Coupling) -> bool:
    """No tensor: a size, a check."""
    return n.name not in coupling.tensors and n.name not in coupling.pieces


def _adds(n: fx.Node, sums: list[tuple[str, int]]) -> bool:
    """Is the result for all units the sum of the results for parts of them, but for a bias?"""
    if len(sums) != 1 or operator_name(n.target)[0] not in BIAS:
        return False
    bound = bind(n)
    return bound.get("alpha", 1) == 1 and bound.get("beta", 1) == 1
