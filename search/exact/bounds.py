"""What is certain about analytic objectives and limits over a whole box of candidates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ...results.objective import Limit, Objective
from ...spaces import Space
from ..greedy.sensitivity import candidates_of

TOLERANCE = 1e-12  # relative; numbers that differ by less, as rounding may make them, count as equal


class Bounds:
    """Bounds of the objectives, and of the limits, over boxes ``low <= x <= high`` of option indices.

    Where a bound comes from, by metric (``origin``):

    * ``"interval"``: the space's model vouches for it, ``model.cost_bounds(choices, low, high) -> {metric:
      (lower [n], upper [n])}``. A :class:`~netcarve.spaces.blueprint.Blueprint` does so for spaces of pruning
      choices whose kept units fall along the options: its costs are polynomials with coefficients that are
      not negative, so the two extreme corners of the box bound them.
    * ``"assumed"``: the caller states that the metric never rises with compression.
    * ``"exact"``: no bound for a box, only the cost of single candidates: such a metric cuts nothing but
      leaves.
    * ``"none"``: not analytic; minus infinity.

    Args:
        objectives, limits: of the search; those on metrics that are not ``analytic`` bound nothing.
        baseline: scores of the unchanged model, for relative limits.
        analytic: metrics of ``space.cost_arrays`` that may be used.
        falling: metrics that never rise with compression, by the caller's word.
    """

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        limits: Iterable[Limit],
        baseline: Mapping[str, float],
        *,
        analytic: Iterable[str],
        falling: Iterable[str] = (),
    ) -> None:
        self.space, self.objectives = space, tuple(objectives)
        self.analytic = set(analytic)
        self.falling = set(falling) & self.analytic
        self.limits = [
            (m.metric, "<=" in m.text, m.bound(baseline)) for m in limits if m.metric in self.analytic
        ]
        corner = np.zeros((1, len(space)), dtype=np.int64)
        vouched = set(self._vouched(corner, corner + space.counts - 1))
        wanted = {o.name for o in self.objectives} | {m.metric for m in limits}
        self.origin = {name: self._origin(name, vouched) for name in sorted(wanted)}

    def _origin(self, metric: str, vouched: set[str]) -> str:
        if metric not in self.analytic:
            return "none"
        return "interval" if metric in vouched else "assumed" if metric in self.falling else "exact"

    def over(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Over boxes [n, choices], both corners included.

        Returns:
            Lower bounds of the objectives to minimise, float64 [n, objectives], and bool [n]: False where
            no candidate of the box keeps the limits.
        """
        boxes = dict(self._vouched(low, high))
        if assumed := [m for m, origin in self.origin.items() if origin == "assumed"]:
            least, most = self._costs(high), self._costs(low)
            boxes |= {m: (least[m], most[m]) for m in assumed}
        lower = np.full((len(low), len(self.objectives)), -np.inf)
        for j, o in enumerate(self.objectives):
            if o.name in boxes:
                lower[:, j] = boxes[o.name][0] if o.sign > 0 else -boxes[o.name][1]
        possible = np.ones(len(low), dtype=bool)
        for metric, upper, bound in self.limits:
            if metric in boxes:
                best = boxes[metric][0] if upper else -boxes[metric][1]
                possible &= best - TOLERANCE * np.abs(best) <= (bound if upper else -bound)
        return lower, possible

    def at(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of single candidates [n, choices]: objectives to minimise (-inf where not analytic), and whether
        they keep the limits."""
        costs = self._costs(rows)
        values = np.full((len(rows), len(self.objectives)), -np.inf)
        for j, o in enumerate(self.objectives):
            if o.name in self.analytic:
                values[:, j] = o.sign * costs[o.name]
        keeps = np.ones(len(rows), dtype=bool)
        for metric, upper, bound in self.limits:
            keeps &= costs[metric] <= bound if upper else costs[metric] >= bound
        return values, keeps

    def _costs(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return self.space.cost_arrays(candidates_of(self.space, rows)) if self.analytic else {}

    def _vouched(self, low: np.ndarray, high: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        found = self.space.side.cost_bounds(self.space.choices, low, high) if self.analytic else {}
        return {m: pair for m, pair in found.items() if m in self.analytic}


def branching_order(bounds: Bounds) -> list[int]:
    """Choices by how much they move the analytic metrics alone, most first: early branches then cut most."""
    space = bounds.space
    effect = np.zeros(len(space))
    names = [m for m, origin in bounds.origin.items() if origin != "none"]
    for base in (np.zeros(len(space), dtype=np.int64), space.counts - 1):
        for d, count in enumerate(space.counts.tolist()):
            rows = np.tile(base, (count, 1))
            rows[:, d] = np.arange(count)
            costs = bounds._costs(rows)
            for name in names:
                effect[d] += np.ptp(costs[name]) / max(np.abs(costs[name]).max(), 1e-300)
    return np.argsort(-effect, kind="stable").tolist()
