"""Refinement of partitions by moves of single nodes: Kernighan-Lin, Fiduccia-Mattheyses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .graph import Graph, Limits
from .spectral import affinity, check_parts

STALE = 100  # moves of a pass without a new best, after which it ends


def refine(
    graph: Graph,
    start: Sequence[int] | np.ndarray,
    limits: Limits,
    *,
    ordered: bool = False,
    origin: int | None = None,
    passes: int = 20,
) -> np.ndarray:
    """A partition with at most the traffic of ``start``, or one that keeps the limits if that does not.

    A pass moves nodes one by one, each time by the best move left even if it is a bad one, no node twice, and
    keeps the best state it met; passes go on while they help (Kernighan and Lin, Bell System Technical
    Journal 49, 1970, section 3; single moves instead of swaps and a tensor as one net: Fiduccia and
    Mattheyses, DAC 1982). Within a pass a part may exceed its limit by one node, without which equal parts
    could never exchange nodes.

    Args:
        start: [nodes], need not keep the limits; with ``ordered`` its tensors go to the same or later parts.
        ordered: tensors only go to the same or later parts.
        origin: the part that has the inputs; None: they are free.

    Returns:
        int64 [nodes]; whether it keeps the limits is for ``limits.fits`` to say.
    """
    state = _State(graph, np.array(start, dtype=np.int64), limits, ordered, origin)
    for _ in range(passes):
        if not state.improve():
            break
    return state.parts


class _State:
    def __init__(
        self, graph: Graph, parts: np.ndarray, limits: Limits, ordered: bool, origin: int | None
    ) -> None:
        self.parts, self.limits, self.ordered, self.origin = parts, limits, ordered, origin
        self.n, self.k = len(graph), limits.parts
        self.tensors = [link for link in graph.links if link[1] >= 0 or origin is not None]
        self.touched: list[list[int]] = [[] for _ in range(self.n)]  # tensors of each node, made or read
        for t, (_, source, targets) in enumerate(self.tensors):
            for v in targets if source < 0 else (source, *targets):
                self.touched[v].append(t)
        self.readers = np.zeros((len(self.tensors), self.k), dtype=np.int64)  # of each tensor in each part
        for t, (_, _, targets) in enumerate(self.tensors):
            np.add.at(self.readers[t], parts[list(targets)], 1)
        pairs = [(source, v) for _, source, targets in self.tensors if source >= 0 for v in targets]
        self.pairs = np.array(pairs, dtype=np.int64).reshape(-1, 2)  # maker, reader
        self.loads = limits.loads(parts)
        # Excess is counted in shares of the whole, so that work and memory compare.
        self.unit = np.maximum(limits.weights.sum(axis=0), 1e-300)
        self.slack = float((limits.weights / self.unit).max())
        self.change = np.array([self._changes(v) for v in range(self.n)])  # bytes, of moving v to p

    def improve(self) -> bool:
        """One pass; whether it found something better."""
        free = np.ones(self.n, dtype=bool)
        moves: list[tuple[int, int]] = []  # node, part it came from
        value, start_excess = 0.0, self._excess(self.loads)
        best, kept, excess = (start_excess, 0.0), 0, start_excess
        while free.any() and len(moves) - kept < STALE:
            move = self._best_move(free, excess, fits=best[0] <= 1e-12)
            if move is None:
                break
            v, p = move
            moves.append((v, int(self.parts[v])))
            free[v] = False
            value += float(self.change[v, p])
            self._move(v, p)
            excess = self._excess(self.loads)
            if (excess, value) < (best[0] - 1e-12, np.inf) or (
                excess <= best[0] + 1e-12 and value < best[1] - 1e-9 * (1 + abs(best[1]))
            ):
                best, kept = (excess, value), len(moves)
        for v, p in reversed(moves[kept:]):
            self._move(v, p)
        return kept > 0

    def _best_move(self, free: np.ndarray, excess: float, *, fits: bool) -> tuple[int, int] | None:
        """The move of least added bytes that keeps the limits but for the slack, or that mends an excess.

        ``fits``: whether the pass has met a partition within the limits; until then mending comes first.
        """
        after = self._excess_after()
        allowed = free[:, None] & self._domain()
        fine = allowed & (after < excess - 1e-12)
        if fits or not fine.any():
            fine = allowed & (after <= max(self.slack, 1e-12))
        if not fine.any():
            return None
        cost = np.where(fine, self.change, np.inf)
        ties = np.where(cost <= cost.min(), after, np.inf)
        v, p = np.unravel_index(int(np.argmin(ties)), ties.shape)
        return int(v), int(p)

    def _domain(self) -> np.ndarray:
        """bool [nodes, parts]: parts that a node may move to."""
        part = np.arange(self.k)[None, :]
        other = part != self.parts[:, None]
        if not self.ordered:
            return other
        low = np.zeros(self.n, dtype=np.int64)
        high = np.full(self.n, self.k - 1)
        np.maximum.at(low, self.pairs[:, 1], self.parts[self.pairs[:, 0]])
        np.minimum.at(high, self.pairs[:, 0], self.parts[self.pairs[:, 1]])
        return other & (part >= low[:, None]) & (part <= high[:, None])

    def _excess(self, loads: np.ndarray) -> float:
        return float((np.maximum(loads - self.limits.slack, 0.0) / self.unit).sum())

    def _excess_after(self) -> np.ndarray:
        """float64 [nodes, parts]: the excess when a node has moved to a part."""
        weights, slack = self.limits.weights, self.limits.slack
        over = np.maximum(self.loads - slack, 0.0) / self.unit  # [parts, 2]
        left = self.loads[self.parts] - weights - slack[self.parts]
        leaving = np.maximum(left, 0.0) / self.unit - over[self.parts]  # [nodes, 2]
        joined = np.maximum(self.loads[None] + weights[:, None] - slack[None], 0.0) / self.unit - over[None]
        return over.sum() + leaving.sum(axis=1)[:, None] + joined.sum(axis=2)

    def _move(self, v: int, p: int) -> None:
        before = int(self.parts[v])
        self.parts[v] = p
        self.loads[before] -= self.limits.weights[v]
        self.loads[p] += self.limits.weights[v]
        near = {v}
        for t in self.touched[v]:
            _, source, targets = self.tensors[t]
            if source != v:
                self.readers[t, before] -= 1
                self.readers[t, p] += 1
            near.update(targets if source < 0 else (source, *targets))
        for u in near:
            self.change[u] = self._changes(u)

    def _changes(self, v: int) -> np.ndarray:
        """float64 [parts]: bytes that moving v to each part adds; 0 for the part it is in."""
        a = int(self.parts[v])
        change = np.zeros(self.k)
        for t in self.touched[v]:
            size, source, _ = self.tensors[t]
            readers = self.readers[t]
            if source == v:  # parts other than its own that read it
                change += size * (float(readers[a] > 0) - (readers > 0))
                continue
            home = self.origin if source < 0 else self.parts[source]
            joins = size * (readers == 0)
            joins[home] = 0.0
            leaves = size if a != home and readers[a] == 1 else 0.0
            change += joins - leaves
        change[a] = 0.0
        return change


# -- Kernighan and Lin's bisection, again and again -----------------------------------------------------


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
