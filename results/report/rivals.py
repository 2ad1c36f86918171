"""Several runs against each other: hypervolumes, budgets, and who beats whom."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import permutations
from typing import Any

import numpy as np

from ..comparison import budget_rows, compare_fronts
from ..front import Front


def dominating(ours: Front, theirs: Front) -> list[tuple[int, list[int]]]:
    """Which points of one front dominate which of another.

    Args:
        ours, theirs: with equal objectives.

    Returns:
        ``(number of a trial of ours, numbers of those of theirs that it dominates)``, for every trial that
        dominates any: nowhere worse and somewhere better.
    """
    a, b = ours.points[:, None], theirs.points[None]  # [ours, 1, objectives], [1, theirs, objectives]
    beats = np.logical_and((a <= b).all(axis=2), (a < b).any(axis=2))  # [ours, theirs]
    return [
        (trial.number, [theirs.trials[j].number for j in np.flatnonzero(row)])
        for trial, row in zip(ours, beats, strict=True)
        if row.any()
    ]


def rivals(fronts: Mapping[str, Front], reference: Mapping[str, float] | None) -> dict[str, Any]:
    """The comparison as plain JSON values; empty where the runs share no objective, or
    where its numbers are too large for a hypervolume.

    Returns:
        ``{"objectives": [name], "reference": {metric: value}, "table": [{"run", "size", "hypervolume",
        "best"}], "budget": {"metric", "cost", "rows"}, "pairs": [{"a", "b", "dominates": [[number,
        [numbers]]]}]}``; the table has the largest hypervolume first.
    """
    if not fronts or reference is None:
        return {}
    try:
        with np.errstate(all="ignore"):
            figures = compare_fronts(fronts)
    except ValueError:  # numbers near the largest float overflow
        return {}
    for row in figures["runs"]:
        row["hypervolume"] = row["hypervolume"] if math.isfinite(row["hypervolume"]) else None
    metric, cost, rows = budget_rows(fronts)
    return {
        "objectives": figures["objectives"],
        "reference": dict(reference),
        "table": figures["runs"],
        "budget": {"metric": metric, "cost": cost, "rows": rows},
        "pairs": [
            {"a": a, "b": b, "dominates": [list(pair) for pair in dominating(fronts[a], fronts[b])]}
            for a, b in permutations(fronts, 2)
        ],
    }
