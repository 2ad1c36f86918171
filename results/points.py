"""Trials as points: what a front, finished or growing, reads from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .hypervolume import hypervolume
from .objective import METRICS, Limit, Objective, full_name
from .trial import Trial

BUSY = 0.1  # a machine on which the unchanged model's own time moves by more is too busy to tell latencies
RATES = ("throughput_per_s",)  # of no natural scale: measured against the unchanged model, as costs are
Reference = Mapping[str, float] | Sequence[float]  # by metric, or in the order of the objectives


def read_objectives(given: Sequence[Objective | str], goals: Mapping[str, str] = {}) -> tuple[Objective, ...]:
    """Objectives from objects or texts; at least one, none twice, else ValueError."""
    objectives = tuple(Objective.parse(o, goals) if isinstance(o, str) else o for o in given)
    names = [o.name for o in objectives]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"a front needs at least one objective and none twice, got {names}")
    return objectives


def read_limits(given: Sequence[Limit | str]) -> tuple[Limit, ...]:
    """Limits from objects or texts."""
    return tuple(Limit(limit) if isinstance(limit, str) else limit for limit in given)


def has_scores(trial: Trial, objectives: Sequence[Objective]) -> bool:
    """The trial succeeded and has every objective."""
    return not trial.failed and trial.scores.keys() >= {o.name for o in objectives}


def points_of(trials: Sequence[Trial], objectives: Sequence[Objective]) -> np.ndarray:
    """Objectives of the trials, float64 [trials, objectives], signed so that less is better."""
    names, signs = [o.name for o in objectives], np.array([o.sign for o in objectives], dtype=np.float64)
    rows = [[t.scores[name] for name in names] for t in trials]
    return np.array(rows, dtype=np.float64).reshape(-1, len(names)) * signs


def ranges_of(trials: Sequence[Trial], objectives: Sequence[Objective]) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends of what is known of the objectives, like :func:`points_of`.

    They differ for a measured latency alone: the 95 % interval of its share of the unchanged model's time.
    """
    points = points_of(trials, objectives)
    low, high = points.copy(), points.copy()
    for j, objective in enumerate(objectives):
        if objective.name == "latency_ms":
            shares = np.array([latency_interval(t) for t in trials]).reshape(-1, 2)
            low[:, j] *= shares[:, 0]
            high[:, j] *= shares[:, 1]
    return low, high


def latency_interval(trial: Trial) -> tuple[float, float]:
    """Ends of the 95 % interval of a measured latency, as multiples of it: (0.98, 1.02), say.

    (1, 1) for the unchanged model, which the others are measured against, and where nothing is known.
    """
    given = (trial.detail.get(key) for key in ("ratio", "ratio_low", "ratio_high"))
    found = [float(v) for v in given if isinstance(v, int | float) and v > 0]
    if trial.number == 0 or len(found) < 3:
        return 1.0, 1.0
    ratio, low, high = found
    return min(low / ratio, 1.0), max(high / ratio, 1.0)


def latency_drift(trial: Trial) -> float:
    """By how much the unchanged model differed from itself meanwhile, as a share; 0 where not known."""
    drift = trial.detail.get("drift")
    measured = "latency_ms" in trial.scores and isinstance(drift, int | float) and math.isfinite(drift)
    return float(drift) if measured else 0.0  # type: ignore[arg-type]


def default_reference(
    objectives: Sequence[Objective], baseline: Trial | None, worst: np.ndarray
) -> dict[str, float]:
    """See ``Front.hypervolume``. ``worst``: [objectives], minimised, -inf where nothing was seen."""
    scores = baseline.scores if baseline else {}
    chosen = {}
    for objective, worst_value in zip(objectives, worst, strict=True):
        # A cost starts at the unchanged model's and falls. A loss starts there and *rises*: with the
        # unchanged model as reference every pruned one would count for nothing.
        cost = objective.name in METRICS and objective.name != "loss"
        if (
            objective.goal == "max" and objective.name not in RATES
        ):  # 0, but for metrics below it, of which nothing would count
            chosen[objective.name] = min(0.0, -float(worst_value)) if np.isfinite(worst_value) else 0.0
        elif cost and scores.get(objective.name, 0.0) > 0:
            chosen[objective.name] = float(scores[objective.name])
        else:
            worst_seen = float(worst_value) if np.isfinite(worst_value) else 0.0
            # Traffic is 0 for the unchanged model: all that was sent counts, and all of 1 where nothing was.
            chosen[objective.name] = worst_seen or (1.0 if cost else 0.0)
    return chosen


def read_reference(reference: Reference, objectives: Sequence[Objective]) -> dict[str, float]:
    """A value per objective, by name; ValueError when one is missing."""
    names = [o.name for o in objectives]
    if isinstance(reference, Mapping):
        given = {full_name(name): float(value) for name, value in reference.items()}
    elif len(reference) == len(names):
        given = dict(zip(names, map(float, reference), strict=True))
    else:
        given = {}
    if not set(names) <= set(given):
        raise ValueError(f"the reference needs a value for each of {names}, got {reference!r}")
    return {name: given[name] for name in names}


def scaled_hypervolume(
    points: np.ndarray, objectives: Sequence[Objective], reference: Mapping[str, float]
) -> float:
    """Hypervolume of minimised points [n, objectives], each objective divided by its |reference| (or 1)."""
    corner = np.array([o.sign * reference[o.name] for o in objectives])
    size = np.where(corner == 0, 1.0, np.abs(corner))
    return hypervolume(points / size, corner / size)
