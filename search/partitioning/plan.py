"""A partition with what is known about how good it is, and the figures of any partition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .graph import Graph

SAME = 1e-9  # relative difference that rounding may make


@dataclass(frozen=True, slots=True)
class Plan:
    """Which part every node belongs to, with a certificate: no partition has less than ``bound``."""

    parts: tuple[int, ...]  # [nodes], each in [0, number of parts)
    value: float  # of the objective, to minimise, in its unit (ms, bytes)
    bound: float  # proven lower bound on the objective, <= value
    method: str  # what found it
    visited: int = 0  # nodes of a search tree, 0 where there was none

    @property
    def gap(self) -> float:
        """(value - bound) / value in [0, 1]; 0 for an optimal plan."""
        return 0.0 if self.optimal else (self.value - self.bound) / self.value

    @property
    def optimal(self) -> bool:
        return self.value - self.bound <= SAME * abs(self.value)

    def names(self, graph: Graph, part: int) -> tuple[str, ...]:
        """The nodes of one part, in order."""
        return tuple(node.name for node, p in zip(graph.nodes, self.parts, strict=True) if p == part)


def parts_of(boundaries: Sequence[int] | np.ndarray, nodes: int) -> np.ndarray:
    """int64 [nodes]: intervals of the order that begin at 0 and at each boundary.

    Args:
        boundaries: rising; a boundary that repeats leaves a part without nodes.
    """
    return np.searchsorted(np.asarray(boundaries, dtype=np.int64), np.arange(nodes), side="right")


def traffic(graph: Graph, parts: Sequence[int] | np.ndarray, *, host: int | None = None) -> float:
    """Bytes that parts send each other for one inference, each tensor once per receiving part.

    Args:
        parts: [nodes].
        host: the part that has the inputs, which it sends like tensors of its own; None: inputs are free.
    """
    total = 0.0
    for size, source, targets in graph.links:
        if source < 0 and host is None:
            continue
        home = host if source < 0 else int(parts[source])
        total += size * len({int(parts[t]) for t in targets} - {home})
    return total


def per_part(figures: np.ndarray, parts: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
    """float64 [count]: sums of a figure of the nodes (work, memory, ms) over each part."""
    return np.bincount(np.asarray(parts, dtype=np.int64), weights=figures, minlength=count)
