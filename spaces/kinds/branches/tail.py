"""Tail: what lies behind a place where the network falls apart, and what each branch of it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx, nn

from ....model.coupling import Coupling, Group
from ....model.coupling.walk import bind, get_attribute
from ....model.stages.functional import CutError
from ..exits.places import ExitPlace, before
from ..exits.segments import free_nodes, memory

if TYPE_CHECKING:
    from ....model.cost_tables import Tables


@dataclass(frozen=True, slots=True)
class Held:
    """A parameter or buffer that something behind the place reads."""

    name: str  # canonical
    node: str  # of the captured graph, that reads it
    trainable: bool  # a parameter
    bytes: int  # an element
    shared: bool  # something before the place reads it too
    scores: bool  # its first axis are the classes


@dataclass(frozen=True, slots=True)
class BranchTail:
    """What lies behind a place: what a branch has of its own."""

    nodes: frozenset[str]
    steps: tuple[int, int]  # of its first node, and of the first that no longer needs what crosses
    held: tuple[Held, ...]
    groups: tuple[str, ...]  # whose units nothing before the place makes or reads
    linear: str  # the node that gives the scores
    weight: str  # its weight's attribute
    bias: str | None


@dataclass(frozen=True, eq=False)
class Branch:
    """What a choice is about: the place where branches begin, and who goes to which."""

    place: ExitPlace
    tail: BranchTail
    classes: Mapping[int, tuple[tuple[int, ...], ...]]  # of each branch, by number of branches

    def restrict(self, branch: nn.Module, members: Sequence[int]) -> None:
        """Keep the rows of some classes in the last layer."""
        for target in filter(None, (self.tail.weight, self.tail.bias)):
            path, _, name = target.rpartition(".")
            old = branch.get_parameter(target)
            rows = old.detach()[torch.tensor(members)].clone()
            setattr(branch.get_submodule(path), name, nn.Parameter(rows, requires_grad=old.requires_grad))

    def adjust(self, costs: Mapping[str, np.ndarray], option: int, rows: np.ndarray, tables: Tables) -> None:
        """Correct the costs of candidates ``rows`` [n] bool in place.

        Each branch costs what the network behind the place does at the branch's widths. ``memory_mb``: one
        branch after the other, their common input kept until the last has read it.
        """
        tables = replace(tables, widths=tables.widths[rows], dropped=tables.dropped[rows])
        parts = self.classes[option]
        classes = sum(map(len, parts))
        gone = self._behind(tables, 1.0, owned=True)
        parted = [self._narrowed(tables, k, len(parts)) for k in range(len(parts))]
        each = [self._behind(t, len(m) / classes, owned=False) for t, m in zip(parted, parts, strict=True)]
        for name in ("macs", "params", "size_mb"):
            costs[name][rows] += sum(e[name] for e in each) - gone[name]
        costs["flops"][rows] = 2 * costs["macs"][rows]
        costs["size_mb"][rows] += 8 * classes / 1e6  # the order of the classes
        # Until a branch has read what crosses, that is counted; then the next branch still waits for it.
        peaks = [t.costs.peaks(t.widths, t.dropped, (0, *self.tail.steps)) / 1e6 for t in parted]
        kept = self._crossing(tables)
        later = [p[:, 2] + kept * (k < len(parts) - 1) for k, p in enumerate(peaks)]
        most = [peaks[0][:, 0], *(p[:, 1] for p in peaks), *later]
        costs["memory_mb"][rows] = costs["size_mb"][rows] + np.max(most, axis=0)

    def _crossing(self, tables: Tables) -> np.ndarray:
        """MB of what one sample's branches read, [n]."""
        place = self.place
        around = [n for axis, n in enumerate(place.shape, start=1) if axis != place.channels]
        width = np.full(len(tables.widths), float(place.shape[place.channels - 1]))
        width = width if place.labels is None else tables.count(place.labels)
        return width * float(np.prod(around)) * 4 / 1e6

    def _narrowed(self, tables: Tables, branch: int, parts: int) -> Tables:
        """The widths of one branch; those of groups with fewer units than branches stay."""
        widths = tables.widths.copy()
        for at, group in enumerate(tables.coupling.groups):
            if group.name in self.tail.groups:
                kept = widths[:, at]
                part = kept // parts + (branch < kept % parts)
                widths[:, at] = np.where(kept >= parts, part, kept)
        return replace(tables, widths=widths)

    def _behind(self, tables: Tables, share: float, *, owned: bool) -> dict[str, np.ndarray]:
        """Costs of what lies behind the place, [n] each, with a ``share`` of the classes.

        Args:
            owned: without the weights that something before the place reads too.
        """
        n = len(tables.widths)
        out = {name: np.zeros(n) for name in ("macs", "params", "size_mb")}
        drops = bool(tables.dropped.any())
        for (node, _), term in tables.coupling.macs.items():
            if node in self.tail.nodes:
                product = np.full(n, term.factor * (share if node == self.tail.linear else 1.0))
                for labels in term.vectors:
                    product *= tables.count(labels)
                out["macs"] += product * tables.present(node) if drops else product
        for held in self.tail.held:
            if owned and held.shared:
                continue
            numel = tables.lengths(held.name).prod(axis=1) * (share if held.scores else 1.0)
            numel = numel * tables.present(held.node) if drops else numel
            out["params"] += numel * held.trainable
            out["size_mb"] += numel * held.bytes / 1e6
        return out


def find_tail(
    module: fx.GraphModule, coupling: Coupling, groups: Sequence[Group], place: ExitPlace
) -> BranchTail:
    """What lies behind ``place`` in the captured graph ``module``.

    Args:
        groups: proven ones.

    Raises:
        CutError: the scores do not come from a linear layer of their own.
    """
    graph = module.graph
    near, nodes = before(graph, place), list(graph.nodes)
    readers = _readers(nodes)
    linear = _linear(graph)
    ends = {argument: bind(linear).get(argument) for argument in ("weight", "bias")}
    for argument, node in ends.items():
        alone = isinstance(node, fx.Node) and node.op == "get_attr" and readers[node] == {linear}
        if not alone and (argument == "weight" or node is not None):
            raise CutError(f"the {argument} of the last layer, {linear.name}, must be a parameter of its own")
    targets = {argument: None if node is None else str(node.target) for argument, node in ends.items()}
    tensors: dict[str, fx.Node] = {}
    read: dict[str, set[bool]] = {}  # canonical name -> whether what reads it is behind the place
    for n in nodes:
        if n.op == "get_attr":
            name = coupling.canonical[str(n.target)]
            tensors[name] = n
            read.setdefault(name, set()).update(r.name not in near for r in readers[n])
    layers = {name.rpartition(".")[0] for name, sides in read.items() if True in sides}
    held = []
    for name, n in tensors.items():
        value = get_attribute(module, str(n.target))
        unread = not read[name] and name.rpartition(".")[0] in layers  # a counter of a layer, say
        if not isinstance(value, torch.Tensor) or not (True in read[name] or unread):
            continue
        scores = str(n.target) in targets.values()
        held.append(
            Held(
                name,
                n.name,
                isinstance(value, nn.Parameter),
                value.element_size(),
                False in read[name],
                scores,
            )
        )
    owned = {h.name for h in held if not h.shared}
    divided = [g.name for g in groups if all(m.parameter in owned for m in g.members)]
    steps = [n for n in nodes if n.op != "get_attr"]
    first = 1 + next(i for i, n in enumerate(steps) if n.name == place.after)
    held_by = memory(next(n for n in nodes if n.name == place.crossing))
    reads = [i for i, n in enumerate(steps) if any(memory(r) is held_by for r in n.all_input_nodes)]
    spans = first, max(first, reads[-1] + 1)
    behind = frozenset(n.name for n in steps if n.name not in near)
    assert targets["weight"] is not None
    return BranchTail(
        behind, spans, tuple(held), tuple(divided), linear.name, targets["weight"], targets["bias"]
    )


def _readers(nodes: Sequence[fx.Node]) -> dict[fx.Node, set[fx.Node]]:
    """Of every parameter: the calls on activations that read it, or what is computed from it."""
    free = free_nodes(nodes)
    readers: dict[fx.Node, set[fx.Node]] = {n: set() for n in nodes}
    for n in reversed(nodes):
        for i in n.all_input_nodes:
            if i in free:
                readers[i] |= readers[n] if n in free else {n}
    return readers


def _linear(graph: fx.Graph) -> fx.Node:
    (returned,) = next(n for n in graph.nodes if n.op == "output").all_input_nodes
    if returned.target is not torch.ops.aten.linear.default:
        raise CutError(
            f"its scores come from {returned.name}, {returned.target}; they must come from a linear layer, "
            "whose rows the branches divide"
        )
    return returned
