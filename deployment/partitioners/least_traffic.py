"""Least traffic between parts that keep balance and memory: exact for small graphs, else with a gap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .chain import best_intervals
from .graph import CostedDevice, Graph, Limits, Plan, limits, parts_of, traffic
from .refine import kernighan_lin, refine
from .russian_doll import russian_doll
from .spectral import eigenvalue_bound, fiedler_order, mincut_pool, spectral


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


# -- Least traffic between parts that keep balance and memory: exact for small graphs, else with a gap

METHODS = ("auto", "intervals", "spectral", "kernighan-lin", "gcn")


def least_traffic(
    graph: Graph,
    parts: int | Sequence[CostedDevice],
    *,
    imbalance: float | None = 0.1,
    ordered: bool = False,
    origin: int | None = None,
    method: str = "auto",
    visits: int = 100_000,
    seed: int = 0,
) -> Plan:
    """Parts that send each other few bytes, with what is proven about how few they can be.

    Starts (intervals of the order, spectral ones, a GCN's) are refined by moves of single nodes; then
    branch and bound improves on the best of them or proves it, as far as its visits reach. The plan's bound
    is the larger of what the search and the eigenvalues prove. A part may stay empty where the limits allow
    it.

    Args:
        parts: how many equal parts, or devices; work is shared in proportion to their speeds.
        imbalance: a part's work is at most (1 + imbalance) times its share; None: any.
        ordered: tensors only go to the same or later parts: stages that run one after another.
        origin: the part that has the inputs, whose upload then counts; None: inputs are free.
        method: "intervals", "spectral", "kernighan-lin" or "gcn" starts from that alone; "auto" from
            intervals, and spectrally unless ``ordered``. Clusters know no order: with ``ordered`` every node
            is moved behind what it reads (:func:`forward_parts`).
        visits: of the branch and bound; 0: none. A small graph needs some thousands, and what is too large
            to be solved takes about 15 s for a million.
        seed: of k-means and the GCN.

    Raises:
        ValueError: no partition keeps the limits, or none was found; bad arguments.
    """
    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}, got {method!r}")
    bound_by = limits(graph, parts, imbalance)
    if origin is not None and not 0 <= origin < bound_by.parts:
        raise ValueError(f"origin is one of the parts 0 to {bound_by.parts - 1}, got {origin}")
    found = [
        (refine(graph, start, bound_by, ordered=ordered, origin=origin), name)
        for start, name in _starts(graph, bound_by, method, ordered, seed)
    ]
    fitting = [(traffic(graph, p, origin=origin), name, p) for p, name in found if bound_by.fits(p)]
    value, name, best = min(fitting, key=lambda item: item[0]) if fitting else (np.inf, "", None)
    outcome = russian_doll(graph, bound_by, ordered=ordered, origin=origin, start=best, visits=visits)
    if outcome.parts is None:
        raise ValueError(_impossible(bound_by, outcome.complete, visits))
    exact = traffic(graph, outcome.parts, origin=origin)
    if best is None or exact < value:
        value, name = exact, "branch and bound"
    bound = outcome.bound if outcome.complete else max(outcome.bound, eigenvalue_bound(graph, bound_by))
    return Plan(outcome.parts, value, min(bound, value), name, outcome.visited)


def _starts(
    graph: Graph, limits: Limits, method: str, ordered: bool, seed: int
) -> list[tuple[np.ndarray, str]]:
    """Partitions to refine, each with its name; they need not keep the limits."""
    count = min(limits.parts, len(graph))
    starts = []

    def named(clusters: np.ndarray) -> np.ndarray:
        return forward_parts(graph, clusters) if ordered else _by_size(clusters, limits)

    if method in ("auto", "intervals"):
        starts.append((_equal_work(np.arange(len(graph)), limits), "intervals of equal work, refined"))
        cut = _cheapest_intervals(graph, limits)
        if cut is not None:
            starts.append((cut, "intervals of least traffic, refined"))
    if method == "spectral" or (method == "auto" and not ordered):
        starts.append((named(spectral(graph, count, seed=seed)), "spectral clusters, refined"))
        along = _equal_work(fiedler_order(graph), limits)
        starts.append((forward_parts(graph, along) if ordered else along, "spectral order, refined"))
    if method == "kernighan-lin":
        starts.append((named(kernighan_lin(graph, count, seed=seed)), "Kernighan-Lin, refined"))
    if method == "gcn":
        starts.append((named(mincut_pool(graph, count, seed=seed)), "GCN, refined"))
    return starts


def _equal_work(order: np.ndarray, limits: Limits) -> np.ndarray:
    """int64 [nodes]: intervals of an order of the nodes, their work in proportion to the limits."""
    work = limits.weights[order, 0]
    shares = limits.caps[:, 0] if np.isfinite(limits.caps[:, 0]).all() else np.ones(limits.parts)
    ends = np.cumsum(shares)[:-1] / max(float(shares.sum()), 1e-300) * work.sum()
    parts = np.empty(len(order), dtype=np.int64)
    parts[order] = np.searchsorted(ends, np.cumsum(work) - work / 2, side="right")
    return parts


def _cheapest_intervals(graph: Graph, limits: Limits) -> np.ndarray | None:
    """Intervals of the order, one a part, within the limits and with the least bytes at their borders."""
    n = len(graph)
    loads = np.concatenate([np.zeros((1, 2)), np.cumsum(limits.weights, axis=0)])
    starts = np.arange(n + 1)

    def cost(k: int, rows: slice) -> np.ndarray:
        ends = starts[rows, None]
        load = loads[rows, None] - loads[None]  # [rows, n + 1, 2]
        fine = (load <= limits.slack[k]).all(axis=2) & (starts[None] <= ends)
        sent = np.where(starts[rows] < n, graph.crossing[rows], 0.0)[:, None]
        return np.where(fine, np.where(starts[None] < ends, sent, 0.0), np.inf)

    value, ends = best_intervals(n + 1, limits.parts, cost, np.add)
    return parts_of(ends[:-1], n) if np.isfinite(value) else None


def _by_size(clusters: np.ndarray, limits: Limits) -> np.ndarray:
    """Clusters renamed so that those with more work are the parts that may have more."""
    work = limits.loads(clusters)[:, 0]
    names = np.empty(limits.parts, dtype=np.int64)
    names[np.argsort(-work, kind="stable")] = np.argsort(-limits.caps[:, 0], kind="stable")
    return names[clusters]


def _impossible(limits: Limits, proven: bool, visits: int) -> str:
    needed, held = limits.weights.sum(axis=0), limits.caps.sum(axis=0)
    what = "no partition keeps the limits (proven)" if proven else f"found none within {visits:,} visits"
    return (
        f"{what}: {limits.parts} parts hold at most {held[0]:,.6g} work and {held[1]:,.6g} bytes, the "
        f"network has {needed[0]:,.6g} and {needed[1]:,.6g}, and its nodes cannot be divided; raise "
        "imbalance or a memory limit, or ask for other parts"
    )
