"""Kernighan and Lin's bisection, again and again."""

from __future__ import annotations

import numpy as np

from .graph import Graph
from .spectral import affinity, check_parts


def kernighan_lin(graph: Graph, parts: int, *, seed: int = 0) -> np.ndarray:
    """Clusters of about equally many nodes, by bisection of the largest until there are enough.

    Exchanges pairs of nodes between two halves while that lessens the bytes between them (Kernighan and Lin,
    Bell System Technical Journal 49, 1970; networkx). It knows no work and no memory: balance is for
    :func:`refine` to mend.

    Args:
        parts: at most the number of nodes.

    Returns:
        int64 [nodes], each in [0, parts).

    Raises:
        ValueError: more parts than nodes.
    """
    import networkx as nx

    check_parts(graph, parts)
    between = affinity(graph)
    whole = nx.Graph()
    whole.add_nodes_from(range(len(graph)))
    rows, columns = np.nonzero(np.triu(between))
    whole.add_weighted_edges_from(
        (int(a), int(b), float(between[a, b])) for a, b in zip(rows, columns, strict=True)
    )
    clusters = [list(range(len(graph)))]
    while len(clusters) < parts:
        largest = max(clusters, key=len)
        clusters.remove(largest)
        half = len(largest) // 2
        halves = nx.community.kernighan_lin_bisection(
            whole.subgraph(largest), (set(largest[:half]), set(largest[half:])), max_iter=20, seed=seed
        )
        clusters += [sorted(part) for part in halves]
    found = np.empty(len(graph), dtype=np.int64)
    for name, cluster in enumerate(sorted(clusters)):
        found[cluster] = name
    return found
