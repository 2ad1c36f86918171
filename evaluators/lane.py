"""The latency lane: what is only measured right with nothing else running."""

from __future__ import annotations

from collections.abc import Sequence
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
