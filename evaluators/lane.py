"""The latency lane: what is only measured right with nothing else running."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..spaces import Candidate, Space
from .pool import Job, Outcome, Scorer

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
        self.job = Job(task, space, tuple(evaluators), repair=())

    def evaluate(self, number: int, candidate: Candidate) -> Outcome:
        """Scores and ``detail`` (quartiles, device) or the error; never raises."""
        return self.job.evaluate(number, candidate)


def steadied(outcome: Outcome, reference_ms: float) -> Outcome:
    """The outcome with its latency as a share of ``reference_ms``, one time of the unchanged model for all.

    A machine that gets busy or warm slows down by half and more, from one candidate to the next. The share
    of the unchanged model's time does not, since their calls alternate; so latencies of one run compare as
    their shares do. What was read off the clock stays in ``detail``. No-op where no share was measured.
    """
    share = outcome.detail.get("ratio")
    if outcome.scores is None or "latency_ms" not in outcome.scores or share is None:
        return outcome
    return replace(outcome, scores=outcome.scores | {"latency_ms": share * reference_ms})
