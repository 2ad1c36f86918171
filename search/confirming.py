"""Confirmation of a front: its members scored once more, on data that no candidate was selected on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..evaluators.pool import Job
from ..results.fidelity import FULL, Fidelity
from ..results.front import Front
from ..results.ledger import Ledger
from ..results.settings import RunSettings
from ..results.trial import in_full
from ..spaces import Space

if TYPE_CHECKING:
    from ..evaluators.base import Evaluator
    from ..evaluators.task import Task


def confirm_front(
    ledger: Ledger,
    task: Task,
    space: Space,
    scorers: Sequence[Evaluator],
    say: Callable[[str], None],
    rungs: Sequence[Fidelity] = (FULL,),
) -> None:
    """Score the unchanged model, the front and the uniform cuts on ``task.confirm_batches``, and keep it.

    Each network once: what is confirmed already, in an earlier session, is left alone. Nothing is told to the
    searcher. Where quality decides nothing in this run, or the task has nothing to confirm with, nothing is
    done. A network that fails here stays unconfirmed.
    """
    settings = RunSettings.from_json(ledger.settings)
    decided = {o.name for o in settings.objectives} | {m.metric for m in settings.limits}
    if not task.confirm_batches or not decided & set(task.metrics) or not _scores_quality(scorers):
        return
    from ..evaluators.accuracy import Quality
    from ..evaluators.batches import count_samples

    trials = in_full(ledger.trials(space))
    rows = set(settings.uniform)
    front = Front(trials, settings.objectives, limits=settings.limits)
    numbers = {t.number for t in (front.baseline, *front) if t is not None}
    wanted = [t for t in trials if t.number in numbers or t.candidate.indices in rows]
    wanted = [t for t in wanted if not t.failed and not t.confirmed]
    samples = count_samples(task.confirm_batches)
    levels = tuple(replace(rung, samples=1.0) for rung in rungs)  # of all data, repaired as in the search
    job = Job(task.to_confirm(), space, [Quality(each=True)], rungs=levels)
    for done, trial in enumerate(wanted):
        say(f"confirming the front on {task.confirm_data}: {done + 1} of {len(wanted)}")
        outcome = job.evaluate(trial.number, trial.candidate, trial.fidelity)
        if outcome.scores is not None:
            right = outcome.detail.get("right")
            record = {"data": task.confirm_data, "samples": samples, "scores": outcome.scores}
            ledger.measure(trial.number, {}, {"confirmed": record | ({"right": right} if right else {})})


def _scores_quality(scorers: Sequence[Evaluator]) -> bool:
    """Are the run's scores the task's metric? A user's own evaluators may give others of the same name."""
    from ..evaluators.accuracy import Quality

    return any(isinstance(getattr(s, "inner", s), Quality) for s in scorers)
