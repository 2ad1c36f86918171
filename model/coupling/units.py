"""Units: a union-find over labels of tensor positions that live and die together."""

from __future__ import annotations

import numpy as np

Vector = np.ndarray  # [axis length] int64 unit labels along one tensor axis; 0 = can never be removed
Axes = tuple[Vector | None, ...]  # one per tensor axis; None = every position is fixed


class Units:
    """Disjoint sets of labels. Label 0 is the set of fixed positions: joining it freezes a unit.

    All operations are on whole label arrays (pointer jumping), amortised near-linear.
    """

    def __init__(self) -> None:
        self._parent = np.zeros(1, dtype=np.int64)

    def fresh(self, n: int) -> Vector | None:
        """``n`` new units; ``None`` for n < 2, since an axis must keep at least one position."""
        if n < 2:
            return None
        start = len(self._parent)
        new = np.arange(start, start + n, dtype=np.int64)
        self._parent = np.concatenate([self._parent, new])
        return new

    def find(self, labels: np.ndarray) -> np.ndarray:
        """Representative (smallest label) of each label's set, same shape."""
        roots = self._parent[labels]
        while True:
            up = self._parent[roots]
            if np.array_equal(up, roots):
                break
            roots = up
        self._parent[labels] = roots
        return roots

    def union(self, a: np.ndarray, b: np.ndarray | int) -> None:
        """Join ``a[i]`` with ``b[i]`` (broadcast)."""
        a, b = np.broadcast_arrays(np.asarray(a, dtype=np.int64), np.asarray(b, dtype=np.int64))
        a, b = a.reshape(-1), b.reshape(-1)
        while True:
            ra, rb = self.find(a), self.find(b)
            differ = ra != rb
            if not differ.any():
                return
            # Several pairs may name the same root: the smallest wins now, the rest in the next round.
            low, high = np.minimum(ra, rb)[differ], np.maximum(ra, rb)[differ]
            np.minimum.at(self._parent, high, low)
            a, b = ra[differ], rb[differ]
            a, b = np.concatenate([a, high]), np.concatenate([b, low])

    def freeze(self, *vectors: Vector | None) -> None:
        """Make every unit named in ``vectors`` fixed."""
        for v in vectors:
            if v is not None:
                self.union(v, 0)

    def tie_rows(self, matrix: np.ndarray) -> np.ndarray:
        """Join all labels within each row of ``matrix`` [rows, n]; returns one label a row."""
        if matrix.shape[1] > 1:
            self.union(matrix[:, 1:], matrix[:, :1])
        return self.find(matrix[:, 0])

    def normal(self, v: Vector | None) -> Vector | None:
        """Representatives along an axis; ``None`` when all are fixed or the axis is one unit."""
        if v is None:
            return None
        v = self.find(v)
        if (v == v[0]).all():
            # A unit that is the whole axis cannot be removed: the tensor would vanish.
            self.freeze(v[:1])
            return None
        return v
