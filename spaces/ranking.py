"""Which units go first, kept under a name; and the candidates that take all widths of a space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .choice import Candidate
from .coupling import Group
from .drop import Drop
from .importance import CALIBRATED, Criterion, criterion, order
from .importance.cluster import Cluster
from .importance.measured import Evidence, Measure
from .mending import Mending
from .proving.proof import separating
from .prune import Prune
from .repair.merging import Merging
from .space import Space
from .surgery import Surgeon


def rank(
    importance: str | Criterion | Measure,
    groups: Sequence[Group],
    orders: dict[str, dict[str, np.ndarray]],
    surgeon: Surgeon,
    mending: Mending,
    evidence: Evidence,
    *,
    merge: bool,
) -> str:
    """Rank the units of all groups that have evidence; the name under which ``orders`` then has the order.

    Args:
        groups: that are to be pruned; with none, importance is only checked.
        merge: whether clusters are merged from now on.

    Raises:
        ValueError: an unknown importance, one that needs calibration without it, or one that has no clusters
            to merge.
    """
    by = criterion(importance, mending.calibration, evidence)
    key = importance if isinstance(importance, str) else f"{type(by).__name__}-{len(orders)}"
    if isinstance(importance, str) and importance in CALIBRATED:
        key = f"{importance}-{mending.count}"  # another calibration gives another order
    if merge:
        if not isinstance(by, Cluster):
            raise ValueError(
                "repair='merge' lets one unit of a cluster stand for the others, so importance must be "
                f"'cluster' or Cluster(...), got {importance!r}"
            )
        by, key = by.keeping_one(), f"{key}-merged"
    if groups and key not in orders:
        orders[key] = {g.name: order(g, surgeon.tensors, by) for g in evidence.groups}
    if isinstance(by, Cluster) and merge:
        clusters = {g.name: by.clusters(g, surgeon.tensors) for g in groups}
        graph = evidence.captured.graph_module.graph
        mending.merge(Merging(graph, surgeon.coupling, orders=orders.get(key, {}), clusters=clusters))
    return key


def spanning(space: Space) -> list[Candidate]:
    """Candidates that take the widths and blocks that a space offers, together with each other.

    Every option of every such choice is taken once, with all blocks in place and, compressed most, without;
    of every two choices each is once compressed most while the other is unchanged.
    """
    used = np.array([isinstance(c.edit, Prune | Drop) for c in space.choices])
    if not used.any():
        return []
    last = np.where(used, space.counts - 1, 0)
    drops = np.array([isinstance(c.edit, Drop) for c in space.choices])
    steps = [np.where(drops, 0, np.minimum(k, last)) for k in range(1, last.max() + 1)]
    steps += [last] if drops.any() else []
    at = np.flatnonzero(used)
    steps += [np.where(np.isin(np.arange(len(space)), at[p]), last, 0) for p in separating(len(at))]
    return [space.candidate(indices) for indices in steps]
