"""Additive models of a measured metric, on the scale on which it adds up best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...results.trial import Trial
from ...spaces import Candidate, Space
from .sensitivity import damage_table, fill, fit, losses_of, predict

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
