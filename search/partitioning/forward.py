"""Parts whose tensors only go forward: stages that run one after another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .graph import Graph


def forward_parts(graph: Graph, clusters: Sequence[int] | np.ndarray) -> np.ndarray:
    """The clusters in the order of their mean place, every node moved behind what it reads.

    Returns:
        int64 [nodes]: tensors go to the same or later parts. Balance is for :func:`refine` to mend.
    """
    clusters = np.asarray(clusters, dtype=np.int64)
    names = np.unique(clusters)
    places = [float(np.flatnonzero(clusters == name).mean()) for name in names]
    rank = {int(names[i]): place for place, i in enumerate(np.argsort(places, kind="stable"))}
    parts = np.array([rank[int(c)] for c in clusters], dtype=np.int64)
    # By source, since the order of the nodes is topological and that of the tensors need not be.
    for _, source, targets in sorted(graph.links, key=lambda link: link[1]):
        if source >= 0:
            at = list(targets)
            parts[at] = np.maximum(parts[at], parts[source])
    return parts


def in_order(graph: Graph, parts: Sequence[int] | np.ndarray) -> tuple[Graph, np.ndarray]:
    """The graph with its nodes in the order of their parts, in which these are intervals, and the parts.

    Raises:
        ValueError: a tensor goes to an earlier part.
    """
    order = np.argsort(np.asarray(parts), kind="stable")
    return Graph(tuple(graph.nodes[i] for i in order), graph.tensors), np.asarray(parts)[order]
