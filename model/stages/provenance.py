"""Provenance: the captured node that each call of the functional graph is, and its size by widths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from ..coupling import Coupling
from ..coupling.groups import Lengths
from ..coupling.units import Vector
from ..coupling.walk import operator_name
from .functional import Functional

Sized = tuple[float, tuple[Vector, ...]]  # bytes: a factor, and the labels of the axes that shrink


class Provenance:
    """Of the calls of one functional graph."""

    def __init__(self, network: Functional, coupling: Coupling) -> None:
        self._network, self._coupling = network, coupling
        self._captured = {n.name: n for n in network.captured.graph_module.graph.nodes}

    def source(self, n: fx.Node) -> str | None:
        """The captured node that ``n`` came from; ``None`` where that cannot be told."""
        if n.op == "placeholder":
            return n.name if n.name in self._captured else None
        name = next((s.name for s in reversed(n.meta.get("from_node", ())) if s.name in self._captured), None)
        return name if n.op == "call_function" else None

    def functional(self, name: str, calls: dict[str, fx.Node]) -> fx.Node | None:
        """The call that gives the value of a captured node, which may be its view by another name."""
        node: fx.Node | None = self._captured[name]
        while node is not None and node.name not in calls:
            first = node.args[0] if node.args else None
            node = first if isinstance(first, fx.Node) else None
        return None if node is None else calls[node.name]

    def step(self, name: str) -> int:
        """Position of a captured node among those that compute (see :class:`Lifetimes`)."""
        if not hasattr(self, "_steps"):
            nodes = [n for n in self._captured.values() if n.op != "get_attr"]
            self._steps = {n.name: i for i, n in enumerate(nodes)}
        return self._steps[name]

    def bytes(self, n: fx.Node) -> Sized | None:
        """Of a tensor, for one sample, in dense form; ``None`` where its axes cannot be followed."""
        value, lengths = n.meta.get("val"), self._lengths(n)
        if not isinstance(value, torch.Tensor) or lengths is None:
            return None
        return self._bytes(value, lengths)

    def all_bytes(self, n: fx.Node) -> list[Sized]:
        """Of all tensors that a call gives; those that cannot be followed by the example's sizes."""
        value = n.meta.get("val")
        if isinstance(value, torch.Tensor):
            return [self.bytes(n) or self._on_example(value)]
        if not isinstance(value, (list, tuple)):
            return []
        pieces = self._coupling.pieces.get(self.source(n) or "", [])
        out = []
        for i, part in enumerate(value):
            if isinstance(part, torch.Tensor):
                size = self._bytes(part, pieces[i]) if i < len(pieces) else None
                out.append(size or self._on_example(part))
        return out

    def _bytes(self, value: torch.Tensor, lengths: Lengths) -> Sized | None:
        network = self._network
        sizes = [network.size(s) for s in value.shape]
        if any(s is None for s in sizes) or len(sizes) != len(lengths):
            return None
        samples = network.captured.batch
        factor = value.element_size() / (1 if network.batch is not None else samples)
        vectors = []
        for (k, c), (length, labels) in zip((s for s in sizes if s is not None), lengths, strict=True):
            if k * samples + c != length or (k and labels is not None):
                return None
            if labels is None:
                factor *= k + c
            else:
                vectors.append(labels)
        return factor, tuple(vectors)

    def held(self, target: str) -> tuple[str, Sized]:
        """Canonical name of what a functional graph reads by ``get_attr``, and its bytes."""
        name = self._coupling.canonical.get(target, target)
        value = self._network.state.get(target, self._network.captured.program.state_dict.get(target))
        if not isinstance(value, torch.Tensor):
            return name, (0.0, ())
        axes: Sequence[Vector | None] = self._coupling.parameters.get(name, (None,) * value.dim())
        factor = float(value.element_size())
        for length, labels in zip(value.shape, axes, strict=True):
            factor *= length if labels is None else 1
        return name, (factor, tuple(v for v in axes if v is not None))

    def _on_example(self, value: torch.Tensor) -> Sized:
        """Of one sample; an axis whose length the data decide counts once."""
        samples = self._network.captured.batch
        count = float(value.element_size()) / samples
        for size in value.shape:
            k, c = self._network.size(size) or (0, 1)
            count *= k * samples + c
        return count, ()

    def _lengths(self, n: fx.Node) -> Lengths | None:
        source = self.source(n)
        if source is None:
            return None
        if n.op == "call_function" and operator_name(n.target)[0] == "getitem":
            pieces = self._coupling.pieces.get(source)
            index = n.args[1]
            if pieces is not None and isinstance(index, int) and index < len(pieces):
                return pieces[index]
        return self._coupling.tensors.get(source)
