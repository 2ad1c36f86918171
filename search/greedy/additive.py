"""Additive searcher: a sensitivity table, then the exact best combinations under an additive model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...results.hypervolume import nondominated
from ...results.objective import METRICS, Limit, Objective
from ...results.trial import Trial
from ...spaces import Candidate, Space
from ..bayesian.acquisition import most_gaining
from ..evolutionary.ranking import simplex
from ..generator import Remembering, Steps, diagonal
from .sensitivity import combinations, damage_table, fill, fit, losses_of, predict, probes

NEAR = 0.3  # models have to be right up to this quantile of the damages seen
FLOOR = 0.01  # of the range of damages: differences below are noise, not to be magnified by the square root
FOLDS = 5
LEAST = 20  # trials from which on scales are compared


@dataclass(frozen=True, slots=True)
class Model:
    """``value(x) = best + link^-1(intercept + sum_d table[d, x_d])``, to minimise.

    The link rises, so that the order of candidates is that of the table's sums.
    """

    intercept: float
    table: np.ndarray  # [choices, options], the unchanged model's option 0; inf where an option failed
    best: float  # least value seen
    floor: float  # of the square root; negative: no root

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Values [n] for option indices [n, choices]."""
        return self.best + _inverse(self.intercept + predict(self.table, rows), self.floor)


def model(
    space: Space,
    trials: Sequence[Trial],
    loss: Callable[[Trial], float],
    anchor: Candidate,
    *,
    links: int = 2,
) -> Model:
    """The additive model of a metric from any trials.

    Damage that grows faster than in proportion, as accuracy falls off a cliff when several choices are
    compressed together, adds up on the scale of its square root. Which scale is right is seen from trials
    that combine choices: the one that predicts left-out trials better is taken (``FOLDS``-fold
    cross-validation). Trials weigh by Cauchy's 1 / (1 + (damage / near)^2), since an additive model cannot be
    right both near the best and far from it.

    Args:
        trials: at least one with a finite loss; those that failed and differ from the anchor in one choice
            forbid that option.
        loss: to minimise, inf where there is none.
        anchor: what the table of single changes refers to.
        links: 1 for the plain scale only.
    """
    rows, values = losses_of(trials, loss)
    best = float(values.min())
    away = values - best
    near = max(float(np.quantile(away, NEAR)), 1e-12 * max(1.0, float(away.max())))
    weights = 1.0 / (1.0 + (away / near) ** 2)
    scales = [-1.0, max(FLOOR * float(away.max()), 1e-12)][:links]
    priors = [_prior(space, trials, loss, anchor, best, scale) for scale in scales]
    errors = [0.0] * len(scales)
    if len(scales) > 1 and len(rows) >= LEAST:
        fold = np.arange(len(rows)) % FOLDS
        for k, (scale, prior) in enumerate(zip(scales, priors, strict=True)):
            for f in range(FOLDS):
                kept, out = fold != f, fold == f
                at, table = fit(space, rows[kept], _forward(away[kept], scale), prior, weights=weights[kept])
                error = _inverse(at + predict(table, rows[out]), scale) - away[out]
                errors[k] += float(weights[out] @ np.minimum(np.abs(error), away.max()))
    chosen = int(np.argmin(errors))
    scale = scales[chosen]
    at, table = fit(space, rows, _forward(away, scale), priors[chosen], weights=weights)
    return Model(at, table, best, scale)


def _prior(
    space: Space,
    trials: Sequence[Trial],
    loss: Callable[[Trial], float],
    anchor: Candidate,
    best: float,
    floor: float,
) -> np.ndarray:
    """The filled table of single changes, on a scale."""

    def scaled(trial: Trial) -> float:
        return float(_forward(np.array(loss(trial) - best), floor))

    return fill(damage_table(space, trials, scaled, anchor=anchor), space.counts)


def _forward(damage: np.ndarray, floor: float) -> np.ndarray:
    return damage if floor < 0 else np.sqrt(np.maximum(damage, 0.0) + floor)


def _inverse(sums: np.ndarray, floor: float) -> np.ndarray:
    return sums if floor < 0 else np.maximum(sums, 0.0) ** 2 - floor


# -- Sensitivity table first, then the exact best combinations under an additive model ------------------

Cost = Callable[[list[Candidate]], np.ndarray]  # candidates -> float64 [n], to minimise
POOL = 256  # predicted candidates among which a batch is chosen
DIRECTIONS = 4  # weighted sums of several costs, beside the costs themselves


class Additive(Remembering):
    """Measures what each option does alone, then proposes the best combinations if the damages add up.

    The procedure of AIMET's greedy compression-ratio selection (Qualcomm: per-layer sensitivities, then one
    combination for a target), with two differences. The combination is exact: a multiple-choice knapsack
    solved by dynamic programming, for all budgets at once (see :mod:`.sensitivity`). And the table goes on
    learning: after every batch an additive model, of the damage or of its square root, is fitted to all
    trials with the measured table as prior (:func:`~netcarve.search.greedy.additive.model`).

    The first measured metric, of the objectives and then of the limits, is the damage (the first objective
    where all are computed); the other objectives and limited metrics are costs. Costs that the space computes
    are exact, others are taken from trials like the damage. Several costs are swept by weighted sums of
    them. A batch is half from the predicted front and half neighbours of the measured one: those that are
    predicted to keep the limits and to add most hypervolume, then those predicted to break limits least.

    Args:
        levels: options measured per choice before the first combination, the others interpolated; ``None``
            measures all.
        batch: at least 1: candidates between two fits. Grows with the number of trials, so that the time per
            candidate does not.
    """

    states = 512  # of the dynamic programme
    ladder = 4  # candidates on the diagonal that come before the table: they show how damages add up

    def __init__(
        self,
        space: Space,
        objectives: Iterable[Objective | str],
        *,
        seed: int = 0,
        levels: int | None = 3,
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
        self._metrics = self._wanted()
        yield from self.score(self.allowed(diagonal(self.space))[: self.ladder])
        yield from self.score(self.allowed(probes(self.space, levels=self.levels, anchor=self._anchor)))
        while batch := self._batch_of(max(self.batch, len(self.known) // 6)):
            yield from self.score(batch)

    def combine(self, damage: np.ndarray, cost: Cost) -> list[Candidate]:
        """The predicted front of an additive damage [choices, options] and one cost."""
        return combinations(self.space, damage, cost, anchors=3, states=self.states)[0]

    # Models of the metrics.

    def _wanted(self) -> list[Objective]:
        """The metrics to model, the damage first: the objectives, and what only limits name."""
        metrics = list(self.objectives)
        for limit in self.limits:
            if limit.metric not in {m.name for m in metrics}:
                goal = METRICS.get(limit.metric, ("min" if "<=" in limit.text else "max", ""))[0]
                metrics.append(Objective(limit.metric, goal))
        measured = [m for m in metrics if m.name not in self._analytic]
        damage = measured[0] if measured else metrics[0]
        return [damage, *(m for m in metrics if m is not damage)]

    def _models(self) -> dict[str, Model]:
        """Models to minimise, by metric; without those that no trial has."""
        trials = list(self.known.values())
        out: dict[str, Model] = {}
        for metric in self._metrics:
            damage = metric is self._metrics[0]
            if metric.name in self._analytic and not damage:
                continue

            def loss(trial: Trial, metric: Objective = metric) -> float:
                return metric.sign * trial.scores[metric.name] if metric.name in trial.scores else np.inf

            # A failed option is to be avoided for its damage; its cost is only unknown.
            of = trials if damage else [t for t in trials if np.isfinite(loss(t))]
            if any(np.isfinite(loss(t)) for t in of):
                out[metric.name] = model(self.space, of, loss, self._anchor, links=2 if damage else 1)
        return out

    def _costs(self, models: dict[str, Model]) -> list[Cost]:
        """What damage is traded off against: every cost, and weighted sums of several."""
        single: list[Cost] = []
        for metric in self._metrics[1:]:
            if metric.name in self._analytic:
                single.append(self._exact(metric))
            elif metric.name in models:
                single.append(_additive(models[metric.name].table))
        if len(single) < 2:
            return single or [lambda candidates: np.zeros(len(candidates))]
        ends = [self.space.baseline, self.space.candidate(self.space.counts - 1)]
        scale = np.array([max(abs(float(np.ptp(cost(ends)))), 1e-12) for cost in single])
        weights = np.concatenate([np.eye(len(single)), simplex(DIRECTIONS, len(single))])
        return [_mixed(single, w) for w in np.unique(weights, axis=0) / scale]

    def _exact(self, metric: Objective) -> Cost:
        return lambda candidates: metric.sign * self.space.cost_arrays(candidates)[metric.name]

    # What a batch is chosen from, and how.

    def _batch_of(self, n: int) -> list[Candidate]:
        models = self._models()
        damage = models.get(self._metrics[0].name)
        if damage is None:
            return []
        pool: dict[Candidate, None] = {}
        for cost in self._costs(models):
            found = [c for c in self.combine(damage.table, cost) if c not in self.known]
            pool.update(dict.fromkeys(self.allowed(found)))
        good = [t for t in self.good() if np.isfinite(self.loss(t)).all()]
        front = nondominated([self.loss(t) for t in good]).tolist() if good else []
        near = self._beside([t.candidate for t, ok in zip(good, front, strict=True) if ok])
        pools = _at_most(POOL, list(pool)), _at_most(POOL, [c for c in near if c not in pool])
        if not any(pools):
            return list(self._beside(self.known))[:n]
        return self._most_promising(pools, models, n)

    def _beside(self, candidates: Iterable[Candidate]) -> dict[Candidate, None]:
        """Unknown neighbours that keep the limits."""
        near = [n for c in candidates for n in self.space.neighbours(c) if n not in self.known]
        return dict.fromkeys(self.allowed(list(dict.fromkeys(near))))

    def _most_promising(
        self, pools: tuple[list[Candidate], list[Candidate]], models: dict[str, Model], n: int
    ) -> list[Candidate]:
        """What adds most to the measured front if predictions hold, half of it from the first pool; then the
        others, the least broken limits first."""
        pool = [c for some in pools for c in some]
        predicted = self._predicted(pool, models)
        used = [j for j, o in enumerate(self.objectives) if o.name in predicted]
        points = np.stack(
            [self.objectives[j].sign * predicted[self.objectives[j].name] for j in used], axis=1
        )
        broken = self._broken(predicted, len(pool))
        front = np.array([self.loss(t) for t in self.good()]).reshape(-1, len(self.objectives))[:, used]
        front = front[np.isfinite(front).all(axis=1)]
        fits = (broken <= 0.0) & np.isfinite(points).all(axis=1)
        chosen: list[int] = []
        first = 0
        for some, want in zip(pools, (max(1, n // 2), n), strict=True):
            rows = first + np.flatnonzero(fits[first : first + len(some)])
            picked = [int(rows[i]) for i in most_gaining(points[rows], front, min(want, n - len(chosen)))]
            front = np.concatenate([front, points[picked]])
            chosen += picked
            first += len(some)
        taken = set(chosen)
        rest = [int(i) for i in np.lexsort((points[:, 0], broken)) if i not in taken]
        return [pool[i] for i in (chosen + rest)[:n]]

    def _predicted(self, pool: list[Candidate], models: dict[str, Model]) -> dict[str, np.ndarray]:
        """Metric -> value [n]: exact where analytic, else by its model."""
        rows = np.array([c.indices for c in pool])
        costs = self.space.cost_arrays(pool)
        out = {m.name: costs[m.name] for m in self._metrics if m.name in costs}
        for m in self._metrics:
            if m.name in models and m.name not in out:
                out[m.name] = m.sign * models[m.name].predict(rows)
        return out

    def _broken(self, predicted: dict[str, np.ndarray], n: int) -> np.ndarray:
        """Total relative violation [n] of the limits on measured metrics, by prediction."""
        total = np.zeros(n)
        for limit in self.limits:
            name = limit.metric
            if name in predicted and name not in self._analytic and self._resolved(limit):
                bound = limit.bound(self.baseline)
                over = predicted[name] - bound if "<=" in limit.text else bound - predicted[name]
                total += np.maximum(0.0, over / max(abs(bound), 1e-12))
        return total

    def _resolved(self, limit: Limit) -> bool:
        return not limit.relative or limit.metric in self.baseline


def _at_most(n: int, candidates: list[Candidate]) -> list[Candidate]:
    if len(candidates) <= n:
        return candidates
    return [candidates[i] for i in np.linspace(0, len(candidates) - 1, n).astype(int)]


def _additive(table: np.ndarray) -> Cost:
    return lambda candidates: predict(table, np.array([c.indices for c in candidates]))


def _mixed(costs: Sequence[Cost], weights: np.ndarray) -> Cost:
    used = [(cost, w) for cost, w in zip(costs, weights.tolist(), strict=True) if w > 0.0]
    return lambda candidates: np.sum([w * cost(candidates) for cost, w in used], axis=0)
