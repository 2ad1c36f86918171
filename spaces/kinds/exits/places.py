"""Places of exits: modules after which one tensor crosses, so that the network may be divided there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from ....model.coupling import Coupling
from ....model.coupling.units import Vector
from ....model.stages.functional import CutError, modules
from .segments import SegmentBoundary, free_nodes, memory, writes


@dataclass(frozen=True, slots=True)
class ExitPlace:
    """The end of a module at which one tensor crosses."""

    name: str  # the outermost module that has just ended
    after: str  # last node of the captured graph before it
    crossing: str  # node whose value crosses
    share: float  # of the multiply-accumulates, before it: 0 to 1
    shape: tuple[int, ...]  # of the crossing tensor, without the batch
    channels: int  # its axis of channels, the batch counted: 1 or more
    labels: Vector | None  # of units, along that axis; None: none may go


def find_places(graph: fx.Graph, coupling: Coupling, *, classifies: bool = True) -> tuple[ExitPlace, ...]:
    """All places, in the graph's order, with something to compute before and after.

    Args:
        classifies: ask that the network returns one tensor [batch, classes].

    Raises:
        CutError: it returns something else, or keeps state between calls.
    """
    if classifies:
        class_count(graph)
    refuse_state(graph)
    work: dict[str, float] = {}
    for (node, _), term in coupling.macs.items():
        whole = term.factor
        for v in term.vectors:
            whole *= len(v)
        work[node] = work.get(node, 0.0) + whole
    total = sum(work.values())
    nodes = list(graph.nodes)
    paths = [modules(n) if n.op == "call_function" else () for n in nodes]
    last = {path: i for i, of in enumerate(paths) for path in of}
    out: list[ExitPlace] = []
    done, names = 0.0, set[str]()
    for i, n in enumerate(nodes):
        names.add(n.name)
        done += work.get(n.name, 0.0)
        ends = sorted((path for path in last if last[path] == i), key=lambda path: path.count("."))
        if not ends or not 0 < done < total:
            continue
        try:
            crossing = SegmentBoundary(graph, names).crossing
        except CutError:
            continue
        shape = tuple(int(length) for length in crossing.meta["val"].shape[1:])
        channels, labels = _channels(crossing.name, len(shape), coupling)
        out.append(ExitPlace(ends[0], n.name, crossing.name, done / total, shape, channels, labels))
    return tuple(out)


def before(graph: fx.Graph, place: ExitPlace) -> set[str]:
    """Names of the captured graph's nodes up to a place."""
    names: set[str] = set()
    for n in graph.nodes:
        names.add(n.name)
        if n.name == place.after:
            return names
    raise CutError(f"the graph has no node {place.after!r}: it is not that of place {place.name!r}")


def spread(places: Sequence[ExitPlace], count: int) -> list[ExitPlace]:
    """``count`` of them, each nearest in multiply-accumulates to one of 1/(count + 1), 2/(count + 1), ...

    Fewer where there are fewer; in the network's order.
    """
    left, taken = list(places), []
    for k in range(1, min(count, len(left)) + 1):
        best = min(left, key=lambda p: (abs(p.share - k / (count + 1)), p.share))
        left.remove(best)
        taken.append(best)
    return sorted(taken, key=lambda p: list(places).index(p))


def named(places: Iterable[ExitPlace], names: Collection[str], what: str) -> list[ExitPlace]:
    """The places of these names, in the network's order.

    Raises:
        ValueError: there is none of that name; ``what`` tells what was to be there.
    """
    places = tuple(places)
    known = [p.name for p in places]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{what} cannot be after {unknown[0]!r}; they can be after {', '.join(known)}")
    return [p for p in places if p.name in names]


def class_count(graph: fx.Graph) -> int:
    """Classes of a network that returns one tensor of scores [batch, classes].

    Raises:
        CutError: it returns something else.
    """
    returned = next(n for n in graph.nodes if n.op == "output").args[0]
    flat = list(returned) if isinstance(returned, (tuple, list)) else [returned]
    value = flat[0].meta.get("val") if len(flat) == 1 and isinstance(flat[0], fx.Node) else None
    if not isinstance(value, torch.Tensor) or value.dim() != 2 or not value.is_floating_point():
        got = f"{len(flat)} values" if value is None else f"a tensor {list(value.shape)} {value.dtype}"
        raise CutError(f"it must return one tensor of scores [batch, classes], but returns {got}")
    if not isinstance(value.shape[0], torch.SymInt):
        raise CutError("its batch length is fixed: a part of a batch cannot be computed by itself")
    if value.shape[1] < 2:
        raise CutError(f"it must tell at least two classes apart, but returns {list(value.shape)}")
    return int(value.shape[1])


def refuse_state(graph: fx.Graph) -> None:
    """
    Raises:
        CutError: the network writes on a parameter or buffer.
    """
    held = {n for n in free_nodes(list(graph.nodes)) if n.op == "get_attr"}
    for n in graph.nodes:
        if writes(n) and memory(n) in held:
            raise CutError(f"it has state between calls: {n.name} writes on {memory(n).target}")


def _channels(node: str, axes: int, coupling: Coupling) -> tuple[int, Vector | None]:
    """The axis that units lie along, else where torch has it: second of a map, last of tokens."""
    for axis, (_, labels) in enumerate(coupling.tensors.get(node, ())):
        if labels is not None and axis:
            return axis, labels
    return (1 if axes == 3 else axes), None
