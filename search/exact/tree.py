"""Branch and bound over boxes of candidates whose objectives are all analytic."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ...results.hypervolume import nondominated
from .bounds import TOLERANCE, Bounds, branching_order

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
