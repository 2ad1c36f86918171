"""Bayesian searchers' common ground: a process for each measured metric, exact costs for the rest.

matrices, in which threads mostly wait for each other (a hundred times, on a busy machine).
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from ...results.hypervolume import nondominated
from ...results.objective import Objective
from ...results.trial import Trial
from ...spaces import Candidate, Space
from ..base import Searcher
from ..evolutionary.evolution import kept, scattered, vary
from ..wrappers import violations
from .acquisition import Acquisition, Bound, ImprovementMeasure
from .kernel import OptionKernel, Posterior
from .metric import Metric


def one_thread() -> AbstractContextManager[Any]:
    """A context in which NumPy's and SciPy's linear algebra uses one thread; does without torch."""
    return _libraries().limit(limits=1, user_api="blas")


@cache
def _libraries() -> Any:
    """Control over the linear algebra libraries that are loaded; looking for them takes milliseconds."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


# -- What Bayesian searchers share: a process for each metric that is measured, exact costs for the rest

FEWEST = 3  # trials before a process is fitted
GROWTH = 1.4  # hyperparameters are fitted again when there are so many times more trials
TEACHERS = 96  # trials that hyperparameters are fitted to
GENERATIONS = 2  # of candidates varied from the best ones, before the best is asked for
STRANGERS = 0.125  # share of random candidates in a pool
KNOTS = 21  # at which the worth of a modelled objective is evaluated
EARLY = 1 / 4  # of the largest number under way: so many at first, and more with more trials told
ELITE = 32  # best candidates kept from one proposal to the next, beside those not dominated in the mean


class Bayesian(Searcher):
    """Fits, ranks and proposes; a subclass says what to begin with and what an objective's values are worth.

    Whatever ``space.cost_arrays`` gives is known exactly and free. Every other objective, and every other
    metric that a limit is on, gets a Gaussian process of its own. What is under way counts as scored with
    its expected outcome (kriging believer, Ginsbourger, Le Riche and Carraro 2010), so that candidates asked
    for at once differ; while little is known fewer are proposed than asked for, since each outcome changes
    what comes next. A failed trial counts as the worst seen. Where a metric was never measured, or too
    little is known, candidates are random.
    """

    most = 400  # trials that a process is conditioned on: those nearest to the front
    pool = 400  # candidates ranked at a time
    each = 8  # trials told for every candidate under way beyond the first few
    patience: float = np.inf  # with so many trials told, twice as many candidates are proposed at a time

    def __init__(self, space: Space, objectives: Iterable[Objective | str], *, seed: int = 0) -> None:
        super().__init__(space, objectives, seed=seed)
        self.kernel = OptionKernel(space)
        self._analytic = frozenset(self.baseline)
        self._told: dict[tuple[int, ...], Trial] = {}
        self._pending: dict[tuple[int, ...], None] = {}
        self._begin: deque[Candidate] | None = None  # what is left of the design; None: not made yet
        self._design: set[tuple[int, ...]] = set()
        self._queue: deque[Candidate] = deque()
        self._window = 0  # most under way that was ever asked for
        self._elite = np.zeros((0, len(space)), dtype=np.int64)
        self._metrics: list[Metric] | None = None  # not before the limits are known
        self._fitted = 0  # how many trials the hyperparameters were fitted to

    @abstractmethod
    def design(self) -> np.ndarray:
        """Rows of option indices [n, choices] to begin with, the most useful first; repeats are harmless."""

    @abstractmethod
    def worth(self, away: np.ndarray, seen: np.ndarray, anchor: float) -> np.ndarray:
        """What a modelled objective's values are worth, rising.

        Args:
            away: float64 [k], rising losses relative to the anchor.
            seen: float64 [n], those of the trials.
            anchor: the unchanged model's loss, or the least one where it has none.
        """

    def ask(self, n: int) -> list[Candidate]:
        if self._begin is None:  # what was told before (earlier runs) takes the place of as many
            design = self.design()
            left = max(0, len(design) - max(0, len(self._told) - 1))
            self._begin = deque(self._candidates(self._kept(design[:left])))
            self._design = {c.indices for c in self._begin}
        self._window = max(self._window, n + len(self._pending))
        most = max(1, int(EARLY * self._window), len(self._told) // self.each)
        out: list[Candidate] = []
        while len(out) < n and (self._begin or len(self._pending) < most):
            if not self._begin and not self._design.isdisjoint(self._pending):
                break  # nothing is modelled before all of the design is told
            if not self._begin and not self._queue:
                room = min(n - len(out), most - len(self._pending))
                wanted = room + int(len(self._told) / self.patience)
                self._queue.extend(self._candidates(self._propose(wanted)))
            source = self._begin or self._queue
            if not source:
                break
            candidate = source.popleft()
            if candidate.indices not in self._told and candidate.indices not in self._pending:
                self._pending[candidate.indices] = None
                out.append(candidate)
        return out

    def tell(self, trials: Sequence[Trial]) -> None:
        super().tell(trials)
        for trial in sorted(trials, key=lambda t: (t.number, t.candidate.indices)):
            self._pending.pop(trial.candidate.indices, None)
            self._told[trial.candidate.indices] = trial

    # candidates

    def _candidates(self, rows: np.ndarray) -> list[Candidate]:
        return [Candidate(tuple(row), self.space.choices) for row in rows.tolist()]

    def _costs(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return self.space.side.cost_arrays(self.space.choices, rows)

    def _violation(self, rows: np.ndarray) -> np.ndarray:
        limits = [m for m in self.limits if m.metric in self._analytic]
        if not limits:
            return np.zeros(len(rows))
        return violations(self.space, limits, self.baseline, self._candidates(rows))

    def _kept(self, rows: np.ndarray) -> np.ndarray:
        return kept(rows, self.space.counts, self._violation)

    def _unseen(self, rows: np.ndarray) -> np.ndarray:
        """Distinct rows that keep the limits and were neither told nor asked for."""
        new = [r for r in dict.fromkeys(map(tuple, self._kept(rows).tolist())) if not self._is_seen(r)]
        return np.array(new, dtype=np.int64).reshape(-1, len(self.space))

    def _is_seen(self, row: tuple[int, ...]) -> bool:
        return row in self._told or row in self._pending

    # what is known

    def _modelled(self) -> list[Metric]:
        """Of objectives and limits, what has to be measured."""
        if self._metrics is None:
            signs = {o.name: o.sign for o in self.objectives}
            for m in self.limits:
                signs.setdefault(m.metric, 1.0 if "<=" in m.text else -1.0)
            self._metrics = [Metric(n, s) for n, s in signs.items() if n not in self._analytic]
        return self._metrics

    def _bounds(self) -> list[Bound]:
        """Limits on modelled metrics, as bounds on losses."""
        found = []
        for m in self.limits:
            for j, metric in enumerate(self._modelled()):
                if m.metric == metric.name and (not m.relative or m.metric in self.baseline):
                    level = metric.sign * m.bound(self.baseline)
                    found.append(Bound(j, level, ("<=" in m.text) == (metric.sign > 0)))
        return found

    def _points(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Objectives [n, objectives], minimised: modelled ones from values [n, metrics], others exact."""
        columns = self._columns(self._costs(rows))
        return np.column_stack([values[:, c] if isinstance(c, int) else c for c in columns])

    def _columns(self, costs: dict[str, np.ndarray]) -> list[int | np.ndarray]:
        """Of each objective the number of its modelled metric, or its known losses [n]."""
        number = {m.name: j for j, m in enumerate(self._modelled())}
        return [number[o.name] if o.name in number else o.sign * costs[o.name] for o in self.objectives]

    def _evidence(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Rows told [n, choices], losses of the modelled metrics [n, metrics], the worst for a failure, and
        who succeeded [n]; None when that is too little."""
        metrics = self._modelled()
        trials = [t for t in self._told.values() if not (t.failed and t.number < 0)]  # refused ones aside
        losses = np.array([[m.sign * t.scores.get(m.name, np.nan) for m in metrics] for t in trials])
        known = np.isfinite(losses)
        if len(trials) < FEWEST or not known.any(axis=0).all():
            return None
        losses = np.where(known, losses, np.where(known, losses, -np.inf).max(axis=0, initial=-np.inf))
        return np.array([t.candidate.indices for t in trials]), losses, known.all(axis=1)

    def _learn(self, rows: np.ndarray, losses: np.ndarray) -> None:
        """Fit the hyperparameters again, when there is much more to learn from than last time."""
        if len(rows) < GROWTH * self._fitted:
            return
        self._fitted = len(rows)
        for j, metric in enumerate(self._modelled()):
            base = self.baseline.get(metric.name)
            anchor = float(losses[:, j].min()) if base is None else metric.sign * base
            metric.fit(self.kernel, rows[:TEACHERS], losses[:TEACHERS, j], anchor)

    def _belief(self, rows: np.ndarray, losses: np.ndarray, good: np.ndarray) -> Belief:
        """What is expected of any candidate, and what has to be improved on.

        Args:
            rows, losses: of trials, those nearest to the front first.
            good: bool [n], those that succeeded and keep the limits.
        """
        metrics = self._modelled()
        z = np.column_stack([m.z(losses[:, j]) for j, m in enumerate(metrics)]) if metrics else losses
        processes = [
            Posterior(m.covariance, rows[: self.most], z[: self.most, j])
            for j, m in enumerate(metrics)
            if m.covariance is not None
        ]
        points = self._points(rows, z)
        reference = points[good].max(axis=0) if good.any() else points.max(axis=0)
        for k, o in enumerate(self.objectives):
            if o.name in self._analytic:
                reference[k] = max(reference[k], o.sign * self.baseline[o.name])
        reference += 1e-9 * np.maximum(1.0, np.abs(reference))
        bounds = [replace(b, level=float(metrics[b.metric].z(np.array(b.level)))) for b in self._bounds()]
        front_rows, front = rows[good], points[good]
        if self._pending:
            under_way = np.array(list(self._pending), dtype=np.int64)
            means = np.array([p.mean(under_way) for p in processes]).reshape(-1, len(under_way)).T
            processes = [p.given(under_way, means[:, j]) for j, p in enumerate(processes)]
            allowed = np.ones(len(under_way), dtype=bool)
            for b in bounds:
                allowed &= b.kept(means[:, b.metric])
            front_rows = np.vstack([front_rows, under_way[allowed]])
            front = np.vstack([front, self._points(under_way[allowed], means[allowed])])
        best = nondominated(front) if len(front) else np.zeros(0, dtype=bool)
        measures = self._measures(losses, z)
        return Belief(processes, front_rows[best], front[best], reference, measures, bounds)

    def _measures(self, losses: np.ndarray, z: np.ndarray) -> dict[int, ImprovementMeasure]:
        out = {}
        names = [o.name for o in self.objectives]
        for j, metric in enumerate(self._modelled()):
            if metric.name in names and metric.warp is not None:
                knots = np.linspace(z[:, j].min() - 0.5, z[:, j].max() + 0.1, KNOTS)
                away = metric.warp.inverse(knots) - metric.warp.anchor
                worth = self.worth(away, losses[:, j] - metric.warp.anchor, metric.warp.anchor)
                out[names.index(metric.name)] = ImprovementMeasure(knots, worth)
        return out

    # what is proposed

    def _propose(self, n: int) -> np.ndarray:
        """At most ``n`` rows to ask for next."""
        evidence = self._evidence()
        if evidence is None:
            return self._unseen(scattered(self.rng, self.space.counts, 4 * n + 16))[:n]
        rows, losses, good = evidence
        good &= self._violation(rows) <= 0.0
        for b in self._bounds():
            good &= b.kept(losses[:, b.metric])
        points = self._points(rows, losses)
        order = np.argsort(_behind(points, points[good]), kind="stable")
        rows, losses, good = rows[order], losses[order], good[order]
        with one_thread():
            self._learn(rows, losses)
            return self._search(self._belief(rows, losses, good), rows, n)

    def _search(self, belief: Belief, rows: np.ndarray, n: int) -> np.ndarray:
        """The best of pools varied from the front and from what was best last time."""
        elite, parents = self._elite, np.vstack([belief.front_rows, self._elite])
        for _ in range(GENERATIONS):
            pool = self._pool(elite, parents if len(parents) else rows)
            if not len(pool):
                return pool
            ranking = self._rank(belief, pool)
            first = np.argsort(-ranking.values(), kind="stable")
            middle = np.flatnonzero(nondominated(ranking.mean))  # under the model: where variation pays
            elite = pool[np.union1d(first[:ELITE], middle[: 2 * ELITE])]
            parents = np.vstack([belief.front_rows, elite])
        self._elite = elite
        if n > 1:  # what is taken makes others worth less, never more: the next ones are near the top
            pool = pool[first[: n + ELITE // 2]]
            ranking = self._rank(belief, pool)
        return pool[[ranking.take() for _ in range(min(n, len(pool)))]]

    def _pool(self, elite: np.ndarray, parents: np.ndarray) -> np.ndarray:
        """The elite, variations of the parents, and strangers; all there is in a small space."""
        counts = self.space.counts
        if self.space.size <= self.pool:
            return self._unseen(np.indices(tuple(counts)).reshape(len(counts), -1).T)
        strangers = int(STRANGERS * self.pool)
        varied = vary(self.rng, parents, counts, self.pool - strangers)
        return self._unseen(np.vstack([elite, varied, scattered(self.rng, counts, strangers)]))

    def _rank(self, belief: Belief, pool: np.ndarray) -> Acquisition:
        columns = self._columns(self._costs(pool))
        fields = [p.at(pool) for p in belief.processes]
        return Acquisition(fields, columns, belief.front, belief.reference, belief.measures, belief.bounds)


@dataclass(frozen=True, slots=True)
class Belief:
    """Processes that know of what is under way, and the front that they expect."""

    processes: list[Posterior]  # one per modelled metric
    front_rows: np.ndarray  # [points, choices]
    front: np.ndarray  # [points, objectives], minimised, modelled ones warped
    reference: np.ndarray  # [objectives]
    measures: dict[int, ImprovementMeasure]  # by objective
    bounds: list[Bound]  # on warped values


def _behind(points: np.ndarray, front: np.ndarray) -> np.ndarray:
    """How far points [n, objectives] are behind a front: the shift in all objectives that would bring each to
    it (additive epsilon, Zitzler et al. 2003), objectives scaled to their range; 0 on the front."""
    if not len(front):
        return np.zeros(len(points))
    best = front[nondominated(front)]
    scale = np.maximum(np.ptp(points, axis=0), 1e-12)
    ahead = [np.subtract.outer(p, b) / s for p, b, s in zip(points.T, best.T, scale, strict=True)]
    return np.minimum.reduce(ahead).max(axis=1)
