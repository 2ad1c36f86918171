"""A front as one JSON object: what ``netcarve front --json`` and ``netcarve sweep --json`` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .confirmation import confirming_data

if TYPE_CHECKING:
    from .front import Front


def front_document(
    front: Front, *, task: str | None, searcher: str, seed: int, modelled: Sequence[str] = ()
) -> dict[str, Any]:
    """The front as plain JSON values, the non-dominated trials only, best first objective first.

    Args:
        task: its name; ``None`` for a space without a model.
        searcher: its name.
        seed: the run's.
        modelled: metrics that come from profiles of devices, not from a clock; kept where there are any.

    Returns:
        ``{"task", "searcher", "seed", "objectives": [{"name", "goal", "unit"}], "baseline": {metric: value},
        "trials": [{"number", "candidate": {choice: value}, "scores": {metric: value}}]}``; the baseline is
        ``{}`` when the unchanged model has no scores. A trial that was confirmed on data that chose nothing
        has ``"confirmed": {metric: value}`` beside its scores, and ``"confirmed_on"`` says what they were.
    """
    data = confirming_data(list(front))
    return {
        "task": task,
        "searcher": searcher,
        "seed": seed,
        "objectives": [{"name": o.name, "goal": o.goal, "unit": o.unit} for o in front.objectives],
        "baseline": _numbers(front.baseline.scores) if front.baseline else {},
        "trials": [
            {
                "number": t.number,
                "candidate": t.candidate.values,
                "scores": _numbers(t.scores),
                **({"confirmed": dict(own)} if (own := t.confirmed) else {}),
            }
            for t in front
        ],
        **({"confirmed_on": {"data": data[0], "samples": data[1]}} if data else {}),
        **({"modelled": list(modelled)} if modelled else {}),
    }


def sweep_document(
    front: Front,
    *,
    task: str | None,
    searcher: str,
    seed: int,
    out: str,
    evaluated: int,
    failed: int,
    seconds: float,
    modelled: Sequence[str] = (),
) -> dict[str, Any]:
    """:func:`front_document` with how the run went.

    Args:
        out: the run's folder.
        evaluated: trials with an outcome, the failed ones among them.
        failed: trials that failed.
        seconds: wall time of the run, all sessions together.
    """
    return front_document(front, task=task, searcher=searcher, seed=seed, modelled=modelled) | {
        "out": out,
        "evaluated": evaluated,
        "failed": failed,
        "seconds": seconds,
        "hypervolume": front.hypervolume(),
    }


def _numbers(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in scores.items()}
