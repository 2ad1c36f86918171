"""Sensitivity table first, then the exact best combinations under an additive model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ..results.objective import Objective, total_violation
from ..results.trial import Trial
from ..spaces import Candidate, Space
from .generator import Steps
from .memory import Remembering
from .ranking import simplex
from .sensitivity import combinations, damage_table, fill, fit, losses_of, predict, probes
from .spread import most_gaining

Cost = Callable[[list[Candidate]], np.ndarray]  # candidates -> float64 [n], to minimise
POOL = 256  # predicted candidates among which a batch is chosen


class Additive(Remembering):
    """Measures what each option does alone, then proposes the best combinations if the damages add up.

    The procedure of AIMET's greedy compression-ratio selection (Qualcomm, "Greedy compression ratio
    selection": per-layer sensitivities, then one combination for a target), with two differences: the
    combination is exact, a multiple-choice knapsack solved by dynamic programming for all budgets at once
    (see :mod:`.sensitivity`), and the table goes on learning: after every batch the additive model is fitted
    to all trials, with the measured table as prior.

    The first objective is the damage, the others are costs; metrics of limits with analytic costs are costs
    too. Costs that the space computes are exact; those it does not are taken from trials like the damage.
    Several costs are swept by weighted sums of them. Of the predicted front, those candidates come next that
    promise most hypervolume; when all of it is known, neighbours of the measured front.

    Args:
        levels: options measured per choice before the first combination; ``None`` for all.
        batch: at least 1: candidates between two fits. Grows with the number of trials, so that the time per
            candidate does not.
    """

    states = 512  # of the dynamic programme

    def __init__(
        self,
        space: Space,
        objectives: Iterable[Objective | str],
        *,
        seed: int = 0,
        levels: int | None = None,
        batch: int = 8,
    ) -> None:
        super().__init__(space, objectives, seed=seed)
        if levels is not None and levels < 1:
            raise ValueError(f"levels must be at least 1 or None, got {levels}")
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.levels, self.batch = levels, batch
        self._analytic = set(space.cost_arrays([space.baseline]))

    def search(self) -> Steps:
        started = yield from self.start()
        if started is None:
            return
        self._anchor = started.candidate
        yield from self.score(self.allowed(probes(self.space, levels=self.levels, anchor=self._anchor)))
        while batch := self._batch_of(max(self.batch, len(self.known) // 8)):
            yield from self.score(batch)

    def combine(self, damage: np.ndarray, cost: Cost) -> list[Candidate]:
        """The predicted front of an additive damage [choices, options] and one cost."""
        return combinations(self.space, damage, cost, anchors=3, states=self.states)[0]

    # What a batch is chosen from.

    def _batch_of(self, n: int) -> list[Candidate]:
        models = [self._model(o) for o in self.objectives]
        damage = models[0]
        if damage is None:
            return []
        pool: dict[Candidate, None] = {}
        for cost in self._costs(models):
            found = [c for c in self.combine(damage[1], cost) if c not in self.known]
            pool.update(dict.fromkeys(self.allowed(found)))
        if not pool:
            best = _nondominated(self.good(), self.loss)
            near = [c for t in best for c in self.space.neighbours(t.candidate) if c not in self.known]
            pool.update(dict.fromkeys(self.allowed(near)))
        if not pool:
            near = [c for known in self.known for c in self.space.neighbours(known) if c not in self.known]
            return self.allowed(near)[:n]
        some = list(pool)
        if len(some) > POOL:
            some = [some[i] for i in np.linspace(0, len(some) - 1, POOL).astype(int)]
        return self._most_promising(some, models, n)

    def _model(self, objective: Objective) -> tuple[float, np.ndarray] | None:
        """The additive model of an objective to minimise, from all trials: (value unchanged, table)."""
        j = self.objectives.index(objective)

        def loss(trial: Trial) -> float:
            return float(self.loss(trial)[j])

        trials = list(self.known.values())
        rows, values = losses_of(trials, loss)
        if not len(values):
            return None
        if j > 0:  # a failed option is to be avoided for its damage; its cost is only unknown
            trials = [t for t in trials if np.isfinite(loss(t))]
        table = damage_table(self.space, trials, loss, anchor=self._anchor)
        return fit(self.space, rows, values, fill(table, self.space.counts))

    def _costs(self, models: Sequence[tuple[float, np.ndarray] | None]) -> list[Cost]:
        """What damage is traded off against: every cost, and weighted sums of several."""
        single: list[Cost] = []
        for j, objective in enumerate(self.objectives[1:], start=1):
            if objective.name in self._analytic:
                single.append(self._exact(objective.name, objective.sign))
            elif (model := models[j]) is not None:
                single.append(_additive(model[1]))
        named = {o.name for o in self.objectives}
        for limit in self.limits:
            if limit.metric in self._analytic and limit.metric not in named:
                single.append(self._exact(limit.metric, 1.0 if "<=" in limit.text else -1.0))
        if len(single) < 2:
            return single or [lambda candidates: np.zeros(len(candidates))]
        ends = [self.space.baseline, self.space.candidate(self.space.counts - 1)]
        scale = np.array([max(abs(float(np.ptp(cost(ends)))), 1e-12) for cost in single])
        weights = np.concatenate([np.eye(len(single)), simplex(6, len(single))])
        return [_mixed(single, w) for w in np.unique(weights, axis=0) / scale]

    def _exact(self, metric: str, sign: float) -> Cost:
        return lambda candidates: sign * self.space.cost_arrays(candidates)[metric]

    # Which of the pool.

    def _most_promising(
        self,
        pool: list[Candidate],
        models: Sequence[tuple[float, np.ndarray] | None],
        n: int,
    ) -> list[Candidate]:
        """What adds most to the measured front if predictions hold; then what damages least."""
        used = [j for j, o in enumerate(self.objectives) if models[j] is not None]
        points = self._predicted(pool, models)
        kept = self._predicted_violation(pool, points)
        order = np.lexsort((points[:, 0], kept))
        measured = np.array([self.loss(t) for t in self.good()]).reshape(-1, len(self.objectives))[:, used]
        measured = measured[np.isfinite(measured).all(axis=1)]
        open_ = np.flatnonzero(kept <= 0.0)
        chosen = [int(open_[i]) for i in most_gaining(points[open_][:, used], measured, n)]
        taken = set(chosen)
        chosen += [int(i) for i in order if i not in taken][: min(n, len(pool)) - len(chosen)]
        return [pool[i] for i in chosen]

    def _predicted(
        self, pool: list[Candidate], models: Sequence[tuple[float, np.ndarray] | None]
    ) -> np.ndarray:
        """Objectives to minimise, float64 [n, objectives]: exact where analytic, inf where unknown."""
        rows = np.array([c.indices for c in pool])
        costs = self.space.cost_arrays(pool)
        out = np.full((len(pool), len(self.objectives)), np.inf)
        for j, (objective, model) in enumerate(zip(self.objectives, models, strict=True)):
            if objective.name in costs:
                out[:, j] = objective.sign * costs[objective.name]
            elif model is not None:
                out[:, j] = model[0] + predict(model[1], rows)
        return out

    def _predicted_violation(self, pool: list[Candidate], points: np.ndarray) -> np.ndarray:
        """Of the limits on objectives that are measured; 0 where none are broken, [n]."""
        measured = {o.name: j for j, o in enumerate(self.objectives) if o.name not in self._analytic}
        limits = [
            m for m in self.limits if m.metric in measured and (not m.relative or m.metric in self.baseline)
        ]
        signs = [o.sign for o in self.objectives]
        return np.array(
            [
                total_violation(
                    limits, {name: signs[j] * row[j] for name, j in measured.items()}, self.baseline
                )
                for row in points
            ]
            if limits
            else np.zeros(len(pool))
        )


def _additive(table: np.ndarray) -> Cost:
    return lambda candidates: predict(table, np.array([c.indices for c in candidates]))


def _mixed(costs: Sequence[Cost], weights: np.ndarray) -> Cost:
    used = [(cost, w) for cost, w in zip(costs, weights.tolist(), strict=True) if w > 0.0]
    return lambda candidates: np.sum([w * cost(candidates) for cost, w in used], axis=0)


def _nondominated(trials: Sequence[Trial], loss: Callable[[Trial], np.ndarray]) -> list[Trial]:
    from ..results.hypervolume import nondominated

    if not trials:
        return []
    return [t for t, ok in zip(trials, nondominated([loss(t) for t in trials]), strict=True) if ok]
