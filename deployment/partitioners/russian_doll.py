"""Least traffic exactly: branch and bound over suffixes of the order, each solved once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .graph import SAME, Graph, Limits, traffic


@dataclass(frozen=True, slots=True)
class ExactResult:
    """What the search found and what it proved."""

    parts: tuple[int, ...] | None  # the best partition known, None if none was met
    bound: float  # no partition has less traffic; inf: there is no partition
    visited: int  # assignments of a node to a part that were tried
    complete: bool  # whether the search ended before its allowance


def russian_doll(
    graph: Graph,
    limits: Limits,
    *,
    ordered: bool = False,
    origin: int | None = None,
    start: Sequence[int] | np.ndarray | None = None,
    visits: int = 100_000,
) -> ExactResult:
    """Branch and bound in topological order, the last node first, then the last two, and so on.

    When the nodes before i are placed, the traffic of a complete partition is at least the sum of
    1. what they have sent already;
    2. for every later node that reads their tensors, the least it can cost to bring those to it, a tensor
       shared between its remaining readers;
    3. the optimum of the nodes from i on alone: their tensors are others than those of 1 and 2.
    The third is known when suffixes are solved from the shortest on (Russian doll search: Verfaillie,
    Lemaitre and Schiex, AAAI 1996). Every suffix's optimum is also a lower bound of the whole, so that a
    search that is cut short still proves something.

    Args:
        ordered: tensors only go to the same or later parts (stages that run one after another).
        origin: the part that has the inputs; None: they are free.
        start: a partition known to keep the limits.
        visits: allowance of assignments tried.
    """
    search = _Search(graph, limits, ordered, origin, visits)
    best: tuple[int, ...] | None = None if start is None else tuple(int(p) for p in start)
    value = np.inf if best is None else traffic(graph, best, origin=origin)
    return search.run(best, value)


class _Search:
    def __init__(self, graph: Graph, limits: Limits, ordered: bool, origin: int | None, visits: int) -> None:
        self.graph, self.ordered, self.origin, self.visits = graph, ordered, origin, visits
        self.n, self.k = len(graph), limits.parts
        self.weights = limits.weights.tolist()
        self.caps = limits.slack.tolist()
        used = [link for link in graph.links if link[1] >= 0 or origin is not None]
        self.size = [size for size, _, _ in used]
        self.source = [source for _, source, _ in used]
        self.makes: list[list[int]] = [[] for _ in range(self.n)]
        self.reads: list[list[int]] = [[] for _ in range(self.n)]
        for t, (_, source, targets) in enumerate(used):
            if source >= 0:
                self.makes[source].append(t)
            for target in targets:
                self.reads[target].append(t)
        self.readers = [targets for _, _, targets in used]
        # Parts with equal limits are interchangeable while empty, unless order or inputs tell them apart.
        kinds = [
            (tuple(cap), k if ordered or k == origin else -1) for k, cap in enumerate(limits.caps.tolist())
        ]
        self.twins = [[q for q in range(k) if kinds[q] == kinds[k]] for k in range(self.k)]
        self.later = [self._readers_after(v) for v in range(self.n)]
        self.rest = [0.0] * (self.n + 1)  # optimum of each suffix, or a lower bound of it
        self.visited = 0

    def run(self, best: tuple[int, ...] | None, value: float) -> ExactResult:
        tail: tuple[int, ...] | None = ()
        for first in range(self.n - 1, -1, -1):
            whole = first == 0
            known, limit = self._extended(tail, first)
            if best is not None:
                # The known partition, cut down to this suffix, is a partition of it.
                cut = value if whole else self._traffic(best[first:], first)
                if cut < limit:
                    known, limit = best[first:], cut
            tail, optimum, finished = self._solve(first, known, limit)
            if not finished:
                self.rest[first] = self.rest[first + 1]
                if whole and tail is not None:
                    best = tail
                return ExactResult(best, self.rest[first], self.visited, False)
            self.rest[first] = optimum
            if tail is None:  # not even these nodes fit
                return ExactResult(None, np.inf, self.visited, True)
        return ExactResult(tail, self.rest[0], self.visited, True)

    def _extended(self, tail: tuple[int, ...] | None, first: int) -> tuple[tuple[int, ...] | None, float]:
        """The best partition of the nodes after ``first`` with ``first`` put where it is cheapest."""
        best, least = None, np.inf
        if tail is None:
            return best, least
        for part in range(self.k):
            parts = (part, *tail)
            if self._possible(parts, first):
                value = self._traffic(parts, first)
                if value < least:
                    best, least = parts, value
        return best, least

    def _possible(self, parts: tuple[int, ...], first: int) -> bool:
        loads = [[0.0, 0.0] for _ in range(self.k)]
        for v, p in enumerate(parts, first):
            loads[p][0] += self.weights[v][0]
            loads[p][1] += self.weights[v][1]
        if any(load[r] > cap[r] for load, cap in zip(loads, self.caps, strict=True) for r in (0, 1)):
            return False
        return not self.ordered or all(
            parts[reader - first] >= parts[0] for t in self.makes[first] for reader in self.readers[t]
        )

    def _traffic(self, parts: tuple[int, ...], first: int) -> float:
        """Of the tensors made from ``first`` on, and of the inputs when that is the whole graph."""
        total = 0.0
        for size, source, readers in zip(self.size, self.source, self.readers, strict=True):
            if source >= first or (first == 0 and source < 0):
                home = parts[source - first] if source >= 0 else self.origin
                total += size * len({parts[r - first] for r in readers} - {home})
        return total

    def _solve(
        self, first: int, known: tuple[int, ...] | None, limit: float
    ) -> tuple[tuple[int, ...] | None, float, bool]:
        """The best partition of the nodes from ``first`` on, its traffic, and whether that is proven."""
        floor = self.rest[first + 1]
        if known is not None and limit <= floor * (1 + SAME):
            return known, limit, True
        n, k = self.n, self.k
        parts = [-1] * n
        used = [0] * k  # nodes in each part
        loads = [[0.0, 0.0] for _ in range(k)]
        present = [0] * len(self.size)  # bits: the parts that have each tensor; 0 before it is made
        if first == 0 and self.origin is not None:
            for t, source in enumerate(self.source):
                if source < 0:
                    present[t] = 1 << self.origin
        spent = [0.0] * (n + 1)
        undo: list[list[tuple[int, int]]] = [[] for _ in range(n)]
        options: list[list[tuple[float, float, int]]] = [[] for _ in range(n)]
        v = first
        options[v] = self._options(v, parts, used, loads, present)
        while True:
            if parts[v] >= 0:  # take back what was tried here last
                p = parts[v]
                parts[v] = -1
                used[p] -= 1
                loads[p][0] -= self.weights[v][0]
                loads[p][1] -= self.weights[v][1]
                for t, before in reversed(undo[v]):
                    present[t] = before
            if not options[v]:
                if v == first:
                    return known, limit, True
                v -= 1
                continue
            added, _, p = options[v].pop()
            if self.visited >= self.visits:
                return known, limit, False
            self.visited += 1
            parts[v] = p
            used[p] += 1
            loads[p][0] += self.weights[v][0]
            loads[p][1] += self.weights[v][1]
            undo[v] = [(t, present[t]) for t in (*self.reads[v], *self.makes[v])]
            for t in self.reads[v]:
                if present[t]:
                    present[t] |= 1 << p
            for t in self.makes[v]:
                present[t] = 1 << p
            spent[v + 1] = spent[v] + added
            ahead = self._ahead(v, parts, loads, present)
            if spent[v + 1] + ahead + self.rest[v + 1] >= limit * (1 - SAME):
                continue
            if v + 1 == n:
                known, limit = tuple(parts[first:]), spent[n]
                if limit <= floor * (1 + SAME):
                    return known, limit, True
                continue
            v += 1
            options[v] = self._options(v, parts, used, loads, present)

    def _options(
        self, v: int, parts: list[int], used: list[int], loads: list[list[float]], present: list[int]
    ) -> list[tuple[float, float, int]]:
        """(bytes sent to v, load, part) of the parts that v may be in, the best last."""
        found = []
        for p in range(self._earliest(v, parts), self.k):
            if not self._room(v, p, loads):
                continue
            if not used[p] and any(not used[q] for q in self.twins[p]):
                continue
            added = sum(self.size[t] for t in self.reads[v] if present[t] and not present[t] >> p & 1)
            found.append((added, loads[p][0], p))
        found.sort(reverse=True)
        return found

    def _earliest(self, v: int, parts: list[int]) -> int:
        """The first part that v may be in."""
        if not self.ordered:
            return 0
        return max([0, *(parts[self.source[t]] for t in self.reads[v] if self.source[t] >= 0)])

    def _room(self, v: int, p: int, loads: list[list[float]]) -> bool:
        weights, load, cap = self.weights[v], loads[p], self.caps[p]
        return load[0] + weights[0] <= cap[0] and load[1] + weights[1] <= cap[1]

    def _ahead(self, placed: int, parts: list[int], loads: list[list[float]], present: list[int]) -> float:
        """Least bytes that tensors made so far still cost nodes after ``placed``; inf if one fits nowhere."""
        total = 0.0
        for v, tensors in self.later[placed]:
            least = np.inf
            for p in range(self._earliest(v, parts), self.k):
                if self._room(v, p, loads):
                    missing = sum(share for t, share in tensors if present[t] and not present[t] >> p & 1)
                    least = min(least, missing)
            total += least
        return total

    def _readers_after(self, placed: int) -> list[tuple[int, list[tuple[int, float]]]]:
        """Nodes after ``placed`` and the tensors made up to it that they read: (tensor, share of bytes)."""
        wants: dict[int, list[tuple[int, float]]] = {}
        for t, readers in enumerate(self.readers):
            if self.source[t] <= placed < readers[-1]:
                later = [reader for reader in readers if reader > placed]
                for reader in later:
                    wants.setdefault(reader, []).append((t, self.size[t] / len(later)))
        return list(wants.items())
