"""Random graphs for the tests of partitioners, and what they cost by definition."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from .graph import Graph, Node, Tensor


def random_graph(seed: int, nodes: int, *, input_bytes: int = 50) -> Graph:
    """A small network with skips, tensors of several readers, nodes of two tensors, and one or two inputs.

    Figures are integers, so that sums are exact; about one node in five has no work.
    """
    rng = np.random.default_rng(seed)
    names = [f"n{i}" for i in range(nodes)]
    made = [
        Node(name, float(rng.integers(1, 20) * (rng.random() > 0.2)), float(rng.integers(0, 20)))
        for name in names
    ]
    tensors = []
    for i in range(nodes - 1):
        for t in range(2 if rng.random() < 0.2 else 1):
            later = np.arange(i + 1, nodes)
            near = min(len(later), 1 + int(rng.integers(0, 4)))
            readers = rng.choice(
                later[: near + 1], size=min(len(later), int(rng.integers(1, 3))), replace=False
            )
            size = float(rng.integers(0, 50))
            tensors.append(Tensor(f"t{i}.{t}", size, names[i], tuple(names[r] for r in readers)))
    for t in range(int(rng.integers(1, 3))):
        readers = rng.choice(nodes, size=min(nodes, int(rng.integers(1, 3))), replace=False)
        size = float(rng.integers(0, input_bytes))
        tensors.append(Tensor(f"input{t}", size, None, tuple(names[r] for r in readers)))
    return Graph(tuple(made), tuple(tensors))


def planted_graph(seed: int, *, groups: int = 3, size: int = 20) -> tuple[Graph, np.ndarray]:
    """Groups of densely joined nodes, shuffled in the order, and which group each node is of, int64 [nodes].

    Two nodes of a group are joined with probability 0.5, of two groups with 0.03, by 10 bytes each.
    """
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(groups), size))
    names = [f"n{i}" for i in range(len(group))]
    tensors = [
        Tensor(f"{a}-{b}", 10.0, names[a], (names[b],))
        for a, b in itertools.combinations(range(len(group)), 2)
        if rng.random() < (0.5 if group[a] == group[b] else 0.03)
    ]
    return Graph(tuple(Node(name, 1.0, 1.0) for name in names), tuple(tensors)), group


def sent(graph: Graph, parts: Sequence[int], origin: int | None = None) -> float:
    """Traffic by definition: for every tensor and part, whether the part reads it and has to be sent it."""
    at = {node.name: part for node, part in zip(graph.nodes, parts, strict=True)}
    total = 0.0
    for tensor in graph.tensors:
        home = origin if tensor.source is None else at[tensor.source]
        for part in set(parts):
            if home is not None and part != home and any(at[name] == part for name in tensor.targets):
                total += tensor.bytes
    return total


def forward(graph: Graph, parts: Sequence[int]) -> bool:
    """Whether tensors only go to the same or later parts."""
    at = {node.name: part for node, part in zip(graph.nodes, parts, strict=True)}
    return all(at[t.source] <= at[name] for t in graph.tensors if t.source is not None for name in t.targets)


def assignments(nodes: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every way to put nodes into parts."""
    return itertools.product(range(parts), repeat=nodes)
