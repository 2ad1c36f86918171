"""What a candidate means for a model: widths for its costs, labels that stay for its surgery, masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .blocks import Block
from .choice import Candidate, Choice
from .costing.cost_bounds import falling_costs
from .costing.cost_tables import Tables
from .costing.costs import Costs
from .coupling import Coupling
from .drop import Drop
from .masks.choice import Mask, zeros
from .masks.program import Sparsify
from .prune import Prune
from .rewriting.dividing import Divide, branch_macs
from .rewriting.rewrite import Rewrite
from .splitting.cutting import Cutting
from .splitting.splits import Split, plan_of
from .splitting.staging import split_costs
from .surgery import Alive


class Decoder:
    """Reads candidates of the spaces of one captured model.

    Attributes:
        orders: importance criterion -> group -> units, best first.
    """

    def __init__(self, coupling: Coupling, blocks: Sequence[Block], costs: Costs, cutting: Cutting) -> None:
        self.coupling, self.costs, self.cutting = coupling, costs, cutting
        self.orders: dict[str, dict[str, np.ndarray]] = {}
        self._group_at = {g.name: i for i, g in enumerate(coupling.groups)}
        self._block_at = {b.name: k for k, b in enumerate(blocks)}

    def cost_arrays(self, choices: tuple[Choice, ...], indices: np.ndarray) -> dict[str, np.ndarray]:
        """Analytic costs of candidates given as option indices [n, choices] (see :meth:`Costs.evaluate`).

        Where weights are masked also ``nonzeros``: parameters that no mask sets to zero. Where the network
        is split also what :func:`pipeline_costs` gives, of which ``memory_mb`` takes the place of that of
        the whole, and what takes time is there if all devices have profiles.
        """
        widths, dropped = self.widths(choices, indices)
        costs = self._whole(choices, indices, widths, dropped)
        if (plan := plan_of(choices)) is not None:
            staging = self.cutting.staging(plan.indices)
            costs |= split_costs(plan, staging, *plan.decode(choices, indices), widths, dropped)
        return costs

    def widths(self, choices: tuple[Choice, ...], indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Kept units int64 [n, groups] and dropped blocks bool [n, blocks] of candidates."""
        sizes = np.array([g.size for g in self.coupling.groups], dtype=np.int64)
        widths = np.tile(sizes, (len(indices), 1))
        dropped = np.zeros((len(indices), len(self._block_at)), dtype=bool)
        for column, choice in enumerate(choices):
            if isinstance(choice.edit, Prune):
                kept = np.asarray(choice.edit.kept)
                widths[:, self._group_at[choice.edit.group]] = kept[indices[:, column]]
            elif isinstance(choice.edit, Drop):
                dropped[:, self._block_at[choice.edit.block]] = indices[:, column] > 0
        return widths, dropped

    def _whole(
        self, choices: tuple[Choice, ...], indices: np.ndarray, widths: np.ndarray, dropped: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Costs of the networks in one piece."""
        costs = self.costs.evaluate(widths, dropped)
        masked = [(column, c) for column, c in enumerate(choices) if isinstance(c.edit, Mask)]
        if masked:
            costs["nonzeros"] = costs["params"].copy()
        for column, choice in masked:
            lengths = self.costs.lengths(choice.edit.parameter, widths, dropped)
            for index, share in enumerate(choice.options):
                rows = indices[:, column] == index
                costs["nonzeros"][rows] -= zeros(choice.edit, float(share), lengths[rows])
        tables = Tables(self.costs, self.coupling, widths, dropped)
        for column, choice in enumerate(choices):
            if isinstance(choice.edit, Rewrite):
                for index, option in enumerate(choice.options[1:], start=1):
                    rows = indices[:, column] == index
                    if rows.any():
                        choice.edit.adjust(costs, option, rows, tables)
        for name in {name for choice in choices for name in getattr(choice.edit, "measured", ())}:
            costs.pop(name, None)  # the data decide: an evaluator tells
        if "macs" in costs and any(isinstance(choice.edit, Divide) for choice in choices):
            costs["branch_macs"] = branch_macs(choices, indices, tables, costs["macs"])
        return costs

    def cost_bounds(
        self, choices: tuple[Choice, ...], low: np.ndarray, high: np.ndarray
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Certain bounds over boxes ``low <= indices <= high`` [n, choices]: cost -> (least, most) [n].

        Only of costs that :func:`falling_costs` names: the corners of a box bound them.
        """
        names = falling_costs(choices, positive=self.costs.positive)
        if not names:
            return {}
        least, most = (self._whole(choices, x, *self.widths(choices, x)) for x in (high, low))
        return {name: (least[name], most[name]) for name in names}

    def kept(self, candidate: Candidate) -> dict[str, np.ndarray]:
        """Units kept in each pruned group, ascending, by group name."""
        kept: dict[str, np.ndarray] = {}
        for choice, index in zip(candidate.choices, candidate.indices, strict=True):
            if isinstance(choice.edit, Prune):
                ranked = self.orders[choice.edit.order][choice.edit.group]
                kept[choice.edit.group] = np.sort(ranked[: choice.edit.kept[index]])
        return kept

    def alive(self, candidate: Candidate) -> Alive:
        """Which unit labels stay, then which blocks: [units + 1 + blocks] bool (see :data:`Alive`)."""
        alive = np.ones(self.coupling.units + 1 + len(self._block_at), dtype=bool)
        for choice, index in zip(candidate.choices, candidate.indices, strict=True):
            if isinstance(choice.edit, Drop) and index:
                alive[self.coupling.units + 1 + self._block_at[choice.edit.block]] = False
        for name, units in self.kept(candidate).items():
            labels = self.coupling.groups[self._group_at[name]].labels
            alive[labels] = False
            alive[labels[units]] = True
        return alive

    def placed(self, candidate: Candidate) -> tuple[list[int], list[int], np.ndarray]:
        """Boundaries [parts - 1] and devices [parts] of a split candidate, and its dropped blocks [blocks].

        Boundaries are where stages really begin (see :attr:`.staging.Segments.snap`).
        """
        plan = plan_of(candidate.choices)
        assert plan is not None
        indices = np.array([candidate.indices])
        begins, on = plan.decode(candidate.choices, indices)
        widths, dropped = self.widths(candidate.choices, indices)
        snap = self.cutting.staging(plan.indices).evaluate(widths, dropped).snap
        return snap[0, begins[0]].tolist(), on[0].tolist(), dropped[0]

    def is_split(self, candidate: Candidate) -> bool:
        """Has it more than one stage?"""
        plan = plan_of(candidate.choices)
        return plan is not None and any(0 < b < plan.segments for b in self.placed(candidate)[0])

    def unchanged(self, candidate: Candidate) -> bool:
        """Is it the given network, wherever that is cut?"""
        rest = [
            c
            for c, i in zip(candidate.choices, candidate.indices, strict=True)
            if i and not isinstance(c.edit, Prune | Drop | Split)
        ]
        return not rest and bool(self.alive(candidate).all())

    def network_key(self, candidate: Candidate) -> bytes:
        """See :meth:`Blueprint.network_key`."""
        others = [
            (c.name, i)
            for c, i in zip(candidate.choices, candidate.indices, strict=True)
            if i and not isinstance(c.edit, Prune | Drop | Split)
        ]
        return np.packbits(self.alive(candidate)).tobytes() + repr(others).encode()

    @staticmethod
    def masks(candidate: Candidate) -> Mapping[str, Sparsify]:
        """What is set to zero, by canonical name of the weight."""
        return {
            choice.edit.parameter: choice.edit.step(float(choice.options[index]))
            for choice, index in zip(candidate.choices, candidate.indices, strict=True)
            if isinstance(choice.edit, Mask) and index
        }
