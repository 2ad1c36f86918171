"""Several fronts side by side, under one reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .confirmation import optimism
from .front import Front
from .objective import METRICS, Objective
from .table import metric_text

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
