"""Where each trial's network was cut, and what ran its stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...spaces.kinds.splits.plan import Plan, splitting_choices
from ..settings import RunSettings
from ..trial import Trial


def stages(settings: RunSettings, trials: Sequence[Trial]) -> dict[str, Any] | None:
    """Every trial's decomposition, equal ones once; None where networks were not split.

    Returns:
        ``{"choices": [name], "ways": [[[stage, device], ...], ...], "taken": [...], "ms": {number: [...]},
        "changes": {number: [latency, throughput]}}``: ``choices`` that only say where to cut and what runs
        where; a stage reads ``"after..up to"``; ``taken`` is a position in ``ways`` for each trial; ``ms``
        of stages that were measured, and the relative changes of :mod:`.spaces.devices.sensitivity`.
    """
    if settings.split is None:
        return None
    try:
        return _stages(Plan.from_json(settings.split), trials)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None  # an older run, or one that somebody has written


def _stages(plan: Plan, trials: Sequence[Trial]) -> dict[str, Any]:
    known = {c: i for i, c in enumerate(trials[0].candidate.choices)}
    choices = [c for c in splitting_choices(plan) if c in known]
    indices = np.array([[t.candidate.indices[known[c]] for c in choices] for t in trials], dtype=np.int64)
    begins, on = plan.decode(choices, indices.reshape(len(trials), len(choices)))
    names = ["input", *plan.places, "output"]
    ways: dict[tuple[tuple[str, str], ...], int] = {}
    taken = []
    for edge, devices in zip(begins.tolist(), on.tolist(), strict=True):
        spans = zip([0, *edge], [*edge, plan.segments], devices, strict=True)
        way = tuple((f"{names[a]}..{names[b]}", plan.devices[d].name) for a, b, d in spans if b > a)
        taken.append(ways.setdefault(way, len(ways)))
    return {
        "choices": [c.name for c in choices],
        "ways": [[list(stage) for stage in way] for way in ways],
        "taken": taken,
        "ms": _of_details(trials, "measured", lambda found: found["stage_ms"]),
        "changes": _of_details(
            trials, "sensitivity", lambda found: [found["latency_change"], found["throughput_change"]]
        ),
    }


def _of_details(trials: Sequence[Trial], key: str, read: Any) -> dict[str, list[float]]:
    """Numbers of the trials whose detail has them, by number."""
    out = {}
    for trial in trials:
        try:
            values = [float(v) for v in read(trial.detail[key])]
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        if np.isfinite(values).all():
            out[str(trial.number)] = values
    return out
