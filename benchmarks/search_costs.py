"""Exact analytic costs of a network that is not there: what the benchmark's spaces know of a model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from netcarve import Candidate, Choice
from netcarve.spaces import ModelSide


@dataclass(frozen=True)
class Costs(ModelSide):
    """The model side of a space: exact costs without torch, since MACs, weights and bytes are quadratic.

    ``choices[c]`` sets the columns ``groups[c]`` of the widths to ``kept[c][option]``.
    """

    groups: tuple[tuple[int, ...], ...]  # [choices]
    kept: tuple[tuple[int, ...], ...]  # [choices][options] units
    forms: Mapping[str, np.ndarray]  # metric -> [1 + widths, 1 + widths]: cost = (1, w) form (1, w)^T
    latency: bool = False  # also `latency_ms`, modelled

    def widths(self, indices: np.ndarray) -> np.ndarray:
        """Kept units [n, widths] for option indices [n, choices]."""
        out = np.zeros((len(indices), sum(len(g) for g in self.groups)))
        for c, (columns, kept) in enumerate(zip(self.groups, self.kept, strict=True)):
            out[:, list(columns)] = np.asarray(kept)[indices[:, c], None]
        return out

    def cost_arrays(self, choices: tuple[Choice, ...], indices: np.ndarray) -> dict[str, np.ndarray]:
        """See :meth:`netcarve.Space.cost_arrays`."""
        x = np.insert(self.widths(np.asarray(indices)), 0, 1.0, axis=1)
        costs = {name: ((x @ form) * x).sum(axis=1) for name, form in self.forms.items()}
        costs["macs"], costs["params"] = np.rint(costs["macs"]), np.rint(costs["params"])
        if self.latency:
            costs["latency_ms"] = modelled_latency(costs)
        return costs

    def build(self, candidate: Candidate, *, repair: object = None) -> Any:
        raise NotImplementedError("this space knows costs only; search_tables.py holds the networks")


def modelled_latency(costs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Milliseconds on a small device: 2 GMAC/s, 1 GB/s of weights and activations, 0.2 ms of calls."""
    return 0.2 + costs["macs"] / 2e6 + (costs["size_mb"] + costs["activation_mb"])


def fitted_forms(costs: Callable[[np.ndarray], Mapping[str, np.ndarray]], sizes: Sequence[int]) -> dict:
    """The quadratic forms behind ``costs(widths [n, groups])``, found by interpolation and checked.

    Raises:
        RuntimeError: a cost is not quadratic in the widths.
    """
    rng = np.random.default_rng(0)
    wide = np.asarray(sizes)
    pairs = list(itertools.combinations_with_replacement(range(1 + len(wide)), 2))
    first, second = np.array(pairs).T
    widths = rng.integers(1, wide + 1, size=(4 * len(pairs), len(wide)))
    x = np.insert(widths / wide, 0, 1.0, axis=1)  # scaled: the least-squares problem is well conditioned
    scale = np.insert(wide.astype(float), 0, 1.0)
    forms = {}
    for name, values in costs(widths).items():
        coefficients, *_ = np.linalg.lstsq(x[:, first] * x[:, second], values, rcond=None)
        form = np.zeros((1 + len(wide),) * 2)
        form[first, second] = coefficients / (scale[first] * scale[second])
        plain = np.insert(widths.astype(float), 0, 1.0, axis=1)
        if not np.allclose(((plain @ form) * plain).sum(axis=1), values, rtol=1e-9):
            raise RuntimeError(f"{name} is not quadratic in the widths of the groups")
        forms[name] = form
    return forms
