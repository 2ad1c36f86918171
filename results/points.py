"""Trials as points: what a front, finished or growing, reads from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .hypervolume import hypervolume
from .objective import ALIASES, METRICS, Limit, Objective
from .trial import Trial

RATES = ("throughput_per_s",)  # of no natural scale: measured against the unchanged model, as costs are
Reference = Mapping[str, float] | Sequence[float]  # by metric, or in the order of the objectives


def read_objectives(given: Sequence[Objective | str]) -> tuple[Objective, ...]:
    """Objectives from objects or texts; at least one, none twice, else ValueError."""
    objectives = tuple(Objective.parse(o) if isinstance(o, str) else o for o in given)
    names = [o.name for o in objectives]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"a front needs at least one objective and none twice, got {names}")
    return objectives


def read_limits(given: Sequence[Limit | str]) -> tuple[Limit, ...]:
    """Limits from objects or texts."""
    return tuple(Limit(limit) if isinstance(limit, str) else limit for limit in given)


def has_scores(trial: Trial, objectives: Sequence[Objective]) -> bool:
    """The trial succeeded and has every objective."""
    return not trial.failed and all(o.name in trial.scores for o in objectives)


def points_of(trials: Sequence[Trial], objectives: Sequence[Objective]) -> np.ndarray:
    """Objectives of the trials, float64 [trials, objectives], signed so that less is better."""
    rows = [[o.sign * t.scores[o.name] for o in objectives] for t in trials]
    return np.array(rows, dtype=np.float64).reshape(-1, len(objectives))


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
        given = {ALIASES.get(name, name): float(value) for name, value in reference.items()}
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
