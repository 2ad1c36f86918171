"""Let a kept unit stand for removed ones of its cluster: their outgoing weights are added to its own.

Needs no data. Exact where the units of a cluster are duplicates (Srinivas and Babu 2015, arXiv 1507.06149,
section 3); elsewhere the least-squares repair does the same better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from ..coupling import Coupling, Group
from .consumers import Consumer, find_consumers
from .sources import MomentSource


class Merging:
    """Merges networks cut along one order.

    Args:
        orders: by group, units from most to least important.
        clusters: by group, cluster of each unit, [units].
    """

    def __init__(
        self,
        graph: fx.Graph,
        coupling: Coupling,
        *,
        orders: Mapping[str, np.ndarray],
        clusters: Mapping[str, np.ndarray],
    ) -> None:
        self.consumers, self.sources = find_consumers(graph, coupling, patches=False)
        self._groups, self._orders, self._clusters = coupling.groups, orders, clusters

    def mend(
        self,
        alive: np.ndarray,
        tensors: Mapping[str, Any],
        labels: Mapping[str, tuple[np.ndarray | None, ...]],
        made: Mapping[str, Any],
    ) -> None:
        """Mend the sliced parameters ``made`` in place; see :func:`merge`."""
        stands_for = representatives(self._groups, self._orders, self._clusters, alive)
        merge(self.consumers, self.sources, stands_for, alive, tensors, labels, made)


def representatives(
    groups: Sequence[Group],
    orders: Mapping[str, np.ndarray],
    clusters: Mapping[str, np.ndarray],
    alive: np.ndarray,
) -> np.ndarray:
    """Which kept unit stands for which removed one.

    Args:
        orders: by group, units from most to least important.
        clusters: by group, cluster of each unit, [units].
        alive: [units + 1] bool.

    Returns:
        [units + 1] int64, by label: the label of the strongest kept unit of the same cluster; 0 for units
        that are kept, and for those of a cluster that has gone whole.
    """
    found = np.zeros(len(alive), dtype=np.int64)
    for group in groups:
        stays = alive[group.labels]
        if group.name not in clusters or stays.all():
            continue
        number = clusters[group.name]
        strongest: dict[int, int] = {}
        for unit in orders[group.name].tolist():
            if stays[unit]:
                strongest.setdefault(int(number[unit]), int(group.labels[unit]))
        for unit in np.flatnonzero(~stays).tolist():
            found[group.labels[unit]] = strongest.get(int(number[unit]), 0)
    return found


def merge(
    consumers: Sequence[Consumer],
    sources: Sequence[MomentSource],
    stands_for: np.ndarray,
    alive: np.ndarray,
    tensors: Mapping[str, Any],
    labels: Mapping[str, tuple[np.ndarray | None, ...]],
    made: Mapping[str, Any],
) -> None:
    """Add the removed units' outgoing weights to their representatives', in place.

    Args:
        consumers, sources: of :func:`find_consumers`, without patches.
        stands_for: of :func:`representatives`.
        tensors: the whole parameters by canonical name.
        labels: unit labels of the parameters per axis, by canonical name.
        made: the parameters sliced to ``alive``, by canonical name.
    """
    for consumer in consumers:
        source = sources[consumer.source]
        size = len(source.labels) // source.groups
        removed = np.flatnonzero(~alive[source.labels])
        if not len(removed):
            continue
        stand_in = _positions(source.labels, removed, stands_for)
        paired = (stand_in >= 0) & (stand_in // size == removed // size)
        whole = tensors[consumer.weight].detach().movedim((consumer.out, consumer.axis), (0, 1))
        out = labels[consumer.weight][consumer.out]
        rows = np.arange(len(whole)) if out is None else np.flatnonzero(alive[out])
        target = made[consumer.weight].detach().movedim((consumer.out, consumer.axis), (0, 1))
        place = np.cumsum(alive[source.labels[:size]]) - 1  # of a kept column in its convolution group
        share = len(whole) // source.groups  # outputs of a convolution group
        for column, to in zip(removed[paired], stand_in[paired], strict=True):
            mine = torch.from_numpy(np.flatnonzero(rows // share == column // size))
            taken = whole[torch.from_numpy(rows)[mine], int(column) % size]
            target[mine, int(place[int(to) % size])] += taken


def _positions(labels: np.ndarray, removed: np.ndarray, stands_for: np.ndarray) -> np.ndarray:
    """Position that stands for each removed one, of the same rank among its unit's; -1 for none."""
    order = np.argsort(labels, kind="stable")
    start = np.searchsorted(labels[order], np.arange(len(stands_for)))
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - start[labels[order]]
    to = stands_for[labels[removed]]
    return np.where(to > 0, order[np.minimum(start[to] + rank[removed], len(labels) - 1)], -1)
