"""Compactness: units that do the same, or stand side by side, go together as whole clusters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch

from ..coupling import Group
from .weights import l1

Base = Callable[[Group, Mapping[str, torch.Tensor]], np.ndarray]


class Cluster:
    """Order by clusters: the weakest whole cluster goes first, its weakest unit first of all.

    A cluster's strength is the mean of its units' scores. Similar units are found by average-linkage
    agglomeration of 1 - cosine similarity of their incoming weights, over all layers that make them.

    Args:
        by: ``"similar"``, or ``"adjacent"`` for runs of neighbouring units (whole runs gone leave memory
            contiguous).
        size: units per cluster: of each run, or on average (a cut into ``units / size`` clusters).
        score: how strong a unit is, any criterion that needs no measuring.
        keep_one: the strongest unit of each cluster outlives all the others. It may then stand for them:
            ``space(repair="merge")`` adds their outgoing weights to its own, and a repair by least squares
            (``calibration``) does that and more. Both are exact for duplicates.

    Raises:
        ValueError: an unknown ``by``, or a size below 2.
    """

    def __init__(
        self,
        *,
        by: Literal["similar", "adjacent"] = "similar",
        size: int = 4,
        score: Base = l1,
        keep_one: bool = False,
    ) -> None:
        if by not in ("similar", "adjacent"):
            raise ValueError(f"clusters are made by 'similar' or 'adjacent', got {by!r}")
        if size < 2:
            raise ValueError(f"a cluster has at least 2 units, got size={size}")
        self.by, self.size, self.score, self.keep_one = by, size, score, keep_one

    def keeping_one(self) -> Cluster:
        """The same with ``keep_one``."""
        return Cluster(by=self.by, size=self.size, score=self.score, keep_one=True)

    def clusters(self, group: Group, parameters: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Cluster number of each unit, [units] int64."""
        if self.by == "adjacent":
            return np.arange(group.size) // self.size
        if group.size <= self.size:
            return np.zeros(group.size, dtype=np.int64)
        from sklearn.cluster import AgglomerativeClustering

        distance = np.clip(1 - similarity(group, parameters), 0, 2)
        number = group.size // self.size
        made = AgglomerativeClustering(n_clusters=number, metric="precomputed", linkage="average")
        return made.fit_predict(distance).astype(np.int64)

    def __call__(self, group: Group, parameters: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Ranks [units]: 0 goes first."""
        unit = np.asarray(self.score(group, parameters), dtype=np.float64)
        _, cluster = np.unique(self.clusters(group, parameters), return_inverse=True)
        strength = (np.bincount(cluster, weights=unit) / np.bincount(cluster))[cluster]
        keys = [-np.arange(group.size), unit, cluster, strength]  # of equals, the last in the network first
        if self.keep_one:
            best = np.zeros(group.size, dtype=bool)
            strongest_first = np.lexsort((-unit, cluster))
            best[strongest_first[np.unique(cluster[strongest_first], return_index=True)[1]]] = True
            keys.append(best)
        ranks = np.empty(group.size)
        ranks[np.lexsort(keys)] = np.arange(group.size)
        return ranks


def similarity(group: Group, parameters: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Cosines between the units' incoming weights, [units, units]; all makers in one vector."""
    dots = np.zeros((group.size, group.size))
    for member in group.makers():
        rows = parameters[member.parameter].detach().double().movedim(member.axis, 0).flatten(1).numpy()
        vectors = rows[member.positions].reshape(group.size, -1)
        dots += vectors @ vectors.T / max(float((vectors**2).sum()), 1e-30)
    norms = np.sqrt(np.maximum(np.diag(dots), 1e-30))
    return dots / np.outer(norms, norms)


cluster = Cluster()
