"""Convergence: growth of a run's hypervolume, and other runs beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise, permutations
from typing import Any

import numpy as np

from ..results.comparison import budget_rows, compare_fronts
from ..results.front import Front
from ..results.objective import Limit, Objective, total_violation
from ..results.points import has_scores, points_of, scaled_hypervolume
from ..results.trial import Trial

# By number of objectives, how often the volume is computed at most: with more of them it soon takes seconds.
STEPS = {1: 400, 2: 400, 3: 80}
FEW = 24


def convergence(
    trials: Sequence[Trial],
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    reference: Mapping[str, float],
    clock: Sequence[Sequence[float]] = (),
) -> dict[str, Any]:
    """Hypervolume of the first n trials, in number order, under one reference for all n.

    Args:
        clock: ``[trials, seconds]``, both rising: when how many were known.

    Returns:
        ``{"trials": [n], "seconds": [s], "volume": [v], "clock": bool}``: after ``n`` trials and ``s``
        seconds of the run; without a clock, seconds of evaluation, summed over workers. One entry at the
        first trial, at the last and where the volume changed; where that is too often, evenly many of them.
    """
    base = next((t.scores for t in trials if t.number == 0 and not t.failed), {})
    points = np.empty((0, len(objectives)))  # [front so far, objectives], minimised
    fronts: list[tuple[int, float, np.ndarray]] = [(1, float(trials[0].seconds), points)]
    spent = np.cumsum([t.seconds for t in trials]).tolist()
    kept = [
        i
        for i, t in enumerate(trials)
        if t.fidelity == trials[0].fidelity
        and has_scores(t, objectives)
        and (not limits or total_violation(limits, t.scores, base) == 0)
    ]
    for i, point in zip(kept, points_of([trials[i] for i in kept], objectives), strict=True):
        if not (points <= point).all(axis=1).any():
            points = np.concatenate((points[(points < point).any(axis=1)], point[None]))
            fronts.append((i + 1, spent[i], points))
    if fronts[1:] and fronts[1][0] == 1:
        del fronts[0]
    steps = STEPS.get(len(objectives), FEW)
    every = max(1, math.ceil(len(fronts) / steps))
    chosen = fronts[::-every][::-1]  # the last front always
    if chosen[0][0] != 1:
        chosen.insert(0, fronts[0])
    volumes = [volume(front, objectives, reference) for _, _, front in chosen]
    ends = (len(trials), spent[-1], volumes[-1])
    rows = [(n, s, v) for (n, s, _), v in zip(chosen, volumes, strict=True)]
    if rows[-1][0] != len(trials):
        rows.append(ends)
    counts, seconds = [n for n, _, _ in rows], [s for _, s, _ in rows]
    if len(clock):
        seconds = np.interp(counts, *np.transpose([(0.0, 0.0), *clock])).tolist()
    return {
        "trials": counts,
        "seconds": [round(s, 4) for s in seconds],
        "volume": [v for _, _, v in rows],
        "clock": bool(len(clock)),
    }


def clock_of(info: Mapping[str, Any]) -> list[list[float]]:
    """When how many trials were known, as a run has kept it; empty where it has not, or nothing sensible."""
    points = info.get("clock")
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
        return []
    if not all(type(v) in (int, float) and 0 <= v < 1e12 for p in points for v in p):
        return []
    rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(points))
    return points if rising else []


def volume(
    points: np.ndarray, objectives: Sequence[Objective], reference: Mapping[str, float]
) -> float | None:
    """:func:`scaled_hypervolume`, or None where numbers near the largest float overflow."""
    try:
        with np.errstate(all="ignore"):
            found = scaled_hypervolume(points, objectives, reference)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


# -- Several runs against each other: hypervolumes, budgets, and who beats whom -------------------------


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
