"""A network as the partitioners see it: nodes with work and memory, tensors with bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, slots=True)
class Node:
    """One operation, or several that must stay together."""

    name: str
    work: float = 0.0  # any unit, the same for all nodes: MACs, or ms on a device of speed 1
    memory: float = 0.0  # bytes that stay on the device that runs it (weights); adds up within a part
    peak: float = 0.0  # bytes beside these while it runs (activations); of a part the largest counts


@dataclass(frozen=True, slots=True)
class Tensor:
    """One value and who reads it. It is sent once to each part that reads it and does not make it."""

    name: str
    bytes: float  # as sent, per inference
    source: str | None  # node that makes it; None: an input of the network
    targets: tuple[str, ...]  # nodes that read it


@dataclass(frozen=True)
class Graph:
    """A directed acyclic graph of nodes joined by tensors.

    Args:
        nodes: in a topological order; stages are intervals of it.
        tensors: each made before it is read. What leaves the network is no tensor here.

    Raises:
        ValueError: no node; a name given twice or unknown; a figure that is negative or not finite; a tensor
            that is read before it is made, or by nobody.
    """

    nodes: tuple[Node, ...]
    tensors: tuple[Tensor, ...]

    @classmethod
    def of_edges(
        cls,
        nodes: Iterable[Node],
        edges: Iterable[tuple[str, str, float]],
        inputs: Iterable[tuple[str, float]] = (),
    ) -> Graph:
        """The graph in which every node makes one tensor.

        Args:
            nodes: in a topological order.
            edges: (from, to, bytes); all edges from one node are the same tensor.
            inputs: (to, bytes), every one a tensor of its own.

        Raises:
            ValueError: edges from one node differ in bytes; and as for :class:`Graph`.
        """
        sizes: dict[str, float] = {}
        readers: dict[str, list[str]] = {}
        for source, target, size in edges:
            if sizes.setdefault(source, size) != size:
                raise ValueError(
                    f"edges from {source!r} carry {sizes[source]:g} and {size:g} bytes, but a node makes one "
                    "tensor here; for several give `Graph(nodes, tensors)`"
                )
            readers.setdefault(source, []).append(target)
        tensors = [Tensor(f"input:{i}", size, None, (to,)) for i, (to, size) in enumerate(inputs)]
        tensors += [Tensor(s, sizes[s], s, tuple(dict.fromkeys(to))) for s, to in readers.items()]
        return cls(tuple(nodes), tuple(tensors))

    def __post_init__(self) -> None:
        if not self.nodes:
            raise ValueError("a graph needs at least one node, got none")
        for what, names in (
            ("node", [n.name for n in self.nodes]),
            ("tensor", [t.name for t in self.tensors]),
        ):
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ValueError(f"two {what}s are called {twice!r}; give every {what} a name of its own")
        for node in self.nodes:
            _check_figure(f"work of node {node.name!r}", node.work)
            _check_figure(f"memory of node {node.name!r}", node.memory)
            _check_figure(f"peak of node {node.name!r}", node.peak)
        for tensor in self.tensors:
            _check_figure(f"bytes of tensor {tensor.name!r}", tensor.bytes)
            if not tensor.targets:
                raise ValueError(f"nobody reads tensor {tensor.name!r}; leave it out")
            if len(set(tensor.targets)) < len(tensor.targets):
                raise ValueError(f"tensor {tensor.name!r} names a reader twice: {list(tensor.targets)}")
            source = -1 if tensor.source is None else self.position(tensor.source)
            for name in tensor.targets:
                if self.position(name) <= source:
                    raise ValueError(
                        f"nodes must be in topological order: {name!r} reads what {tensor.source!r} makes, "
                        "but does not come after it"
                    )

    def __len__(self) -> int:
        return len(self.nodes)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {node.name: i for i, node in enumerate(self.nodes)}

    def position(self, name: str) -> int:
        """Place of a node in the order.

        Raises:
            ValueError: there is none of this name.
        """
        try:
            return self._positions[name]
        except KeyError:
            known = ", ".join(repr(n.name) for n in self.nodes[:3])
            raise ValueError(f"the graph has no node {name!r}; its nodes are {known}, ...") from None

    @cached_property
    def work(self) -> np.ndarray:
        """float64 [nodes]."""
        return np.array([node.work for node in self.nodes], dtype=np.float64)

    @cached_property
    def memory(self) -> np.ndarray:
        """float64 [nodes], bytes."""
        return np.array([node.memory for node in self.nodes], dtype=np.float64)

    @cached_property
    def peaks(self) -> np.ndarray:
        """float64 [nodes], bytes."""
        return np.array([node.peak for node in self.nodes], dtype=np.float64)

    @cached_property
    def links(self) -> tuple[tuple[float, int, tuple[int, ...]], ...]:
        """Every tensor as (bytes, position of its source or -1, positions of its readers, rising)."""
        return tuple(
            (
                float(t.bytes),
                -1 if t.source is None else self.position(t.source),
                tuple(sorted(self.position(name) for name in t.targets)),
            )
            for t in self.tensors
        )

    @cached_property
    def crossing(self) -> np.ndarray:
        """float64 [nodes + 1]: bytes of the tensors made before node ``i`` (or given) and read from it on.

        Entry 0 is what the inputs weigh, the last one 0.
        """
        change = np.zeros(len(self) + 2)
        for size, source, targets in self.links:
            change[source + 1] += size
            change[targets[-1] + 1] -= size
        live = np.cumsum(change)[: len(self) + 1]
        live[-1] = 0.0  # nothing is read after the last node; leaves no rounding
        return np.maximum(live, 0.0)


def _check_figure(what: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{what} must be a finite number, 0 or more, got {value!r}")
