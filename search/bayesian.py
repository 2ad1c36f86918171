"""What Bayesian searchers share: a process for each metric that has to be measured, exact costs for the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from ..results.hypervolume import nondominated
from ..results.objective import Objective
from ..results.trial import Trial
from ..spaces import Candidate, Space
from .base import Searcher
from .feasible import violations
from .improvement import Measure, cells, expected_improvement
from .surrogate import OptionKernel, Posterior
from .variation import kept, scattered, vary
from .warp import SCALES, Warp, standardised

KNOTS = 33


@dataclass
class Metric:
    """A metric to model: as a loss, sign x score."""

    name: str
    sign: float
    warp: Warp | None = None
    share: float = 0.0
    theta: np.ndarray | None = None


class Bayesian(Searcher):
    most = 400
    pool = 400
    generations = 2
    growth = 1.25
    patience = 64

    def __init__(self, space: Space, objectives: Iterable[Objective | str], *, seed: int = 0) -> None:
        super().__init__(space, objectives, seed=seed)
        self.kernel = OptionKernel(space)
        self._analytic = frozenset(self.baseline)
        self._trials: dict[Candidate, Trial] = {}
        self._pending: dict[Candidate, None] = {}
        self._queue: deque[Candidate] = deque()
        self._elite = np.zeros((0, len(space)), dtype=np.int64)
        self._metrics: list[Metric] | None = None
        self._fitted = 0
        self._design: deque[Candidate] | None = None

    # ---- hooks
    def design(self) -> list[Candidate]:
        rows = np.concatenate([scattered(self.rng, self.space.counts, 10)])
        return self._as_candidates(rows)

    def worth(self, away: np.ndarray, reach: float) -> np.ndarray:
        return away

    # ---- protocol
    def ask(self, n: int) -> list[Candidate]:
        if self._design is None:
            self._design = deque(self._as_candidates(self._kept(np.array([c.indices for c in self.design()]))))
        out: list[Candidate] = []
        while len(out) < n:
            if not self._design and not self._queue:
                self._queue.extend(self._propose(max(n - len(out), 1 + len(self._trials) // self.patience)))
            source = self._design or self._queue
            if not source:
                break
            candidate = source.popleft()
            if candidate not in self._trials and candidate not in self._pending:
                self._pending[candidate] = None
                out.append(candidate)
        return out

    def tell(self, trials: Sequence[Trial]) -> None:
        super().tell(trials)
        for trial in sorted(trials, key=lambda t: (t.number, t.candidate.indices)):
            self._pending.pop(trial.candidate, None)
            self._trials[trial.candidate] = trial

    # ---- inside
    def _as_candidates(self, rows):
        return [Candidate(tuple(r), self.space.choices) for r in rows.tolist()]

    def _violation(self, rows):
        if not any(m.metric in self._analytic for m in self.limits):
            return np.zeros(len(rows))
        return violations(self.space, [m for m in self.limits if m.metric in self._analytic], self.baseline, self._as_candidates(rows))

    def _kept(self, rows):
        return kept(rows, self.space.counts, self._violation)

    def _costs(self, rows):
        return self.space.cost_arrays(self._as_candidates(rows))

    def _unseen(self, rows):
        keys = [r for r in dict.fromkeys(map(tuple, rows.tolist())) if (c := Candidate(r)) not in self._trials and c not in self._pending]
        return np.array(keys, dtype=np.int64).reshape(-1, len(self.space))

    def _random(self, n):
        rows = self._unseen(self._kept(scattered(self.rng, self.space.counts, 4 * n + 16)))
        return self._as_candidates(rows[:n])

    def _targets(self) -> list[Metric]:
        if self._metrics is None:
            names = {o.name: o.sign for o in self.objectives if o.name not in self._analytic}
            for m in self.limits:
                if m.metric not in self._analytic:
                    names.setdefault(m.metric, 1.0 if "<=" in m.text else -1.0)
            self._metrics = [Metric(n, s) for n, s in names.items()]
        return self._metrics

    def _propose(self, n: int) -> list[Candidate]:
        metrics = self._targets()
        trials = [t for t in self._trials.values() if t.number >= 0 or not t.failed]
        raw = np.array([[m.sign * t.scores.get(m.name, np.nan) for m in metrics] for t in trials]).reshape(len(trials), len(metrics))
        known = np.isfinite(raw)
        if len(trials) < 3 or not known.any(axis=0).all():
            return self._random(n)
        rows = np.array([t.candidate.indices for t in trials])
        raw = np.where(known, raw, np.nanmax(np.where(known, raw, -np.inf), axis=0))
        if len(trials) >= max(3, self.growth * self._fitted):
            self._fit(rows, raw, metrics)
        z = np.column_stack([m.warp(raw[:, j]) for j, m in enumerate(metrics)]) if metrics else raw
        costs = self._costs(rows)
        at = {m.name: j for j, m in enumerate(metrics)}
        points = np.column_stack([z[:, at[o.name]] if o.name in at else o.sign * costs[o.name] for o in self.objectives])
        good = known.all(axis=1) & np.array([self.violation(t) <= 0 for t in trials])
        worst = points[good].max(axis=0) if good.any() else points.max(axis=0)
        base = {o.name: o.sign * self.baseline[o.name] for o in self.objectives if o.name in self.baseline and o.name not in at}
        reference = np.array([max(worst[j], base.get(o.name, -np.inf)) for j, o in enumerate(self.objectives)])
        reference = reference + 1e-9 * np.maximum(1, np.abs(reference))
        scale = np.maximum(np.ptp(points, axis=0), 1e-12)
        front_rows, front = rows[good], points[good]
        keep = np.arange(len(rows))
        if len(rows) > self.most:
            nd = front[nondominated(front)] if len(front) else points[:1]
            gap = ((points[:, None] - nd[None]) / scale).min(axis=2).max(axis=1)
            keep = np.sort(np.argsort(gap, kind="stable")[: self.most])
        posts = [Posterior(self.kernel, m.theta, rows[keep], z[keep, j]) for j, m in enumerate(metrics)]
        pend = np.array([c.indices for c in self._pending]).reshape(-1, len(self.space))
        if len(pend):
            means = [p.at(pend).mean for p in posts]
            posts = [Posterior(self.kernel, m.theta, np.vstack([rows[keep], pend]), np.r_[z[keep, j], means[j]]) for j, m in enumerate(metrics)]
            pc = self._costs(pend)
            pp = np.column_stack([means[at[o.name]] if o.name in at else o.sign * pc[o.name] for o in self.objectives])
            front_rows, front = np.vstack([front_rows, pend]), np.vstack([front, pp])
        measures = {}
        for k, o in enumerate(self.objectives):
            if o.name in at:
                j = at[o.name]
                knots = np.linspace(z[:, j].min() - 0.5, z[:, j].max() + 0.1, KNOTS)
                values = metrics[j].warp.inverse(knots)
                away = values - metrics[j].warp.anchor
                reach = np.abs(raw[:, j] - metrics[j].warp.anchor).max()
                measures[k] = Measure(knots, self.worth(away, reach))
        nd = nondominated(front) if len(front) else np.zeros(0, bool)
        front_rows, front = front_rows[nd], front[nd]
        parents = np.vstack([front_rows, self._elite])
        if not len(parents):
            parents = rows

        def judge(pool):
            fields = [p.at(pool) for p in posts]
            c = self._costs(pool)
            return fields, c

        def score(fields, c, pool, front):
            mean = np.column_stack([fields[at[o.name]].mean if o.name in at else o.sign * c[o.name] for o in self.objectives])
            std = np.column_stack([fields[at[o.name]].std if o.name in at else np.zeros(len(pool)) for o in self.objectives])
            lo, up = cells(front, reference)
            e = expected_improvement(mean, std, lo, up, measures)
            for m in self.limits:
                if m.metric in at:
                    j = at[m.metric]
                    if m.relative and m.metric not in self.baseline: continue
                    b = m.bound(self.baseline)
                    s = 1.0 if "<=" in m.text else -1.0
                    if s == metrics[j].sign:
                        e = e * ndtr((metrics[j].warp(np.array([s * b]))[0] - fields[j].mean) / fields[j].std)
                    else:
                        e = e * ndtr((fields[j].mean - metrics[j].warp(np.array([-s * b]))[0]) / fields[j].std)
            return mean, e

        pool = self._elite
        for g in range(self.generations):
            new = np.vstack([pool, vary(self.rng, parents, self.space.counts, self.pool - self.pool // 8), scattered(self.rng, self.space.counts, self.pool // 8)])
            pool = self._unseen(self._kept(new))
            if not len(pool):
                return []
            fields, c = judge(pool)
            mean, e = score(fields, c, pool, front)
            order = np.argsort(-e, kind="stable")
            ndm = np.flatnonzero(nondominated(mean))
            best = np.unique(np.concatenate([order[:32], ndm[: 64]]))
            self._elite = pool[best]
            parents = np.vstack([front_rows, pool[order[:16]], pool[ndm]])
            pool = pool[order[:64]]
        # fields refer to the last full pool
        pool = self._unseen(self._kept(np.vstack([self._elite])))
        fields, c = judge(pool)
        out = []
        alive = np.ones(len(pool), bool)
        for _ in range(min(n, len(pool))):
            mean, e = score(fields, c, pool, front)
            e[~alive] = -1
            i = int(np.argmax(e))
            alive[i] = False
            out.append(pool[i])
            front = np.vstack([front, mean[i]])
            for f in fields:
                f.believe(i)
        return self._as_candidates(np.array(out))

    def _fit(self, rows, raw, metrics):
        first = self._fitted == 0
        self._fitted = len(rows)
        for j, m in enumerate(metrics):
            v = raw[:, j]
            anchor = m.sign * self.baseline[m.name] if m.name in self.baseline else float(v.min())
            shares = SCALES if m.theta is None else sorted({min(1.0, m.share * f) for f in (0.5, 1.0, 2.0)})
            best = None
            for s in shares:
                w = standardised(v, anchor, s)
                theta, nl = self.kernel.fit(rows, w(v), m.theta, steps=8)
                nl -= w.log_slope(v)
                if best is None or nl < best[0]:
                    best = (nl, s, w, theta)
            _, m.share, m.warp, theta = best
            m.theta, _ = self.kernel.fit(rows, m.warp(v), theta, steps=12)
