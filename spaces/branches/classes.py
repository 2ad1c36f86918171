"""Which classes go together: similar ones, in sets of nearly equal size."""

from __future__ import annotations

import numpy as np

ROUNDS = 50


def cluster_classes(vectors: np.ndarray, sets: int) -> tuple[tuple[int, ...], ...]:
    """Classes in ``sets`` sets whose sizes differ by at most one, similar ones together.

    Agglomerative clustering (average linkage of the cosine distance) gives the first centres; then classes
    are assigned to centres, as many to each as it has places (the best assignment, Hungarian algorithm), and
    centres are their classes' mean directions, until nothing changes (a balanced k-means; each step raises
    the summed similarity). Deterministic.

    Args:
        vectors: [classes, d]: rows of the last layer, or what the network gives for each class.
        sets: 1 to the number of classes.

    Returns:
        Ascending classes of each set; sets in the order of their first class.

    Raises:
        ValueError: fewer classes than sets, or ``sets`` below 1.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.optimize import linear_sum_assignment

    count = len(vectors)
    if not 1 <= sets <= count:
        raise ValueError(f"{count} classes make 1 to {count} sets, asked for {sets}")
    x = _directions(np.asarray(vectors, dtype=np.float64))
    if sets == 1 or count == sets:
        owner = np.zeros(count, dtype=np.int64) if sets == 1 else np.arange(count)
        return _sets(owner, sets)
    tree = linkage(np.clip(1 - x @ x.T, 0, 2)[np.triu_indices(count, 1)], "average")
    found = fcluster(tree, sets, "maxclust") - 1
    centres = np.zeros((sets, x.shape[1]))
    # The largest first: the first sets are those that take one class more.
    for k, cluster in enumerate(np.argsort(-np.bincount(found), kind="stable")):
        centres[k] = x[found == cluster].mean(0)
    slots = np.arange(count) % sets  # which set each place is of: sizes differ by at most one
    owner = np.full(count, -1)
    for _ in range(ROUNDS):
        rows, taken = linear_sum_assignment(x @ _directions(centres)[slots].T, maximize=True)
        if np.array_equal(slots[taken], owner[rows]):
            break
        owner[rows] = slots[taken]
        centres = np.stack([x[owner == k].mean(0) for k in range(sets)])
    return _sets(owner, sets)


def _directions(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)


def _sets(owner: np.ndarray, sets: int) -> tuple[tuple[int, ...], ...]:
    return tuple(sorted(tuple(np.flatnonzero(owner == k).tolist()) for k in range(sets)))
