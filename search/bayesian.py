"""What Bayesian searchers share: a process for each metric that has to be measured, exact costs for the rest."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

from ..results.hypervolume import nondominated
from ..results.objective import Objective
from ..results.trial import Trial
from ..spaces import Candidate, Space
from .acquisition import Acquisition, Bound
from .base import Searcher
from .blas import one_thread
from .feasible import violations
from .improvement import Measure
from .kernel import OptionKernel
from .metric import Metric
from .surrogate import Posterior
from .variation import kept, scattered, vary

FEWEST = 3  # trials before a process is fitted
GROWTH = 1.4  # hyperparameters are fitted again when there are so many times more trials
TEACHERS = 96  # trials that hyperparameters are fitted to
GENERATIONS = 2  # of candidates varied from the best ones, before the best is asked for
STRANGERS = 0.125  # share of random candidates in a pool
KNOTS = 33  # at which the worth of a modelled objective is evaluated
ELITE = 32  # best candidates kept from one proposal to the next, beside those not dominated in the mean


class Bayesian(Searcher):
    """Fits, ranks and proposes; a subclass says what to begin with and what an objective's values are worth.

    Whatever ``space.cost_arrays`` gives is known exactly and free. Every other objective, and every other
    metric that a limit is on, gets a Gaussian process of its own. What is under way counts as scored with
    its expected outcome (kriging believer, Ginsbourger, Le Riche and Carraro 2010), so that candidates asked
    for at once differ. A failed trial counts as the worst seen. Where a metric was never measured, or too
    little is known, candidates are random.
    """

    most = 400  # trials that a process is conditioned on: those nearest to the front
    pool = 400  # candidates ranked at a time
    patience: float = np.inf  # with so many trials told, twice as many candidates are proposed at a time

    def __init__(self, space: Space, objectives: Iterable[Objective | str], *, seed: int = 0) -> None:
        super().__init__(space, objectives, seed=seed)
        self.kernel = OptionKernel(space)
        self._analytic = frozenset(self.baseline)
        self._told: dict[tuple[int, ...], Trial] = {}
        self._pending: dict[tuple[int, ...], None] = {}
        self._begin: deque[Candidate] | None = None  # what is left of the design; None: not made yet
        self._queue: deque[Candidate] = deque()
        self._elite = np.zeros((0, len(space)), dtype=np.int64)
        self._metrics: list[Metric] | None = None  # not before the limits are known
        self._fitted = 0  # how many trials the hyperparameters were fitted to

    @abstractmethod
    def design(self) -> np.ndarray:
        """Rows of option indices [n, choices] to begin with, the most useful first; repeats are harmless."""

    @abstractmethod
    def worth(self, away: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """What a modelled objective's values are worth, rising.

        Args:
            away: float64 [k], rising losses relative to the unchanged model's.
            seen: float64 [n], those of the trials.
        """

    def ask(self, n: int) -> list[Candidate]:
        if self._begin is None:  # what was told before (earlier runs) takes the place of as many
            rows = self.design()[: max(0, len(self._told) and 1 - len(self._told)) or None]
            self._begin = deque(self._candidates(self._kept(rows)))
        out: list[Candidate] = []
        while len(out) < n:
            if not self._begin and not self._queue:
                wanted = n - len(out) + int(len(self._told) / self.patience)
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
        return self.space.model.cost_arrays(self.space.choices, rows) if self.space.model else {}

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

    def _varied(self, elite: np.ndarray, parents: np.ndarray) -> np.ndarray:
        """A pool: the elite, variations of the parents, and strangers; all there is in a small space."""
        counts = self.space.counts
        if self.space.size <= self.pool:
            return self._unseen(np.indices(tuple(counts)).reshape(len(counts), -1).T)
        strangers = int(STRANGERS * self.pool)
        varied = vary(self.rng, parents, counts, self.pool - strangers)
        return self._unseen(np.vstack([elite, varied, scattered(self.rng, counts, strangers)]))

    # what is known

    def _modelled(self) -> list[Metric]:
        if self._metrics is None:
            signs = {o.name: o.sign for o in self.objectives}
            for m in self.limits:
                signs.setdefault(m.metric, 1.0 if "<=" in m.text else -1.0)
            self._metrics = [Metric(n, s) for n, s in signs.items() if n not in self._analytic]
        return self._metrics

    def _bounds(self, metrics: Sequence[Metric]) -> list[tuple[int, float, bool]]:
        """Limits on modelled metrics: (metric, bound as a loss, upper)."""
        found = []
        for m in self.limits:
            for j, metric in enumerate(metrics):
                if m.metric == metric.name and (not m.relative or m.metric in self.baseline):
                    level = metric.sign * m.bound(self.baseline)
                    found.append((j, level, ("<=" in m.text) == (metric.sign > 0)))
        return found

    def _propose(self, n: int) -> np.ndarray:
        """About ``n`` rows to ask for next, [<= n, choices]."""
        metrics = self._modelled()
        trials = [t for t in self._told.values() if not (t.failed and t.number < 0)]  # refused ones aside
        rows = np.array([t.candidate.indices for t in trials], dtype=np.int64).reshape(-1, len(self.space))
        losses = np.array([[m.sign * t.scores.get(m.name, np.nan) for m in metrics] for t in trials])
        losses = losses.reshape(len(trials), len(metrics))
        known = np.isfinite(losses)
        if len(trials) < FEWEST or not known.any(axis=0).all():
            return self._unseen(scattered(self.rng, self.space.counts, 4 * n + 16))[:n]
        losses = np.where(known, losses, np.where(known, losses, -np.inf).max(axis=0))
        with one_thread():
            return self._search(n, metrics, rows, losses, known.all(axis=1))

    def _search(
        self, n: int, metrics: list[Metric], rows: np.ndarray, losses: np.ndarray, succeeded: np.ndarray
    ) -> np.ndarray:
        bounds = self._bounds(metrics)
        good = succeeded & (self._violation(rows) <= 0.0)
        for j, level, upper in bounds:
            good &= losses[:, j] <= level if upper else losses[:, j] >= level
        front = self._points(metrics, rows, losses)
        nearest = np.argsort(_behind(front, front[good]), kind="stable")
        if len(rows) >= GROWTH * self._fitted:
            teachers = np.sort(nearest[:TEACHERS])
            for j, metric in enumerate(metrics):
                base = self.baseline.get(metric.name)
                anchor = float(losses[:, j].min()) if base is None else metric.sign * base
                metric.fit(self.kernel, rows[teachers], losses[teachers, j], anchor)
            self._fitted = len(rows)
        z = np.column_stack([m.z(losses[:, j]) for j, m in enumerate(metrics)]) if metrics else losses

        near = np.sort(nearest[: self.most])
        processes = [Posterior(m.covariance, rows[near], z[near, j]) for j, m in enumerate(metrics)]
        points = self._points(metrics, rows, z)
        reference = points[good].max(axis=0) if good.any() else points.max(axis=0)
        for j, o in enumerate(self.objectives):
            if o.name in self._analytic:
                reference[j] = max(reference[j], o.sign * self.baseline[o.name])
        reference += 1e-9 * np.maximum(1.0, np.abs(reference))
        front, front_rows = points[good], rows[good]
        under_way = np.array(list(self._pending), dtype=np.int64).reshape(-1, len(self.space))
        if len(under_way):
            believed = [p.mean(under_way) for p in processes]
            processes = [p.given(under_way, z) for p, z in zip(processes, believed, strict=True)]
            expected = np.column_stack(believed) if believed else np.zeros((len(under_way), 0))
            front = np.vstack([front, self._points(metrics, under_way, expected)])
            front_rows = np.vstack([front_rows, under_way])
        best = nondominated(front) if len(front) else np.zeros(0, dtype=bool)
        front, front_rows = front[best], front_rows[best]
        measures = self._measures(metrics, losses, z)
        warped = [Bound(j, float(metrics[j].z(np.array(level))), upper) for j, level, upper in bounds]

        def rank(pool: np.ndarray) -> Acquisition:
            columns = self._columns(metrics, self._costs(pool))
            return Acquisition([p.at(pool) for p in processes], columns, front, reference, measures, warped)

        elite, parents = self._elite, np.vstack([front_rows, self._elite])
        for generation in range(GENERATIONS):
            pool = self._varied(elite, parents if len(parents) else rows)
            if not len(pool):
                return pool
            ranking = rank(pool)
            first = np.argsort(-ranking.values(), kind="stable")[:ELITE]
            middle = np.flatnonzero(nondominated(ranking.mean))
            elite = pool[np.union1d(first, middle[: 2 * ELITE])]
            parents = np.vstack([front_rows, elite])
        self._elite = elite
        if n > 1:  # what is taken makes others worth less, not more: those that come next are near the top
            pool = pool[np.argsort(-ranking.values(), kind="stable")[: n + ELITE]]
            ranking = rank(pool)
        chosen = []
        for _ in range(min(n, len(pool))):
            chosen.append(int(ranking.values().argmax()))
            ranking.take(chosen[-1])
        return pool[chosen]

    def _columns(
        self, metrics: list[Metric], costs: dict[str, np.ndarray]
    ) -> list[int | np.ndarray]:
        number = {m.name: j for j, m in enumerate(metrics)}
        return [number[o.name] if o.name in number else o.sign * costs[o.name] for o in self.objectives]

    def _points(self, metrics: list[Metric], rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Objectives [n, objectives], minimised: modelled ones from values [n, metrics], known ones exactly."""
        columns = self._columns(metrics, self._costs(rows))
        return np.column_stack([values[:, c] if isinstance(c, int) else c for c in columns])

    def _measures(self, metrics: list[Metric], losses: np.ndarray, z: np.ndarray) -> dict[int, Measure]:
        out = {}
        for k, column in enumerate(self._columns(metrics, self.baseline)):  # type: ignore[arg-type]
            if isinstance(column, int):
                warp = metrics[column].warp
                knots = np.linspace(z[:, column].min() - 0.5, z[:, column].max() + 0.1, KNOTS)
                away = warp.inverse(knots) - warp.anchor
                out[k] = Measure(knots, self.worth(away, losses[:, column] - warp.anchor))
        return out


def _behind(points: np.ndarray, front: np.ndarray) -> np.ndarray:
    """How far points [n, objectives] are behind a front: the shift in all objectives that would bring each to
    it (additive epsilon, Zitzler et al. 2003), objectives scaled to their range; 0 on the front."""
    if not len(front):
        return np.zeros(len(points))
    best = front[nondominated(front)]
    scale = np.maximum(np.ptp(points, axis=0), 1e-12)
    ahead = [np.subtract.outer(p, b) / s for p, b, s in zip(points.T, best.T, scale, strict=True)]
    return np.minimum.reduce(ahead).max(axis=1)
