"""What is measured of a run's best candidates once the search is over."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..results.front import Front
from ..results.ledger import Ledger
from ..results.settings import RunSettings
from ..results.trial import Trial
from ..spaces import Space
from ..spaces.kinds.splits.plan import plan_of
from .known import SAME

if TYPE_CHECKING:
    from ..evaluators.task import Task

TOGETHER = 8  # networks that take turns, all held at once
MOST = 40  # networks in all, the front's first
SHARE = 0.03  # of the time that the run took, for the timing
LEAST_SECONDS = 1.0
IN_TURNS = "latency_in_turns"  # detail of a trial: its latency was measured beside its neighbours


def measure_front(ledger: Ledger, task: Task, space: Space, *, seconds: float = 0.0) -> None:
    """Measure the latency of the unchanged model and of the front, neighbours in turns, and keep it.

    Where latency is an objective, so are trials that may belong to the front, for all that is known of their
    latency. Nothing else may run meanwhile. All latencies are shares of one time of the unchanged model: the
    median of all that were seen here, or what is known of it. A model that fails here stays as it was.
    Nothing is measured again that was measured so before; where networks are split, their stages are timed
    instead (see :func:`.staged_front.measure_stages`).

    Args:
        seconds: that the run has taken; 3 % of it, and at least a second, are for timing (more where ten
            rounds take longer).
    """
    if plan_of(space.choices) is not None:
        from .staged_front import measure_stages

        measure_stages(ledger, task, space)
        return
    from ..evaluators.lane import compare, steadied

    settings = RunSettings.from_json(ledger.settings)
    trials = ledger.trials(space)
    front = Front(trials, settings.objectives, limits=settings.limits)
    wanted = {t.number: t for t in (front.baseline, *front.contenders()[:MOST]) if t is not None}
    if all(IN_TURNS in t.detail for t in wanted.values()):
        return
    groups = list(_neighbours(list(wanted.values())))
    each = max(LEAST_SECONDS, SHARE * seconds) / len(groups)
    known = front.baseline.scores.get("latency_ms") if front.baseline else None
    outcomes = [
        outcome
        for group in groups
        for outcome in compare(task, space, [(t.number, t.candidate) for t in group], seconds=each)
        if outcome.scores is not None
    ]
    if not outcomes:
        return
    reference = known or statistics.median(o.detail["baseline_ms"] for o in outcomes)
    same = [(t.detail.get(SAME), t.number) for t in trials]
    for outcome in outcomes:
        steady = steadied(outcome, reference)
        for number in (steady.number, *(copy for of, copy in same if of == steady.number)):
            ledger.measure(number, steady.scores or {}, {**steady.detail, IN_TURNS: True})


def _neighbours(trials: Sequence[Trial]) -> Iterator[list[Trial]]:
    """Trials in groups of nearly equal size, by latency as far as it is known, else by MACs."""
    metric = next((m for m in ("latency_ms", "macs") if all(m in t.scores for t in trials)), None)
    ordered = sorted(trials, key=lambda t: (t.scores[metric] if metric else 0.0, t.number))
    count = -(-len(ordered) // TOGETHER)
    for i in range(count):
        yield ordered[i * len(ordered) // count : (i + 1) * len(ordered) // count]
