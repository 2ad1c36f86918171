"""Cost tables: what each of many candidates keeps, as arrays, for kinds that correct analytic costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .costs import Costs
from .coupling import Coupling
from .coupling.units import Vector
from .facts import Facts


@dataclass(frozen=True, slots=True)
class Tables:
    """Of n candidates.

    Attributes:
        shares: kinds that thin out a call of the captured graph say here how, as functions that give the
            share of its multiply-accumulates that stays, [n]; nothing else here counts it.
        standing: kinds that let something stand for a call say here what: by node a number for each
            candidate, -1 where the layer itself is there, and by number the shapes of its weights.
        within: bytes that such a thing needs while it runs, beside what is alive around it, [n] by node.
        gone: intermediate tensors that are not made any more, [n] bool by number (:meth:`.Costs.owner`).
    """

    facts: Facts
    widths: np.ndarray  # [n, groups] int64, kept units
    dropped: np.ndarray  # [n, blocks] bool, blocks that are not there
    shares: dict[str, Callable[[], np.ndarray]] = field(default_factory=dict)
    standing: dict[str, tuple[np.ndarray, Sequence[Sequence[tuple[int, ...]]]]] = field(default_factory=dict)
    within: dict[str, np.ndarray] = field(default_factory=dict)
    gone: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def costs(self) -> Costs:
        return self.facts.costs

    @property
    def coupling(self) -> Coupling:
        return self.facts.coupling

    def count(self, labels: Vector) -> np.ndarray:
        """Kept positions of an axis with these labels, float64 [n]."""
        return self.costs.count(labels, self.widths)

    def lengths(self, parameter: str) -> np.ndarray:
        """Shape of a parameter by canonical name, float64 [n, axes]; zeros where it has gone with a block."""
        return self.costs.lengths(parameter, self.widths, self.dropped)

    def present(self, node: str) -> np.ndarray:
        """Whether a node of the captured graph is still computed, bool [n]."""
        return self.costs.present(node, self.dropped)

    def macs(self, node: str) -> np.ndarray:
        """Multiply-accumulates per sample of a node of the captured graph, float64 [n]; 0 if it is gone."""
        total = np.zeros(len(self.widths))
        for (name, _), term in self.coupling.macs.items():
            if name == node:
                product = np.full(len(self.widths), float(term.factor))
                for labels in term.vectors:
                    product *= self.count(labels)
                total += product
        return total * self.present(node)

    def share(self, node: str) -> np.ndarray | float:
        """Of :attr:`shares`, 1 where nobody thins the call out."""
        return self.shares[node]() if node in self.shares else 1.0

    def memory(self, size_mb: np.ndarray) -> np.ndarray:
        """Weights and the largest set of intermediates alive together, those :attr:`within` calls too, MB."""
        most = self.costs.peaks(self.widths, self.dropped, [0], self.gone)[:, 0]
        if self.within:
            steps = [self.costs.step(n) for n in self.within]
            alive = self.costs.alive_at(self.widths, self.dropped, steps, self.gone)
            most = np.maximum(most, (alive + np.stack([*self.within.values()], axis=1)).max(axis=1))
        return size_mb + most / 1e6
