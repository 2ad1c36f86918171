"""Comparison of fronts: several runs side by side, and a front against uniform cuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .confirmation import measured_objective, optimism, samples_right, value_of
from .front import Front
from .objective import FRACTIONS, METRICS, Objective
from .table import HEADINGS, metric_text, ratio_text
from .trial import Trial

BUDGETS = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1)  # of the unchanged model's cost, as people ask for them


def common_objectives(fronts: Mapping[str, Front]) -> tuple[Objective, ...]:
    """The objectives that all fronts share, in the first one's order.

    Raises:
        ValueError: there are none.
    """
    first, *others = fronts.values()
    shared = tuple(o for o in first.objectives if all(o in f.objectives for f in others))
    if not shared:
        asked = "; ".join(f"{name}: {', '.join(o.name for o in f.objectives)}" for name, f in fronts.items())
        raise ValueError(f"these runs share no objective ({asked}); name some that all have measured")
    return shared


def common_reference(fronts: Sequence[Front]) -> dict[str, float]:
    """One reference point for all: per objective the worst of the fronts' own references."""
    objectives = fronts[0].objectives
    return {o.name: o.sign * max(o.sign * f.reference[o.name] for f in fronts) for o in objectives}


def compare_fronts(fronts: Mapping[str, Front]) -> dict[str, Any]:
    """Fronts in figures, as plain JSON values.

    Args:
        fronts: by name, at least one, with equal objectives.

    Returns:
        ``{"objectives": [name], "reference": {metric: value}, "runs": [{"run", "size", "hypervolume",
        "confirmed", "best": {metric: value}}]}``, the largest hypervolume first; all hypervolumes are under
        one reference, the confirmed ones too (None where a front was not confirmed).
    """
    reference = common_reference(list(fronts.values()))
    runs: list[dict[str, Any]] = [
        {
            "run": name,
            "size": len(front),
            "hypervolume": front.hypervolume(reference),
            "confirmed": volumes[1] if (volumes := optimism(front, reference)) else None,
            "best": {o.name: front.best(o.name).scores[o.name] for o in front.objectives if len(front)},
        }
        for name, front in fronts.items()
    ]
    objectives = next(iter(fronts.values())).objectives
    runs.sort(key=lambda run: -run["hypervolume"])
    return {"objectives": [o.name for o in objectives], "reference": reference, "runs": runs}


def budget_rows(fronts: Mapping[str, Front]) -> tuple[str, str, list[list[str]]]:
    """What each front reaches at shrinking budgets of a cost, in the first other objective.

    Returns:
        ``(metric, cost, rows)``; a row is the budget (``"0.5x"``) and one text per front, ``"-"`` where
        it has nothing so cheap. No rows without both kinds of objective, or without an unchanged model.
    """
    objectives = next(iter(fronts.values())).objectives
    costs = [o for o in objectives if o.goal == "min" and o.name in METRICS and o.name != "loss"]
    others = [o for o in objectives if o not in costs]
    if not costs or not others or not all(f.baseline for f in fronts.values()):
        return "", "", []
    metric, cost = others[0], costs[0].name
    rows = []
    for budget in BUDGETS:
        cells = [_reached(front, metric, f"{cost}<={budget}x") for front in fronts.values()]
        if any(cell != "-" for cell in cells):
            rows.append([f"{budget:g}x", *cells])
    return metric.name, cost, rows


def _reached(front: Front, metric: Objective, where: str) -> str:
    try:
        trial = front.best(metric.name, where)
    except ValueError:  # nothing of the front is so cheap
        return "-"
    return metric_text(metric.name, trial.scores[metric.name], metric.unit)


# -- What a search has bought: its front against uniform cuts, on the same samples ----------------------

Z95 = 1.959963984540054  # standard normal quantile of 97.5 %


@dataclass(frozen=True)
class Gain:
    """How much better the front is than the line of uniform cuts, at equal cost, on average over costs."""

    metric: Objective
    cost: Objective
    mean: float  # in the metric's unit; more than 0: the front is better, whatever the metric's goal
    low: float | None  # 95 % interval over the samples; None where samples are not right or wrong
    high: float | None
    samples: int | None

    @property
    def bought(self) -> bool:
        """Is the front better, as far as can be told?"""
        return self.mean > 0 if self.low is None else self.low > 0


def gain(front: Front, uniform: Sequence[Trial]) -> Gain | None:
    """The line through the front against that through the unchanged model and the uniform cuts.

    Both are lines, since as many uniform cuts could be had as one likes: a front is not better for being
    finer. They are compared from the least cost that both reach to the most that either has, and valued on
    the samples that confirm, else on the search's own: which trials make the front is the search's choice,
    not that of these samples. The difference is linear in the values, so that its interval follows from the
    samples' own differences.

    Returns:
        None without a measured objective, a known cost beside it, or two uniform cuts that have both.
    """
    metric = measured_objective(front)
    cost = next((o for o in front.objectives if o.goal == "min" and o != metric and o.name in METRICS), None)
    if metric is None or cost is None or not len(front):
        return None
    line = [t for t in [*uniform, *([front.baseline] if front.baseline else [])] if _known(t, metric, cost)]
    if len(line) < 3 or not all(_known(t, metric, cost) for t in front):
        return None
    kept = {t.number: t for t in (*front, *line)}
    at = {number: i for i, number in enumerate(kept)}
    weights = np.zeros(len(kept))
    low = max(min(t.scores[cost.name] for t in group) for group in (front, line))
    high = max(t.scores[cost.name] for t in kept.values())
    if not high > low:
        return None
    for sign, trials in ((1, list(front)), (-1, line)):
        for trial, share in _line(trials, cost, low, high):
            weights[at[trial.number]] += sign * share
    weights *= -metric.sign / (high - low)
    right = samples_right(list(kept.values())) if metric.name == "accuracy" else None
    if right is not None:
        differences = weights @ right  # [samples]
        mean, half = differences.mean(), Z95 * differences.std(ddof=1) / np.sqrt(differences.size)
        return Gain(metric, cost, float(mean), float(mean - half), float(mean + half), differences.size)
    sure = all(metric.name in t.confirmed for t in kept.values())  # never a mixture of both kinds
    values = [(t.confirmed if sure else t.scores)[metric.name] for t in kept.values()]
    return Gain(metric, cost, float(weights @ np.array(values)), None, None, None)


def sentence(front: Front, uniform: Sequence[Trial]) -> str:
    """What the search has bought over uniform cuts; empty where that cannot be said."""
    found = gain(front, uniform)
    if found is None:
        return ""
    name, cost = found.metric.name, HEADINGS.get(found.cost.name, found.cost.name)
    interval = ""
    if found.low is not None and found.high is not None:
        low, high = (_change(name, v) for v in (found.low, found.high))
        interval = f" (95 %: {low} to {high}, {found.samples:,} samples)"
    change = f"{_change(name, found.mean)}{' points' if name in FRACTIONS else ''} of {name} at equal {cost}"
    if not found.bought:
        return f"The search bought nothing over uniform cuts that can be told: {change}{interval}."
    return f"The search bought {change} over uniform cuts{interval}.{_saved(front, uniform, found)}"


def _saved(front: Front, uniform: Sequence[Trial], found: Gain) -> str:
    """The cost of the front at the accuracy of the uniform cut that most people would take."""
    metric, cost = found.metric, found.cost
    base = front.baseline
    if base is None or (was := value_of(base, metric.name)) is None or not base.scores.get(cost.name):
        return ""
    good = [
        (t, value)
        for t in uniform
        if _known(t, metric, cost)
        and (value := value_of(t, metric.name)) is not None
        and metric.sign * (value.value - was.value) <= 0.02 * abs(was.value)
    ]
    if not good:
        return ""
    rung, value = min(good, key=lambda pair: pair[0].scores[cost.name])
    # Chosen by what the search knew, so that the data that confirm choose nobody.
    as_good = [t for t in front if metric.sign * (t.scores[metric.name] - rung.scores[metric.name]) <= 0]
    cheapest = min(as_good, key=lambda t: t.scores[cost.name], default=None)
    if cheapest is None or cheapest.scores[cost.name] >= rung.scores[cost.name]:
        return ""
    own = value_of(cheapest, metric.name)
    assert own is not None
    ours, theirs = (ratio_text(t.scores[cost.name], base.scores[cost.name]) for t in (cheapest, rung))
    heading = HEADINGS.get(cost.name, cost.name)
    has, had = (metric_text(metric.name, v.value, metric.unit) for v in (own, value))
    return f" Trial {cheapest.number}: {has} at {ours} {heading}; uniform {rung.number}: {had} at {theirs}."


def _line(line: Sequence[Trial], cost: Objective, low: float, high: float) -> list[tuple[Trial, float]]:
    """Of each trial its weight in the integral of the line through all, within the bounds; flat beyond it."""
    by_cost = {t.scores[cost.name]: t for t in sorted(line, key=lambda t: -t.number)}
    x = np.array(sorted(by_cost))
    grid = np.unique(np.concatenate([[low, high], x[(x > low) & (x < high)]]))
    ends = np.array([np.interp(grid, x, unit) for unit in np.eye(len(x))])  # [trials, grid]
    shares = (0.5 * (ends[:, 1:] + ends[:, :-1]) * np.diff(grid)).sum(axis=1)
    return [(by_cost[value], float(share)) for value, share in zip(x.tolist(), shares, strict=True)]


def _known(trial: Trial, metric: Objective, cost: Objective) -> bool:
    return metric.name in trial.scores and cost.name in trial.scores


def _change(name: str, value: float) -> str:
    return f"{100 * value:+.2f}" if name in FRACTIONS else f"{value:+.3g}"
