"""Analytic costs: polynomials in the number of units that each group keeps. Nothing is built."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from .capture import Captured
from .coupling import Coupling
from .coupling.units import Vector
from .coupling.walk import get_attribute, operator_name

# Operators whose result shares the memory of their first argument.
# fmt: off
_ALIASES = frozenset([
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze",
    "unsqueeze", "slice", "narrow", "select", "split_with_sizes", "split", "chunk", "unbind", "expand",
    "expand_as", "view_as", "detach", "alias", "getitem", "dropout", "contiguous", "to", "lift_fresh",
])
# fmt: on
_MEGA, _KILO = 1e6, 1e3


class Costs:
    """Cost polynomials of one captured network.

    Every axis length is linear in the group widths (a *form*): fixed positions plus, for each group, kept
    units times positions per unit. Every cost is a sum of products of forms, equal terms merged.
    """

    def __init__(self, captured: Captured, coupling: Coupling) -> None:
        self._group_of = np.full(coupling.units + 1, -1, dtype=np.int64)
        for g, group in enumerate(coupling.groups):
            self._group_of[group.labels] = g
        self._sizes = np.array([g.size for g in coupling.groups], dtype=np.int64)
        self._rows: list[np.ndarray] = []  # forms: [1 + groups], fixed part first
        self._form_of: dict[bytes, int] = {}

        self._macs = self._merge((t.factor, t.vectors) for t in coupling.macs.values())
        held = [
            (name, get_attribute(captured.graph_module, name))
            for name in dict.fromkeys(coupling.canonical.values())
        ]
        held = [(name, t) for name, t in held if isinstance(t, torch.Tensor)]
        extra = [t for name, t in captured.source.named_parameters() if name not in coupling.canonical]
        self._params = self._merge(
            [self._numel(coupling, name, t) for name, t in held if isinstance(t, torch.nn.Parameter)]
            + [(float(t.numel()), ()) for t in extra]
        )
        self._bytes = self._merge(
            [self._numel(coupling, name, t, t.element_size()) for name, t in held]
            + [(float(t.numel() * t.element_size()), ()) for t in extra]
        )
        tensors, self._live = _lifetimes(captured, coupling)
        self._tensors = [self._term(factor, vectors) for factor, vectors in tensors]
        self._forms = np.array(self._rows, dtype=np.float64).reshape(-1, 1 + len(self._sizes))

    def evaluate(self, widths: np.ndarray) -> dict[str, np.ndarray]:
        """Costs for kept units per group.

        Args:
            widths: [n, groups] integers, kept units.

        Returns:
            float64 arrays [n]: ``macs`` and ``flops`` (per sample; flops = 2 x macs), ``params``,
            ``size_mb`` (weights and buffers), ``activation_mb`` (all intermediate tensors of one sample) and
            ``memory_mb`` (weights + the largest set of intermediates alive together, one sample).
            MB is 10^6 bytes.
        """
        chunks = [self._evaluate(widths[i : i + 8192]) for i in range(0, max(len(widths), 1), 8192)]
        return {k: np.concatenate([c[k] for c in chunks]) for k in chunks[0]}

    def _evaluate(self, widths: np.ndarray) -> dict[str, np.ndarray]:
        n = len(widths)
        lengths = np.concatenate([np.ones((n, 1)), widths], axis=1) @ self._forms.T  # [n, forms]
        macs = _total(self._macs, lengths)
        size = _total(self._bytes, lengths)
        alive = np.stack([_product(term, lengths) for term in self._tensors], axis=1)  # [n, tensors] bytes
        peak = (alive @ self._live.T).max(axis=1)
        return {
            "macs": macs,
            "flops": 2 * macs,
            "params": _total(self._params, lengths),
            "size_mb": size / _MEGA,
            "activation_mb": alive.sum(axis=1) / _MEGA,
            "memory_mb": (size + peak) / _MEGA,
        }

    # -- construction --------------------------------------------------------------------------------

    def _form(self, v: Vector) -> int:
        key = v.tobytes()
        if key not in self._form_of:
            row = np.zeros(1 + len(self._sizes))
            row[0] = np.count_nonzero(v == 0)
            groups = self._group_of[v[v > 0]]
            row[1:] = np.bincount(groups, minlength=len(self._sizes)) / np.maximum(self._sizes, 1)
            self._form_of[key] = len(self._rows)
            self._rows.append(row)
        return self._form_of[key]

    def _term(self, factor: float, vectors: Iterable[Vector]) -> tuple[float, tuple[int, ...]]:
        return factor, tuple(sorted(self._form(v) for v in vectors))

    def _numel(
        self, coupling: Coupling, name: str, tensor: torch.Tensor, itemsize: int = 1
    ) -> tuple[float, tuple[Vector, ...]]:
        axes = coupling.parameters.get(name, (None,) * tensor.dim())
        factor = float(itemsize)
        for length, v in zip(tensor.shape, axes, strict=True):
            factor *= length if v is None else 1
        return factor, tuple(v for v in axes if v is not None)

    def _merge(self, terms: Iterable[tuple[float, Sequence[Vector]]]) -> list[tuple[float, tuple[int, ...]]]:
        merged: dict[tuple[int, ...], float] = {}
        for factor, vectors in terms:
            factor, forms = self._term(factor, vectors)
            merged[forms] = merged.get(forms, 0.0) + factor
        return [(factor, forms) for forms, factor in merged.items()]


def _product(term: tuple[float, tuple[int, ...]], lengths: np.ndarray) -> np.ndarray:
    factor, forms = term
    out = np.full(len(lengths), factor)
    for f in forms:
        out *= lengths[:, f]
    return out


def _total(terms: Sequence[tuple[float, tuple[int, ...]]], lengths: np.ndarray) -> np.ndarray:
    total = np.zeros(len(lengths))
    for term in terms:
        total += _product(term, lengths)
    return total


def _lifetimes(
    captured: Captured, coupling: Coupling
) -> tuple[list[tuple[float, tuple[Vector, ...]]], np.ndarray]:
    """Bytes of each allocated tensor (one sample) and who is alive when: [steps, tensors] of 0 and 1."""
    nodes = [n for n in captured.graph_module.graph.nodes if n.op != "get_attr"]
    at = {n: i for i, n in enumerate(nodes)}
    owner: dict = {}
    born: dict = {}
    last: dict = {}
    for n in nodes:
        name, mutates = operator_name(n.target) if n.op == "call_function" else ("", False)
        if n.op == "call_function" and n.args and (name in _ALIASES or mutates) and n.args[0] in owner:
            owner[n] = owner[n.args[0]]
        elif n.name in coupling.tensors:
            owner[n] = n
            born[n] = at[n]
        for used in n.all_input_nodes:
            if used in owner:
                last[owner[used]] = at[n]
    terms = []
    roots = list(born)
    for n in roots:
        value = n.meta.get("val")
        factor = float(value.element_size() if isinstance(value, torch.Tensor) else 4) / captured.batch
        vectors = []
        for length, v in coupling.tensors[n.name]:
            if v is None:
                factor *= length
            else:
                vectors.append(v)
        terms.append((factor, tuple(vectors)))
    live = np.array(
        [[born[t] <= born[step] <= last.get(t, born[t]) for t in roots] for step in roots], dtype=np.float64
    )
    return terms, live
