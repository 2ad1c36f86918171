"""Branch and bound over boxes of candidates whose objectives are all analytic, and the bounds it uses."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from ...results.hypervolume import nondominated
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


# -- Branch and bound over boxes of candidates whose objectives are all analytic ------------------------

CHUNK = 256  # boxes split together: one call for the bounds of all their children


class Incumbents:
    """The best candidates so far: no one beats another, of equal objectives one is kept.

    Attributes:
        values: float64 [n, objectives], minimised, in lexicographic order.
        rows: int64 [n, choices].
    """

    def __init__(self, objectives: int, choices: int) -> None:
        self.values = np.empty((0, objectives))
        self.rows = np.empty((0, choices), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.values)

    def add(self, values: np.ndarray, rows: np.ndarray) -> None:
        new = ~self.beat(values)
        if not new.any():
            return
        values, rows = np.concatenate([self.values, values[new]]), np.concatenate([self.rows, rows[new]])
        values, first = np.unique(values, axis=0, return_index=True)  # lexicographic
        best = nondominated(values)
        self.values, self.rows = values[best], rows[first[best]]

    def beat(self, lower: np.ndarray) -> np.ndarray:
        """Whether some incumbent is at least as good as each of the bounds [n, objectives] everywhere."""
        if not len(self):
            return np.zeros(len(lower), dtype=bool)
        lower = lower + TOLERANCE * np.abs(np.where(np.isfinite(lower), lower, 0.0))
        if self.values.shape[1] == 2:  # sorted by the first objective, the second falls
            at = np.searchsorted(self.values[:, 0], lower[:, 0], side="right") - 1
            return (at >= 0) & (self.values[at, 1] <= lower[:, 1])
        out = np.zeros(len(lower), dtype=bool)
        for i in range(0, len(lower), 512):
            part = lower[i : i + 512]
            out[i : i + 512] = np.any(np.all(self.values[None] <= part[:, None], axis=2), axis=1)
        return out


class Tree:
    """Depth first over the choices in a fixed order; a box is a prefix of decided choices, the rest free.

    A box is closed when no candidate in it keeps the limits, or when an incumbent is at least as good as the
    box's bound in every objective; otherwise it is split by the options of the next choice. When no box is
    open, the incumbents are the complete front: one candidate for every non-dominated vector of objectives
    (Land and Doig, Econometrica 28(3), 1960; for several objectives Przybylski and Gandibleux, EJOR 260(3),
    2017, with the componentwise bound).

    Args:
        bounds: of all objectives.
        excluded: candidates (as index tuples) that count as infeasible.
    """

    def __init__(self, bounds: Bounds, *, excluded: Collection[tuple[int, ...]] = ()) -> None:
        self.bounds = bounds
        self.excluded = set(excluded)
        self.order = branching_order(bounds)
        self.counts = bounds.space.counts
        self.incumbents = Incumbents(len(bounds.objectives), len(self.counts))
        self.nodes = 1
        self.leaves = 0
        self.cuts = {"limit": 0, "dominance": 0}
        root = np.zeros((1, len(self.counts)), dtype=np.int64)
        lower, possible = bounds.over(root, root + self.counts - 1)
        unchanged = np.abs(bounds.at(root)[0][0])
        self.scale = np.where(unchanged > 0.0, unchanged, 1.0)  # [objectives]: what one unit of each is
        # Boxes with as many decided choices as `depth`, the most promising last: (depth, low corners, bounds)
        self.open: list[tuple[int, np.ndarray, np.ndarray]] = [(0, root, lower)] if possible[0] else []
        self.cuts["limit"] += int(not possible[0])

    @property
    def done(self) -> bool:
        return not self.open

    def suggest(self, rows: np.ndarray) -> None:
        """Candidates [n, choices] that may be good: an incumbent found early cuts more."""
        if len(rows):
            self._leaf(np.asarray(rows, dtype=np.int64))

    def run(self, nodes: int) -> None:
        """Go on for about so many nodes, or to the end."""
        stop = self.nodes + nodes
        while self.open and self.nodes < stop:
            depth, rows, lower = self.open.pop()
            if len(rows) > CHUNK:
                self.open.append((depth, rows[:-CHUNK], lower[:-CHUNK]))
                rows, lower = rows[-CHUNK:], lower[-CHUNK:]
            beaten = self.incumbents.beat(lower)
            self.cuts["dominance"] += int(beaten.sum())
            if not beaten.all():
                self._split(depth, rows[~beaten])

    def gap(self) -> float:
        """Least e such that nothing unseen is better than some incumbent by more than e in all objectives,
        in units of the unchanged model's values; 0 when done, inf without an incumbent or a bound."""
        if self.done:
            return 0.0
        if not len(self.incumbents):
            return float("inf")
        worst = 0.0
        for _, _, lower in self.open:
            for i in range(0, len(lower), 256):
                short = (self.incumbents.values[None] - lower[i : i + 256, None]) / self.scale
                worst = max(worst, float(short.max(axis=2).min(axis=1).max()))
        return worst

    def _split(self, depth: int, rows: np.ndarray) -> None:
        d = self.order[depth]
        low = np.repeat(rows, self.counts[d], axis=0)
        low[:, d] = np.tile(np.arange(self.counts[d]), len(rows))
        self.nodes += len(low)
        if depth + 1 == len(self.order):
            self.leaves += len(low)
            self._leaf(low)
            return
        high = low.copy()
        free = self.order[depth + 1 :]
        high[:, free] = self.counts[free] - 1
        lower, possible = self.bounds.over(low, high)
        beaten = self.incumbents.beat(lower) & possible
        self.cuts["limit"] += int((~possible).sum())
        self.cuts["dominance"] += int(beaten.sum())
        keep = np.flatnonzero(possible & ~beaten)
        if len(keep):
            promise = np.where(np.isfinite(lower), lower / self.scale, 0.0).sum(axis=1)
            keep = keep[np.argsort(-promise[keep], kind="stable")]
            self.open.append((depth + 1, low[keep], lower[keep]))

    def _leaf(self, rows: np.ndarray) -> None:
        values, keeps = self.bounds.at(rows)
        if self.excluded:
            keeps &= [tuple(row) not in self.excluded for row in rows.tolist()]
        self.incumbents.add(values[keeps], rows[keeps])
