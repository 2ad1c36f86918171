"""Analytic costs: polynomials in the numbers of units that the groups keep. Nothing is built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from .blocks import Block
from .capture import Captured
from .coupling import Coupling
from .coupling.units import Vector
from .coupling.walk import get_attribute
from .lifetimes import Lifetimes
from .liveness import ALWAYS, Liveness

Product = tuple[float, tuple[int, ...]]  # factor, and the forms that it is multiplied with
Gone = Mapping[int, np.ndarray]  # tensors that are not made, [n] bool by number


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


# -- Analytic costs: polynomials in the number of units that each group keeps. Nothing is built ---------

_MEGA, _KILO = 1e6, 1e3


class Costs:
    """Cost polynomials of one captured network.

    Every axis length is linear in the group widths (a *form*): fixed positions plus, for each group, kept
    units times positions per unit. Every cost is a sum of products of forms, equal terms merged; where
    residual blocks are dropped, merged by the condition under which they are there.
    """

    def __init__(self, captured: Captured, coupling: Coupling, blocks: Sequence[Block] = ()) -> None:
        self._forms = Forms(coupling)
        liveness = Liveness(captured.graph_module.graph, blocks)
        self._liveness = liveness
        macs = [(liveness.of[node], (t.factor, t.vectors)) for (node, _), t in coupling.macs.items()]
        readers: dict[str, list[int]] = {}
        for node in captured.graph_module.graph.nodes:
            if node.op == "get_attr":
                readers.setdefault(coupling.canonical[str(node.target)], []).append(liveness.of[node.name])
        held = [
            (liveness.either(conditions), name, get_attribute(captured.graph_module, name))
            for name, conditions in readers.items()
        ]
        held = [(c, name, t) for c, name, t in held if isinstance(t, torch.Tensor)]
        self._weights = {  # when it is there, its shape and the labels along it
            name: (c, tuple(t.shape), coupling.parameters.get(name, (None,) * t.dim())) for c, name, t in held
        }
        extra = [t for name, t in captured.source.named_parameters() if name not in coupling.canonical]
        params = [
            (c, self._numel(coupling, name, t)) for c, name, t in held if isinstance(t, torch.nn.Parameter)
        ]
        size = [(c, self._numel(coupling, name, t, t.element_size())) for c, name, t in held]
        params += [(ALWAYS, (float(t.numel()), ())) for t in extra]
        size += [(ALWAYS, (float(t.numel() * t.element_size()), ())) for t in extra]
        self._macs, self._params, self._bytes = (
            self._forms.merged(term for _, term in terms) for terms in (macs, params, size)
        )
        # The same apart by condition, for when blocks are dropped.
        self._macs_of, self._params_of, self._bytes_of = (
            {c: self._forms.merged(term for d, term in terms if c == d) for c in dict(terms)}
            for terms in (macs, params, size)
        )
        self._lifetimes = Lifetimes(captured, coupling, blocks, liveness)
        self._tensors = [self._forms.product(factor, vectors) for factor, vectors in self._lifetimes.tensors]
        self._live = self._lifetimes.alive

    @property
    def liveness(self) -> Liveness:
        """When the nodes of the graph are computed."""
        return self._liveness

    @property
    def positive(self) -> bool:
        """Whether no coefficient is negative, so that costs cannot fall as widths grow."""
        terms = (self._macs, self._params, self._bytes, self._tensors)
        return all(factor >= 0 for t in terms for factor, _ in t)

    def evaluate(self, widths: np.ndarray, dropped: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Costs for kept units per group.

        Args:
            widths: [n, groups] integers, kept units.
            dropped: [n, blocks] bool, residual blocks that are not there; by default none.

        Returns:
            float64 arrays [n]: ``macs`` and ``flops`` (per sample; flops = 2 x macs), ``params``,
            ``size_mb`` (weights and buffers), ``activation_mb`` (all intermediate tensors of one sample) and
            ``memory_mb`` (weights + the largest set of intermediates alive together, one sample).
            MB is 10^6 bytes.
        """
        chunks = []
        for i in range(0, max(len(widths), 1), 8192):
            part = None if dropped is None else dropped[i : i + 8192]
            chunks.append(self._evaluate(widths[i : i + 8192], part))
        return {k: np.concatenate([c[k] for c in chunks]) for k in chunks[0]}

    def lengths(self, parameter: str, widths: np.ndarray, dropped: np.ndarray) -> np.ndarray:
        """Shape of one parameter in each network, [n, axes]; zeros where it has gone with a dropped block.

        Args:
            parameter: canonical name.
            widths, dropped: as for :meth:`evaluate`.
        """
        condition, shape, labels = self._weights[parameter]
        out = np.tile(np.array(shape, dtype=np.float64), (len(widths), 1))
        for axis, v in enumerate(labels):
            if v is not None:
                out[:, axis] = self.count(v, widths)
        return out * self._liveness.evaluate(dropped)[condition][:, None] if dropped.any() else out

    def count(self, labels: Vector, widths: np.ndarray) -> np.ndarray:
        """Kept positions of an axis with these labels in each network, float64 [n]."""
        return self._forms.count(labels, widths)

    def present(self, node: str, dropped: np.ndarray) -> np.ndarray:
        """Whether a node of the captured graph is computed in each network, bool [n]."""
        return self._liveness.evaluate(dropped)[self._liveness.of[node]]

    def step(self, node: str) -> int:
        """Where a node of the captured graph stands among the steps of :meth:`peaks`."""
        return self._lifetimes.steps[node]

    def owner(self, node: str) -> int:
        """Number of the intermediate tensor that holds a node's value."""
        return self._lifetimes.owners[node]

    def tensor(self, number: int, widths: np.ndarray) -> np.ndarray:
        """Bytes of an intermediate tensor of one sample, float64 [n]."""
        return evaluate(self._tensors[number], self._forms.lengths(widths))

    def _evaluate(self, widths: np.ndarray, dropped: np.ndarray | None) -> dict[str, np.ndarray]:
        n = len(widths)
        lengths = self._forms.lengths(widths)  # [n, forms]
        alive = np.stack([evaluate(term, lengths) for term in self._tensors], axis=1)  # [n, tensors] bytes
        if dropped is None or not dropped.any():
            macs, params, size = (total(t, lengths) for t in (self._macs, self._params, self._bytes))
            alive = alive[:, : len(self._live)]
            activation, peak = alive.sum(axis=1), (alive @ self._live.T).max(axis=1)
        else:
            holds = self._liveness.evaluate(dropped)
            macs, params, size = (
                sum((holds[c] * total(terms, lengths) for c, terms in of.items()), np.zeros(n))
                for of in (self._macs_of, self._params_of, self._bytes_of)
            )
            activation, peak = self._lifetimes.peak(alive, dropped, holds)
        return {
            "macs": macs,
            "flops": 2 * macs,
            "params": params,
            "size_mb": size / _MEGA,
            "activation_mb": activation / _MEGA,
            "memory_mb": (size + peak) / _MEGA,
        }

    # -- construction --------------------------------------------------------------------------------

    def peaks(
        self, widths: np.ndarray, dropped: np.ndarray, begins: Sequence[int], gone: Gone | None = None
    ) -> np.ndarray:
        """Bytes of the largest set of intermediate tensors alive together within segments, one sample.

        Args:
            widths, dropped: as for :meth:`evaluate`.
            begins: steps (see :class:`Lifetimes`) at which segments begin, rising, the first 0.
            gone: tensors that are not made, [n] bool by number.

        Returns:
            float64 [n, segments]: 0 where a segment makes no tensor.
        """
        alive = self._sizes(widths, gone)
        return self._lifetimes.peaks(alive, dropped, self._liveness.evaluate(dropped), begins)

    def alive_at(
        self, widths: np.ndarray, dropped: np.ndarray, steps: Sequence[int], gone: Gone | None = None
    ) -> np.ndarray:
        """Bytes of the intermediate tensors alive while each of some steps runs, one sample: [n, steps].

        Args:
            widths, dropped, gone: as for :meth:`peaks`.
        """
        sizes = self._sizes(widths, gone)
        return self._lifetimes.at(sizes, dropped, self._liveness.evaluate(dropped), steps)

    def _sizes(self, widths: np.ndarray, gone: Gone | None) -> np.ndarray:
        """Bytes of all tensors, [n, tensors]."""
        lengths = self._forms.lengths(widths)
        sizes = np.stack([evaluate(term, lengths) for term in self._tensors], axis=1)
        for number, rows in (gone or {}).items():
            sizes[rows, number] = 0.0
        return sizes

    def _numel(
        self, coupling: Coupling, name: str, tensor: torch.Tensor, itemsize: int = 1
    ) -> tuple[float, tuple[Vector, ...]]:
        axes = coupling.parameters.get(name, (None,) * tensor.dim())
        factor = float(itemsize)
        for length, v in zip(tensor.shape, axes, strict=True):
            factor *= length if v is None else 1
        return factor, tuple(v for v in axes if v is not None)
