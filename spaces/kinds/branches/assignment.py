"""Assignment to branches: similar classes together, units by the energy of their weights to each branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ....model.coupling import Coupling, Group
from ....model.coupling.walk import IN, OUT

SWEEPS = 5
ROUNDS = 50
SHARED = -1


@dataclass(frozen=True)
class Energy:
    """Squares of one weight, summed over kernel taps, between the units of two axes."""

    squares: np.ndarray  # [outputs, inputs] float64, over their sum
    rows: np.ndarray | None  # [outputs] labels; None: the scores, whose rows the classes' sets own
    columns: np.ndarray | None  # [inputs] labels; None: all are shared


def shares(count: int, parts: int) -> list[int]:
    """``count`` in parts that differ by at most one, larger ones first."""
    return [count // parts + (k < count % parts) for k in range(parts)]


def energies(
    groups: Sequence[Group], coupling: Coupling, tensors: Mapping[str, torch.Tensor], scores: str
) -> list[Energy]:
    """Of every weight [outputs, inputs, ...] that reads or makes units of ``groups``.

    Args:
        tensors: by canonical name.
        scores: canonical name of the weight that gives the classes' scores.
    """
    out: list[Energy] = []
    reads = {m.parameter: m.axis for g in coupling.groups for m in g.members if m.role == IN}
    for name in dict.fromkeys(m.parameter for g in groups for m in g.members if m.role in (IN, OUT)):
        if tensors[name].dim() < 2:
            continue
        axes, axis = coupling.parameters[name], reads.get(name, 1)
        weight = tensors[name].detach().double().movedim((1 - axis, axis), (0, 1))
        matrix = weight.flatten(2).square().sum(2) if weight.dim() > 2 else weight.square()
        rows = None if name == scores else axes[1 - axis]
        if name == scores or rows is not None:
            total = max(float(matrix.sum()), 1e-300)
            out.append(Energy(matrix.numpy() / total, rows, axes[axis]))
    return out


def assign(
    groups: Sequence[Group],
    alive: np.ndarray,
    found: Sequence[Energy],
    classes: Sequence[Sequence[int]],
) -> np.ndarray:
    """Which branch each unit goes to, by label: 0 .. parts - 1, or :data:`SHARED`.

    Alternating (as FLGC, Wang et al. 2019, learns it): one group's units are assigned while all others stay,
    by the energy of their weights to and from units (or classes) of each branch, so that the energy that
    remains never falls; groups from the last to the first, until nothing changes. The units that stay of a
    group are divided evenly, to within one; a group with fewer units than there are branches is shared.

    Args:
        groups: that only what comes after the branching point reads, in the network's order.
        alive: [labels, ...] bool, units that stay.
        classes: of each branch.
    """
    parts = len(classes)
    owner = np.full(len(alive), SHARED)
    class_owner = _class_owner(classes)
    divided = [g for g in groups if int(alive[g.labels].sum()) >= parts]
    touching = [[e for e in found if _touches(e, g)] for g in divided]
    for _ in range(SWEEPS):
        old = owner.copy()
        for group, near in zip(reversed(divided), reversed(touching), strict=True):
            labels = group.labels[alive[group.labels]]
            gains = _gains(near, owner, class_owner, parts)[labels]
            owner[labels] = _assigned(gains, shares(len(labels), parts))
        if np.array_equal(old, owner):
            break
    return owner


def retained(found: Sequence[Energy], owner: np.ndarray, classes: Sequence[Sequence[int]]) -> float:
    """Mean share of the weights' energy that stays: within one branch, or to or from what is shared."""
    class_owner = _class_owner(classes)
    total = 0.0
    for e in found:
        rows, columns = _owners(e, owner, class_owner)
        stays = (rows[:, None] == columns) | (rows[:, None] == SHARED) | (columns == SHARED)
        total += float((e.squares * stays).sum())
    return total / max(len(found), 1)


def _owners(e: Energy, owner: np.ndarray, class_owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = class_owner if e.rows is None else owner[e.rows]
    columns = np.full(e.squares.shape[1], SHARED) if e.columns is None else owner[e.columns]
    return rows, columns


def _class_owner(classes: Sequence[Sequence[int]]) -> np.ndarray:
    owner = np.zeros(sum(map(len, classes)), dtype=np.int64)
    for k, members in enumerate(classes):
        owner[list(members)] = k
    return owner


def _touches(e: Energy, group: Group) -> bool:
    return any(v is not None and bool(np.isin(group.labels[:1], v)) for v in (e.rows, e.columns))


def _gains(found: Sequence[Energy], owner: np.ndarray, class_owner: np.ndarray, parts: int) -> np.ndarray:
    """Energy between each label and each branch, [labels, parts]."""
    gains = np.zeros((len(owner), parts))
    branches = np.arange(parts)
    for e in found:
        rows, columns = _owners(e, owner, class_owner)
        if e.columns is not None:
            np.add.at(gains, e.columns, e.squares.T @ (rows[:, None] == branches).astype(np.float64))
        if e.rows is not None:
            np.add.at(gains, e.rows, e.squares @ (columns[:, None] == branches).astype(np.float64))
    return gains


def _assigned(gains: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The branch of each unit, ``sizes`` of them each, of the largest summed gain; [units]."""
    if len(sizes) == 2:  # those that lose least by going to the second
        out = np.zeros(len(gains), dtype=np.int64)
        out[np.argsort(gains[:, 0] - gains[:, 1], kind="stable")[: sizes[1]]] = 1
        return out
    from scipy.optimize import linear_sum_assignment

    slots = np.repeat(np.arange(len(sizes)), sizes)
    return slots[linear_sum_assignment(gains[:, slots], maximize=True)[1]]


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
