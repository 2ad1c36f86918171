"""Branch and bound where candidates have to be scored: good ones early, none that cannot matter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush

import numpy as np

from ...results.objective import Limit, Objective
from ...results.trial import Trial
from ...spaces import Candidate, Space
from ..baselines import halving
from .tree import Bounds, Incumbents, branching_order

# Values of a metric never rise with compression (accuracy, and what a cost measures), or never fall.
FALLS, RISES = "falls", "rises"


def directions(
    objectives: Sequence[Objective], limits: Iterable[Limit], assumed: bool | Iterable[str]
) -> dict[str, str]:
    """What is assumed of each metric: nothing for those that are not in the result.

    With compression, maximised metrics and costs fall; ``loss``, and a first objective that is minimised and
    no known cost, rise.

    Args:
        assumed: ``True`` for all metrics of the objectives and limits, or the names of some.

    Raises:
        ValueError: a name that is neither an objective's nor a limit's.
    """
    names = [o.name for o in objectives] + [m.metric for m in limits]
    if isinstance(assumed, bool):
        wanted = set(names) if assumed else set()
    else:
        wanted = {assumed} if isinstance(assumed, str) else set(assumed)
        if unknown := sorted(wanted - set(names)):
            raise ValueError(
                f"assume_monotone names {unknown}, which are neither objectives nor limited; those are "
                f"{sorted(set(names))}"
            )
    first = objectives[0]
    rising = {"loss"} | ({first.name} if first.goal == "min" and not first.unit else set())
    return {name: RISES if name in rising else FALLS for name in wanted}


class MonotoneTrials:
    """Envelopes of measured metrics over boxes of candidates, from trials inside and outside of them.

    If a metric never rises with compression, no candidate has more than one that is less compressed in every
    choice, and none has less than one that is more compressed in every choice.

    Args:
        assumed: metric -> ``FALLS`` or ``RISES``.
    """

    def __init__(self, space: Space, assumed: dict[str, str]) -> None:
        self.assumed = assumed
        self._rows = np.empty((0, len(space)), dtype=np.int64)
        self._values = {name: np.empty(0) for name in assumed}

    def add(self, trial: Trial) -> None:
        """A failed trial says nothing about others."""
        if self.assumed and not trial.failed:
            self._rows = np.concatenate([self._rows, [trial.candidate.indices]])
            for name, values in self._values.items():
                self._values[name] = np.append(values, trial.scores.get(name, np.nan))

    def over(self, low: np.ndarray, high: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Metric -> least and largest value in each of the boxes [n, choices], infinite where unknown."""
        if not self.assumed:
            return {}
        before = np.ones((len(low), len(self._rows)), dtype=bool)  # the trial is compressed less, everywhere
        after = before.copy()
        for d in range(low.shape[1]):
            before &= self._rows[:, d] <= low[:, d, None]
            after &= self._rows[:, d] >= high[:, d, None]
        out = {}
        for name, direction in self.assumed.items():
            values = self._values[name]
            known = np.isfinite(values)
            small, large = (after, before) if direction == FALLS else (before, after)
            least = np.where(small & known, values, -np.inf).max(axis=1, initial=-np.inf)
            most = np.where(large & known, values, np.inf).min(axis=1, initial=np.inf)
            out[name] = least, most
        return out


# -- Branch and bound where candidates have to be scored: good ones early, none that cannot matter ------


class Discrepancies:
    """Limited discrepancy search over the choices (Harvey and Ginsberg, IJCAI 1995): boxes by the number of
    times they depart from the heuristic, of equal ones the deepest first.

    The heuristic compresses all choices alike: after the first decision, every further one prefers the option
    at the mean compression of those before, and each option away from it counts one. So the ladder along the
    diagonal comes first, then what is one step from it in one choice, and so on: the same order whatever
    has been cut, and every candidate once.

    A box is closed when no candidate in it keeps the limits, or when a scored candidate that keeps them is at
    least as good as the bounds in every objective: exact costs, and the envelope of the trials where a metric
    is assumed to be monotone (without an assumption a measured objective has no bound). Under the
    assumption, a box is scored at its least compressed corner before it is split, where limits allow that:
    a bad corner closes the box.

    Args:
        bounds: of the analytic objectives and limits.
        measured: what trials say under the assumption.
        limits: (metric, is an upper limit, bound) of the limits on measured metrics.
    """

    def __init__(
        self,
        bounds: Bounds,
        measured: MonotoneTrials,
        limits: list[tuple[str, bool, float]],
    ) -> None:
        self.bounds, self.measured, self.limits = bounds, measured, limits
        self.space = bounds.space
        self.order = branching_order(bounds)
        self.incumbents = Incumbents(len(bounds.objectives), len(self.space))
        self.nodes, self.leaves = 1, 0
        self.cuts = {"limit": 0, "dominance": 0, "monotone": 0}
        self._closed: set[tuple[int, ...]] = set()  # candidates that were told or are under way
        self._heap: list[tuple[int, int, int, tuple[int, ...], tuple[float, ...]]] = []
        self._serial = 0
        self._bounding = any(origin != "none" for origin in bounds.origin.values())
        self._push(0, 0, np.zeros((1, len(self.space)), dtype=np.int64), [0])

    @property
    def done(self) -> bool:
        return not self._heap

    def tell(self, trial: Trial, loss: np.ndarray, keeps: bool) -> None:
        """A trial, its objectives to minimise, and whether it keeps all limits."""
        self._closed.add(trial.candidate.indices)
        self.measured.add(trial)
        if keeps and np.isfinite(loss).all():
            self.incumbents.add(loss[None], np.array([trial.candidate.indices]))

    def next(self, nodes: int) -> Candidate | None:
        """The next candidate to score; None when no box is open, or after so many nodes without one."""
        stop = self.nodes + nodes
        while self._heap and self.nodes < stop:
            departed, minus_depth, serial, row, lower = heappop(self._heap)
            depth = -minus_depth
            low = np.array([row])
            if depth == len(self.order):
                if row in self._closed:
                    continue
                if self._open(depth, low, np.array([lower]))[0]:
                    self.leaves += 1
                    return self._take(row)
                continue
            if not self._open(depth, low, np.array([lower]))[0]:
                continue
            if self._worth_scoring(depth, row, low):
                heappush(self._heap, (departed, minus_depth, serial, row, lower))
                return self._take(row)
            self._split(departed, depth, low)
        return None

    def gap(self, scale: np.ndarray) -> float:
        """As :meth:`~netcarve.search.exact.tree.Tree.gap`; ``scale`` [objectives] is what one unit is."""
        if self.done:
            return 0.0
        if not len(self.incumbents):
            return float("inf")
        worst = 0.0
        for _, minus_depth, _, row, lower in self._heap:
            if minus_depth == -len(self.order) and row in self._closed:
                continue
            low = np.array([row])
            bound = self._bound(self.measured.over(low, self._high(-minus_depth, low)), np.array([lower]))
            worst = max(worst, float(((self.incumbents.values - bound) / scale).max(axis=1).min()))
            if worst == float("inf"):
                break
        return worst

    def _take(self, row: tuple[int, ...]) -> Candidate:
        self._closed.add(row)
        return Candidate(row, self.space.choices)

    def _worth_scoring(self, depth: int, row: tuple[int, ...], low: np.ndarray) -> bool:
        """Whether to score the corner of a box first: where that may close it, and is allowed."""
        if not self.measured.assumed or row in self._closed or not len(self.incumbents):
            return False
        return bool(self.bounds.at(low)[1][0])

    def _split(self, departed: int, depth: int, low: np.ndarray) -> None:
        d = self.order[depth]
        count = int(self.space.counts[d])
        children = np.repeat(low, count, axis=0)
        children[:, d] = np.arange(count)
        if depth == 0:
            ranks = [0] * count
            children = children[halving(count)]
        else:
            before = self.order[:depth]
            shares = low[0, before] / np.maximum(self.space.counts[before] - 1, 1)
            several = self.space.counts[before] > 1
            share = float(shares[several].mean()) if several.any() else 0.0
            liked = int(np.floor(share * (count - 1) + 0.5))
            ranks = [abs(i - liked) for i in range(count)]
        self.nodes += count
        self._push(departed, depth + 1, children, ranks)

    def _push(self, departed: int, depth: int, rows: np.ndarray, ranks: list[int]) -> None:
        lower, possible = np.full((len(rows), len(self.bounds.objectives)), -np.inf), np.ones(len(rows), bool)
        if self._bounding:
            lower, possible = (
                self.bounds.at(rows)
                if depth == len(self.order)
                else self.bounds.over(rows, self._high(depth, rows))
            )
        self.cuts["limit"] += int((~possible).sum())
        for row, rank, least, ok in zip(rows.tolist(), ranks, lower.tolist(), possible.tolist(), strict=True):
            if ok:
                self._serial += 1
                heappush(self._heap, (departed + rank, -depth, self._serial, tuple(row), tuple(least)))

    def _high(self, depth: int, low: np.ndarray) -> np.ndarray:
        high = low.copy()
        free = self.order[depth:]
        high[:, free] = self.space.counts[free] - 1
        return high

    def _open(self, depth: int, low: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Which boxes [n] may still hold something, by what trials say; counts what closes the others."""
        envelopes = self.measured.over(low, self._high(depth, low))
        out = np.ones(len(low), dtype=bool)
        for metric, upper, bound in self.limits:
            if metric in envelopes:
                least, most = envelopes[metric]
                out &= least <= bound if upper else most >= bound
        self.cuts["monotone"] += int((~out).sum())
        beaten = self.incumbents.beat(self._bound(envelopes, lower)) & out
        self.cuts["monotone" if envelopes else "dominance"] += int(beaten.sum())
        return out & ~beaten

    def _bound(self, envelopes: dict[str, tuple[np.ndarray, np.ndarray]], lower: np.ndarray) -> np.ndarray:
        """Bounds of the objectives, the measured ones by their envelopes; [n, objectives]."""
        lower = lower.copy()
        for j, o in enumerate(self.bounds.objectives):
            if o.name in envelopes and o.name not in self.bounds.analytic:
                least, most = envelopes[o.name]
                lower[:, j] = least if o.sign > 0 else -most
        return lower
