"""Sensitivity: the share of a metric's variation over a run that each choice explains (functional ANOVA)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from ..results.objective import Objective
from ..results.table import HEADINGS
from ..results.trial import Trial, in_full
from .anova import Anova, Shares, average, factorial, tree_boxes
from .section import Section, SectionFigure, Skipped, clipped, series

TREES = 48
MOST_TRIALS = 2000  # the forest is grown on; beyond it, evenly many of them
MOST_EXACT = 8  # choices: 256 parts of the exact decomposition
MOST_PAIRED = 16  # choices with the largest main effects whose pairs are looked at
FEWEST = 12  # trials; fewer say nothing about a forest
LARGEST = 1e150  # values whose squares a float still holds
SHOWN = 20  # choices in a picture


@dataclass(frozen=True)
class Sensitivity:
    """Shares of the variance of one metric."""

    metric: str
    names: tuple[str, ...]  # of the choices, in the space's order
    main: np.ndarray  # [choices]: share of each alone
    pairs: dict[tuple[int, int], float]  # share of two together beyond each alone; of the paired choices
    effects: list[np.ndarray]  # per choice [options]: mean of the metric there, less the overall mean
    trials: int  # that it was learnt from
    exact: bool  # every candidate of the space was scored
    fit: float | None  # R^2 of the forest on trials that a tree has not seen; None where exact

    @property
    def paired(self) -> list[int]:
        """Choices whose pairs were looked at, in the space's order."""
        return sorted({d for pair in self.pairs for d in pair})


def sensitivity(
    trials: Sequence[Trial], metric: str, *, trees: int = TREES, most: int = MOST_TRIALS, seed: int = 0
) -> Sensitivity:
    """Main effects and pairwise interactions of the choices on a metric, each option as likely as the others.

    Exact where every candidate of the space was scored; else the exact decomposition of the trees of a random
    forest, averaged (see :mod:`.anova`).

    Args:
        trials: of one run; those without the metric and those on lower rungs are left out.

    Raises:
        Skipped: too few trials, or a metric that does not vary.
    """
    scored = [t for t in in_full(trials) if math.isfinite(t.scores.get(metric, math.nan))]
    if not scored:
        raise Skipped(f"no trial has {metric}")
    choices = scored[0].candidate.choices
    names = tuple(c.name for c in choices)
    counts = [len(c) for c in choices]
    latest = {t.candidate.indices: t.scores[metric] for t in scored}
    x = np.array(list(latest), dtype=np.int64)
    y = np.array(list(latest.values()), dtype=np.float64)
    largest = np.abs(y).max()
    if largest > LARGEST:
        raise Skipped(f"{metric} has values too large to share out")
    if np.ptp(y) <= 1e-12 * largest:
        raise Skipped(f"{metric} is the same in all {len(y)} trials")
    if len(y) == math.prod(counts) and len(counts) <= MOST_EXACT:
        main, pairs, effects = _exact(x, y / largest, counts)
        effects = [effect * largest for effect in effects]
        return Sensitivity(metric, names, main, pairs, effects, len(y), True, None)
    if len(y) < FEWEST:
        raise Skipped(f"{len(y)} trials with {metric}: at least {FEWEST} are needed to learn from")
    if len(y) > most:
        rows = np.linspace(0, len(y) - 1, most).round().astype(int)
        x, y = x[rows], y[rows]
    # At unit scale: squares of the smallest floats are 0. Without the mean: trials that lie close together,
    # as a greedy search's do, tell little of the whole space, which must not be lost against the mean.
    centred = y / largest - np.mean(y / largest)
    scale = float(np.abs(centred).max())
    try:
        shares, fit = _learnt(x, centred / scale, counts, trees, seed)
    except ValueError as error:
        raise Skipped(
            f"the {len(y)} trials lie too close together in a space of {len(counts)} choices to tell which "
            f"of them moves {metric}"
        ) from error
    effects = [effect * scale * largest for effect in shares.effects]
    return Sensitivity(metric, names, shares.main, shares.pairs, effects, len(y), False, fit)


def lead_metric(objectives: Sequence[Objective]) -> str:
    """The quality that a run traded costs against: its first objective that is better the larger."""
    return next((o.name for o in objectives if o.goal == "max"), objectives[0].name)


def sensitivity_section(trials: Sequence[Trial], objectives: Sequence[Objective]) -> Section:
    """The sensitivity of a run's quality to each choice, drawn.

    Raises:
        Skipped: see :func:`sensitivity`.
    """
    found = sensitivity(trials, lead_metric(objectives))
    label = HEADINGS.get(found.metric, found.metric)
    order = np.argsort(-found.main, kind="stable")[:SHOWN]
    top = ", ".join(f"{found.names[d]} {found.main[d]:.0%}" for d in order[:3])
    pairs = sorted(found.pairs.items(), key=lambda item: -item[1])[:10]
    basis = (
        f"all {found.trials} candidates, exactly"
        if found.exact
        else f"{found.trials} trials, random forest of {TREES} trees, which explains {_percent(found.fit)} "
        "of the variance of trials it has not seen"
    )
    shown = sorted(order.tolist())
    figures = [
        SectionFigure(
            "bars",
            f"What moves {label}",
            f"The longer a bar, the more of the variation of {label} over the whole space comes from that "
            "choice alone.",
            {
                "labels": [found.names[d] for d in order],
                "series": series(**{"share of variance": clipped(found.main[order])}),
                "percent": True,
                "axis": "share of variance",
            },
        )
    ]
    if len(found.paired) > 1 and pairs[0][1] > 0:
        figures.append(_pairs(found, label))
    figures.append(
        _effects(found, [d for d in shown if found.main[d] >= 0.01 and d in order[:6]] or shown[:1], label)
    )
    return Section(
        name="sensitivity",
        title="Sensitivity to each choice",
        summary=f"{label} is moved most by {top}",
        basis=basis,
        figures=tuple(figures),
        data={
            "metric": found.metric,
            "exact": found.exact,
            "trials": found.trials,
            "fit": found.fit,
            "main": dict(zip(found.names, clipped(found.main), strict=True)),
            "pairs": [[found.names[d], found.names[e], share] for (d, e), share in pairs],
        },
    )


def importance(trials: Sequence[Trial], objectives: Sequence[Objective]) -> dict[str, Any]:
    """Main effects for the report: ``{"metric", "names", "shares", "fit", "trials"}``, the largest first.

    Where the trials do not tell, ``{"metric", "skipped": why}``.
    """
    metric = lead_metric(objectives)
    try:
        found = sensitivity(trials, metric, trees=24, most=500)
    except (ArithmeticError, RuntimeError, ValueError) as error:
        return {"metric": metric, "skipped": str(error)}
    order = np.argsort(-found.main, kind="stable")[:SHOWN]
    return {
        "metric": found.metric,
        "names": [found.names[d] for d in order],
        "shares": clipped(found.main[order]),
        "fit": found.fit,
        "trials": found.trials,
    }


def _exact(
    x: np.ndarray, y: np.ndarray, counts: Sequence[int]
) -> tuple[np.ndarray, dict[tuple[int, int], float], list[np.ndarray]]:
    table = np.empty(counts)
    table[tuple(x.T)] = y
    parts = factorial(table)
    total = float(np.mean((table - table.mean()) ** 2))
    axes = range(len(counts))
    main = np.array([parts[(d,)] / total for d in axes])
    pairs = {(d, e): parts[(d, e)] / total for d, e in combinations(axes, 2)}
    effects = [table.mean(axis=tuple(a for a in axes if a != d)) - table.mean() for d in axes]
    return main, pairs, effects


def _learnt(
    x: np.ndarray, y: np.ndarray, counts: Sequence[int], trees: int, seed: int
) -> tuple[Shares, float | None]:
    from sklearn.ensemble import RandomForestRegressor

    # Features of 5/6 and no pruning, as in the paper; scaled, since a tree splits by absolute impurities.
    scale = float(y.std())
    y = (y - y.mean()) / scale
    forest = RandomForestRegressor(trees, max_features=5 / 6, random_state=seed, n_jobs=1)
    forest.fit(x, y)
    analyses = []
    for grown in forest.estimators_:
        t = grown.tree_
        boxes = tree_boxes(
            t.children_left,
            t.children_right,
            t.feature,
            t.threshold,
            t.value[:, 0, 0] * scale,
            counts,
        )
        analyses.append(Anova(boxes))
    varied = [a for a in analyses if a.variance > 0]
    if not varied:
        raise ValueError("no tree varies over the space")
    strong = np.argsort(-np.mean([a.main / a.variance for a in varied], axis=0), kind="stable")[:MOST_PAIRED]
    shares = average(analyses, list(combinations(sorted(strong.tolist()), 2)))
    return shares, _unseen_fit(forest, x, y)


def _unseen_fit(forest: Any, x: np.ndarray, y: np.ndarray) -> float | None:
    """R^2 of each sample's mean over the trees that were grown without it (out of bag)."""
    total, seen = np.zeros(len(y)), np.zeros(len(y))
    for tree, drawn in zip(forest.estimators_, forest.estimators_samples_, strict=True):
        out = np.ones(len(y), dtype=bool)
        out[drawn] = False
        if out.any():
            total[out] += tree.predict(x[out])
            seen[out] += 1
    known = seen > 0
    if known.sum() < 2 or np.ptp(y[known]) == 0:
        return None
    residual = np.sum((y[known] - total[known] / seen[known]) ** 2)
    return float(1 - residual / np.sum((y[known] - y[known].mean()) ** 2))


def _pairs(found: Sensitivity, label: str) -> SectionFigure:
    paired = sorted(found.paired, key=lambda d: -found.main[d])[:12]
    names = [found.names[d] for d in paired]
    values = [[0.0 if d == e else found.pairs[(min(d, e), max(d, e))] for e in paired] for d in paired]
    return SectionFigure(
        "heat",
        "Pairs of choices",
        f"A strong square is a pair whose joint effect on {label} is not the sum of what both do alone.",
        {
            "across": names,
            "down": names,
            "values": clipped(np.array(values)),
            "signed": False,
            "percent": True,
            "axis": "share of variance",
        },
    )


def _effects(found: Sensitivity, which: Sequence[int], label: str) -> SectionFigure:
    longest = max(len(found.effects[d]) for d in which)
    columns = {
        found.names[d]: found.effects[d].tolist() + [None] * (longest - len(found.effects[d])) for d in which
    }
    return SectionFigure(
        "lines",
        f"Mean {label} by option",
        f"A line that falls is a choice that costs {label} as it compresses, all others taken at random.",
        {
            "labels": ["unchanged", *(f"step {i}" for i in range(1, longest))],
            "series": [
                {"name": n, "values": [None if v is None else float(f"{v:.4g}") for v in c]}
                for n, c in columns.items()
            ],
            "percent": found.metric in ("accuracy", "robust_accuracy"),
            "axis": f"{label}, against its mean",
        },
    )


def _percent(value: float | None) -> str:
    return "an unknown part" if value is None else f"{max(0.0, value):.0%}"
