"""Axis lengths of a network as linear forms in the units that its groups keep, and products of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..coupling import Coupling
from ..coupling.units import Vector

Product = tuple[float, tuple[int, ...]]  # factor, and the forms that it is multiplied with


class Forms:
    """Distinct axis lengths: fixed positions plus, for each group, kept units times positions per unit."""

    def __init__(self, coupling: Coupling) -> None:
        self._group_of = np.full(coupling.units + 1, -1, dtype=np.int64)
        for g, group in enumerate(coupling.groups):
            self._group_of[group.labels] = g
        self._sizes = np.array([g.size for g in coupling.groups], dtype=np.int64)
        self._rows: list[np.ndarray] = []  # [1 + groups] each, fixed part first
        self._ids: dict[bytes, int] = {}

    @property
    def sizes(self) -> np.ndarray:
        """Units of each group, int64 [groups]."""
        return self._sizes

    def of(self, labels: Vector) -> int:
        """Number of the form that counts the kept ones of ``labels``; made if it is new."""
        key = labels.tobytes()
        if key not in self._ids:
            self._ids[key] = len(self._rows)
            self._rows.append(self._row(labels))
        return self._ids[key]

    def product(self, factor: float, vectors: Iterable[Vector]) -> Product:
        return factor, tuple(sorted(self.of(v) for v in vectors))

    def merged(self, terms: Iterable[tuple[float, Sequence[Vector]]]) -> list[Product]:
        """A sum of products, equal ones merged."""
        merged: dict[tuple[int, ...], float] = {}
        for factor, vectors in terms:
            factor, forms = self.product(factor, vectors)
            merged[forms] = merged.get(forms, 0.0) + factor
        return [(factor, forms) for forms, factor in merged.items()]

    def lengths(self, widths: np.ndarray) -> np.ndarray:
        """Values of all forms for kept units [n, groups]: float64 [n, forms]."""
        rows = np.array(self._rows, dtype=np.float64).reshape(-1, 1 + len(self._sizes))
        return np.concatenate([np.ones((len(widths), 1)), widths], axis=1) @ rows.T

    def count(self, labels: Vector, widths: np.ndarray) -> np.ndarray:
        """Kept ones of ``labels`` in each network, float64 [n]."""
        row = self._row(labels)
        return row[0] + widths @ row[1:]

    def _row(self, labels: Vector) -> np.ndarray:
        counts = np.bincount(self._group_of[labels] + 1, minlength=len(self._sizes) + 1)
        return counts / np.concatenate([[1], np.maximum(self._sizes, 1)])


def evaluate(product: Product, lengths: np.ndarray) -> np.ndarray:
    """float64 [n], for ``lengths`` [n, forms]."""
    factor, forms = product
    out = np.full(len(lengths), factor)
    for f in forms:
        out *= lengths[:, f]
    return out


def total(products: Sequence[Product], lengths: np.ndarray) -> np.ndarray:
    """Their sum, float64 [n]."""
    out = np.zeros(len(lengths))
    for product in products:
        out += evaluate(product, lengths)
    return out
