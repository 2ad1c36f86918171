"""Coupled groups: from followed labels to units that any network could lose one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import fx

from ..capture import Captured
from .units import Vector
from .walk import IN, OUT, Constant, Term, Walk, get_attribute, operator_name


@dataclass(frozen=True)
class Member:
    """A parameter axis that a group's units occupy."""

    parameter: str
    axis: int
    role: str  # "out" makes the units, "in" reads them, "scale" multiplies them, "along" accompanies them
    positions: np.ndarray  # [units, positions per unit] int64, along the axis


@dataclass(frozen=True)
class Group:
    """Units of one kind: each is a set of channels that can only be removed together.

    Every unit of a group takes the same number of positions on every axis of the network, so that costs
    depend on how many units are kept and not on which.
    """

    name: str  # module that first makes the units
    labels: np.ndarray  # [units] int64, in the order of the first member's positions
    members: tuple[Member, ...]
    kind: str = "channels"  # see :mod:`.groups`

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.labels)

    def makers(self) -> list[Member]:
        """Members that produce the units."""
        return [m for m in self.members if m.role == OUT]


Lengths = tuple[tuple[int, Vector | None], ...]


@dataclass(frozen=True)
class Coupling:
    """All that was found in one graph, as plain arrays (labels: 0 fixed, 1..units otherwise)."""

    units: int
    groups: tuple[Group, ...]
    parameters: dict[str, tuple[Vector | None, ...]]  # canonical name -> labels per axis
    canonical: dict[str, str]  # graph attribute -> canonical name
    tensors: dict[str, Lengths]  # node with one tensor -> (length, labels) per axis
    pieces: dict[str, list[Lengths]]  # node with several tensors -> the same for each
    constants: tuple[Constant, ...]
    macs: dict[tuple[str, int], Term]  # (node, part) -> multiply-accumulates per sample
    reads: dict[str, list[tuple[str, int]]]  # node -> operands that it sums over, with the axis
    statistics: frozenset[str]  # nodes whose statistics run over the kept positions
    frozen: dict[str, str]  # module with channels that cannot go -> reason


# -- What the units of a group are, told by the operators that meet them --------------------------------

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


# -- From followed labels to coupled groups: units that any network could lose one by one ---------------

MOST_WALKS = 12  # each costs about one forward pass


def find_coupling(captured: Captured) -> Coupling:
    """Follow the labels; where a fork ended fixed, follow another of its axes and keep what frees more.

    Forks of one kind (same operator, same number of axes) are turned together: a network repeats its blocks.
    """
    best = _walk(captured, {})
    freed, walks = _freed(best, captured), 1
    improved = True
    while improved and walks < MOST_WALKS:
        improved = False
        for turned in _turns(best, captured):
            other = _walk(captured, {**best.prefer, **turned})
            walks += 1
            if (more := _freed(other, captured)) > freed:
                best, freed, improved = other, more, True
                break
            if walks >= MOST_WALKS:
                break
    coupling = _collect(best)
    told = kinds(captured.graph_module.graph, coupling)
    groups = (replace(g, kind=kind) for g, kind in zip(coupling.groups, told, strict=True))
    return replace(coupling, groups=tuple(groups))


def _turns(walk: Walk, captured: Captured) -> Iterator[dict[str, int]]:
    """Other axes for the forks that ended fixed, one kind at a time, longer axes first."""
    kinds: dict[tuple[Any, int], list[str]] = {}
    nodes = {n.name: n for n in captured.graph_module.graph.nodes}
    for name, fork in walk.forks.items():
        if walk.units.normal(fork.vector) is None:
            kinds.setdefault((nodes[name.partition(".")[0]].target, len(fork.lengths)), []).append(name)
    for (_, axes), names in kinds.items():
        for rank in range(axes):
            turned = {name: _by_length(walk.forks[name].lengths)[rank] for name in names}
            if any(turned[name] != walk.forks[name].taken for name in names):
                yield turned


def _by_length(lengths: tuple[int, ...]) -> list[int]:
    """Axes, longest first; of equals the last first."""
    return sorted(range(len(lengths)), key=lambda axis: (lengths[axis], axis), reverse=True)


def _walk(captured: Captured, prefer: dict[str, int]) -> Walk:
    walk = Walk(captured.graph_module, captured.batch, dict(prefer))
    walk.run(captured.args, captured.kwargs)
    return walk


def _freed(walk: Walk, captured: Captured) -> int:
    """Parameter elements, counted once for each followed axis."""
    return sum(
        get_attribute(captured.graph_module, name).numel()
        * sum(walk.units.normal(v) is not None for v in axes)
        for name, axes in walk.parameters.items()
    )


def _collect(walk: Walk) -> Coupling:
    labels = _Labels(walk)
    parameters = {name: labels.compact_all(axes) for name, axes in walk.parameters.items()}
    tensors = {
        n.name: tuple(zip(walk.shapes[n], labels.compact_all(axes), strict=True))
        for n, axes in walk.axes.items()
        if isinstance(axes, tuple) and n.op != "get_attr"
    }
    pieces = {
        n.name: [
            tuple(zip(shape or (), labels.compact_all(one), strict=True))
            for one, shape in zip(axes, walk.shapes[n], strict=True)
        ]
        for n, axes in walk.axes.items()
        if isinstance(axes, list)
    }
    vectors = [v for axes in parameters.values() for v in axes]
    vectors += [v for axes in tensors.values() for _, v in axes]
    vectors += [v for several in pieces.values() for axes in several for _, v in axes]
    groups = _groups(walk, parameters, _signatures(labels.count, vectors))
    labels.fix_all_but(groups)  # units without a group (nothing makes them) stay
    return Coupling(
        units=labels.count - 1,
        groups=groups,
        parameters={name: tuple(map(labels.settle, axes)) for name, axes in parameters.items()},
        canonical=dict(walk.canonical),
        tensors={k: labels.settle_lengths(axes) for k, axes in tensors.items()},
        pieces={k: [labels.settle_lengths(axes) for axes in several] for k, several in pieces.items()},
        constants=tuple(
            Constant(c.node, c.argument, c.element, v)
            for c in walk.constants
            if (v := labels.settle(labels.compact(c.vector))) is not None or c.vector is None
        ),
        macs={k: labels.settle_term(term) for k, term in walk.macs.items()},
        reads=walk.reads,
        statistics=frozenset(walk.statistics),
        frozen=_frozen(walk, parameters, labels.grouped),
    )


class _Labels:
    """Labels of a finished walk, first compacted, then settled.

    Compacted: renumbered 0..units, in the order of the walk; units that no parameter holds are fixed (0).
    Settled: units without a group are fixed as well, and equal vectors are one object, so that work on them
    is done once.
    """

    def __init__(self, walk: Walk) -> None:
        # Freezing can follow from reading (an axis that became one unit), so read until nothing changes.
        known = -1
        while known != (known := len(walk.reasons) + _fixed_count(walk)):
            for axes in walk.parameters.values():
                for v in axes:
                    walk.units.normal(v)
        held = [v for axes in walk.parameters.values() for v in axes if v is not None]
        roots = {0}.union(*(np.unique(walk.units.find(v)).tolist() for v in held))
        self._units, self._roots = walk.units, np.array(sorted(roots), dtype=np.int64)
        self._shared: dict[bytes, Vector] = {}
        self.count = len(roots)
        self.grouped = np.ones(self.count, dtype=bool)  # [labels], whether a group holds it

    def fix_all_but(self, groups: Iterable[Group]) -> None:
        self.grouped[:] = False
        for g in groups:
            self.grouped[g.labels] = True

    def compact(self, v: Vector | None) -> Vector | None:
        if v is None:
            return None
        found = self._units.find(v)
        at = np.minimum(np.searchsorted(self._roots, found), len(self._roots) - 1)
        labels = np.where(self._roots[at] == found, at, 0)
        return labels if labels.any() else None

    def compact_all(self, axes: Iterable[Vector | None]) -> tuple[Vector | None, ...]:
        return tuple(self.compact(v) for v in axes)

    def settle(self, v: Vector | None) -> Vector | None:
        """The settled labels of compacted ones; None where all are fixed."""
        v = None if v is None else np.where(self.grouped[v], v, 0)
        return self._shared.setdefault(v.tobytes(), v) if v is not None and v.any() else None

    def settle_lengths(self, axes: Lengths) -> Lengths:
        return tuple((length, self.settle(v)) for length, v in axes)

    def settle_term(self, term: Term) -> Term:
        """The product with the lengths of fixed axes in its factor; its labels are those of the walk."""
        factor, followed = term.factor, []
        for v in term.vectors:
            settled = self.settle(self.compact(v))
            if settled is None:
                factor *= len(v)
            else:
                followed.append(settled)
        return Term(factor, tuple(followed))


def _fixed_count(walk: Walk) -> int:
    labels = np.arange(len(walk.units._parent))
    return int((walk.units.find(labels) == 0).sum())


def _signatures(labels: int, vectors: Iterable[Vector | None]) -> np.ndarray:
    """A 64-bit hash per label of how many positions it takes on each distinct axis."""
    rng = np.random.default_rng(0)
    signature = np.zeros(labels, dtype=np.uint64)
    seen: set[bytes] = set()
    for v in vectors:
        if v is None or (key := v.tobytes()) in seen:
            continue
        seen.add(key)
        found, counts = np.unique(v, return_counts=True)
        signature[found] += rng.integers(1, 2**63, dtype=np.uint64) * counts.astype(np.uint64)
    return signature


def _groups(
    walk: Walk, parameters: dict[str, tuple[Vector | None, ...]], signature: np.ndarray
) -> tuple[Group, ...]:
    by_signature: dict[int, list[tuple[str, int, str]]] = {}
    order: list[int] = []
    ranked = sorted(
        ((name, axis) for name, axes in parameters.items() for axis, v in enumerate(axes) if v is not None),
        key=lambda key: list(walk.roles).index(key) if key in walk.roles else len(walk.roles),
    )
    for name, axis in ranked:
        v = parameters[name][axis]
        assert v is not None
        for s in dict.fromkeys(signature[v[v > 0]].tolist()):
            if s not in by_signature:
                by_signature[s] = []
                order.append(s)
            by_signature[s].append((name, axis, walk.roles.get((name, axis), "along")))
    groups: list[Group] = []
    names: dict[str, int] = {}
    for s in order:
        places = by_signature[s]
        makers = [p for p in places if p[2] == OUT]
        if not makers:
            continue
        first = parameters[makers[0][0]][makers[0][1]]
        assert first is not None
        # The first appearance of each label along the maker's axis gives the order of the units.
        labels = first[np.sort(np.unique(first, return_index=True)[1])]
        labels = labels[(labels > 0) & (signature[labels] == np.uint64(s))]
        if len(labels) < 2:
            continue
        members = tuple(
            Member(name, axis, role, _positions(parameters[name][axis], labels))
            for name, axis, role in places
        )
        module = makers[0][0].rpartition(".")[0] or makers[0][0]
        names[module] = names.get(module, 0) + 1
        title = module if names[module] == 1 else f"{module}[{names[module]}]"
        groups.append(Group(title, labels, members))
    return tuple(groups)


def _positions(v: Vector | None, labels: np.ndarray) -> np.ndarray:
    """[units, positions per unit]: where each label stands along the axis."""
    assert v is not None
    order = np.argsort(v, kind="stable")
    start = np.searchsorted(v[order], labels, side="left")
    stop = np.searchsorted(v[order], labels, side="right")
    return order[start[:, None] + np.arange(int(stop[0] - start[0]))[None, :]]


def _frozen(
    walk: Walk, parameters: dict[str, tuple[Vector | None, ...]], grouped: np.ndarray
) -> dict[str, str]:
    """Modules that make channels of which none may go, with the first reason met."""
    reasons: dict[str, str] = {}
    for (name, axis), role in walk.roles.items():
        v = parameters[name][axis] if name in parameters else None
        if role != OUT or (v is not None and grouped[v].any()):
            continue
        original = walk.parameters[name][axis] if name in walk.parameters else None
        labels = [] if original is None else original.tolist()
        reason = next((walk.reasons[label] for label in labels if label in walk.reasons), None)
        if original is None:
            reason = "makes one channel alone"
        if name not in walk.parameters:
            reason = "its weights are no real floating-point numbers"
        reasons[name.rpartition(".")[0] or name] = reason or "is coupled with channels that cannot go"
    return reasons
