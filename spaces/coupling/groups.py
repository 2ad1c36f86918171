"""From followed labels to coupled groups: units that any network could lose one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ..capture import Captured
from .coupled import Coupling, Group, Lengths, Member
from .kinds import kinds
from .units import Vector
from .walk import OUT, Constant, Term, Walk, get_attribute

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
    coupling = _collect(best, captured)
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


def _collect(walk: Walk, captured: Captured) -> Coupling:
    # Freezing can follow from reading (an axis that became one unit), so settle until nothing changes.
    known = -1
    while known != (known := len(walk.reasons) + _fixed_count(walk)):
        for axes in walk.parameters.values():
            for v in axes:
                walk.units.normal(v)

    kept_roots = {0}
    for axes in walk.parameters.values():
        for v in axes:
            if v is not None:
                kept_roots.update(np.unique(walk.units.find(v)).tolist())
    roots = np.array(sorted(kept_roots), dtype=np.int64)

    def compact(v: Vector | None) -> Vector | None:
        """Labels renumbered 0..units; units that no parameter holds count as fixed."""
        if v is None:
            return None
        found = walk.units.find(v)
        at = np.minimum(np.searchsorted(roots, found), len(roots) - 1)
        labels = np.where(roots[at] == found, at, 0)
        return labels if labels.any() else None

    parameters = {name: tuple(compact(v) for v in axes) for name, axes in walk.parameters.items()}
    tensors = {
        n.name: tuple(zip(walk.shapes[n], (compact(v) for v in axes), strict=True))
        for n, axes in walk.axes.items()
        if isinstance(axes, tuple) and n.op != "get_attr"
    }
    pieces = {
        n.name: [
            tuple(zip(shape or (), (compact(v) for v in one), strict=True))
            for one, shape in zip(axes, walk.shapes[n], strict=True)
        ]
        for n, axes in walk.axes.items()
        if isinstance(axes, list)
    }
    vectors = [v for axes in parameters.values() for v in axes]
    vectors += [v for axes in tensors.values() for _, v in axes]
    vectors += [v for several in pieces.values() for axes in several for _, v in axes]
    signature = _signatures(len(roots), vectors)
    groups = _groups(walk, parameters, signature)
    # Units without a group (nothing makes them) stay: they are fixed from here on.
    grouped = np.zeros(len(roots), dtype=bool)
    for g in groups:
        grouped[g.labels] = True

    shared: dict[bytes, Vector] = {}  # equal vectors become one object, so that work on them is done once

    def settle(v: Vector | None) -> Vector | None:
        v = None if v is None else np.where(grouped[v], v, 0)
        return shared.setdefault(v.tobytes(), v) if v is not None and v.any() else None

    def settled_lengths(axes: Lengths) -> Lengths:
        return tuple((length, settle(v)) for length, v in axes)

    return Coupling(
        units=len(roots) - 1,
        groups=groups,
        parameters={name: tuple(settle(v) for v in axes) for name, axes in parameters.items()},
        canonical=dict(walk.canonical),
        tensors={k: settled_lengths(axes) for k, axes in tensors.items()},
        pieces={k: [settled_lengths(axes) for axes in several] for k, several in pieces.items()},
        constants=tuple(
            Constant(c.node, c.argument, c.element, v)
            for c in walk.constants
            if (v := settle(compact(c.vector))) is not None or c.vector is None
        ),
        macs={k: _settled(term, lambda v: settle(compact(v))) for k, term in walk.macs.items()},
        reads=walk.reads,
        statistics=frozenset(walk.statistics),
        frozen=_frozen(walk, parameters, grouped),
    )


def _fixed_count(walk: Walk) -> int:
    labels = np.arange(len(walk.units._parent))
    return int((walk.units.find(labels) == 0).sum())


def _settled(term: Term, settle) -> Term:  # type: ignore[no-untyped-def]
    factor, followed = term.factor, []
    for v in term.vectors:
        settled = settle(v)
        if settled is None:
            factor *= len(v)
        else:
            followed.append(settled)
    return Term(factor, tuple(followed))


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
