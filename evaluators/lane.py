"""The latency lane: what is only measured right with nothing else running."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..spaces import Candidate, Space
from .base import Scorer, as_evaluators
from .pool import Job, Outcome, worker_name

if TYPE_CHECKING:
    from .task import Task


class Lane:
    """Evaluates in this process, one candidate at a time, on one thread.

    The caller sees to it that the workers are idle meanwhile. Models are built but not repaired:
    statistics do not change the time of a call.

    Args:
        evaluators: those with ``lane = True``.
    """

    def __init__(self, task: Task | None, space: Space, evaluators: Sequence[Scorer]) -> None:
        self.job = Job(task, space, as_evaluators(evaluators), repair=())

    def evaluate(self, number: int, candidate: Candidate) -> Outcome:
        """Scores and ``detail`` (quartiles, device) or the error; never raises."""
        return self.job.evaluate(number, candidate)


def compare(
    task: Task, space: Space, trials: Sequence[tuple[int, Candidate]], *, seconds: float
) -> list[Outcome]:
    """Latencies of several networks that take turns in the same rounds, so that their order can be relied on.

    Args:
        trials: number and candidate; few, since all networks are held at once. Number 0 is the given model.
        seconds: bound on the timed part; at least ten rounds are taken.

    Returns:
        An outcome each, in order, not :func:`steadied`; an error where a network cannot be built or run.
    """
    from .latency import Latency

    job = Job(task, space, (), repair=())
    try:
        models = [task.model if number == 0 else job.build(candidate) for number, candidate in trials]
        records = Latency(seconds=seconds).measure(task, models)
    except Exception:
        if len(trials) > 1:  # find the one
            return [o for trial in trials for o in compare(task, space, [trial], seconds=seconds)]
        return [Outcome(number, error=traceback.format_exc(), worker=worker_name()) for number, _ in trials]
    return [
        Outcome(number, {"latency_ms": r.median_ms}, worker=worker_name(), detail=r.as_detail())
        for (number, _), r in zip(trials, records, strict=True)
    ]


def steadied(outcome: Outcome, reference_ms: float) -> Outcome:
    """The outcome with its latency as a share of ``reference_ms``, one time of the unchanged model for all.

    A machine that gets busy or warm slows down by half and more, from one candidate to the next. The share
    of the unchanged model's time does not, since their calls alternate; so latencies of one run compare as
    their shares do. Trial 0 is the unchanged model, its share 1. What was read off the clock stays in
    ``detail``. No-op where no share was measured.
    """
    share = outcome.detail.get("ratio")
    if outcome.scores is None or "latency_ms" not in outcome.scores or share is None:
        return outcome
    if outcome.number == 0:
        share = 1.0
    return replace(outcome, scores=outcome.scores | {"latency_ms": share * reference_ms})
