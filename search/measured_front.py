"""What is measured of a run's best candidates once the search is over."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from ..results.front import Front
from ..results.ledger import Ledger
from ..results.objective import Objective
from ..spaces import Space
from ..spaces.splitting.splits import plan_of

if TYPE_CHECKING:
    from ..evaluators.task import Task


def measure_front(ledger: Ledger, task: Task, space: Space) -> None:
    """Measure the latency of the unchanged model and of the front, where it is not known yet, and keep it.

    Nothing else may run meanwhile. All latencies are shares of one time of the unchanged model: the median
    of all that were seen here, or what is known of it. A model that fails here stays without a latency.
    Where networks are split, their stages are timed instead (see :func:`.staged_front.measure_stages`).
    """
    if plan_of(space.choices) is not None:
        from .staged_front import measure_stages

        measure_stages(ledger, task, space)
        return
    from ..evaluators.lane import Lane, steadied
    from ..evaluators.latency import Latency

    settings = ledger.settings
    objectives = [Objective(**o) for o in settings["objectives"]]
    front = Front(ledger.trials(space), objectives, limits=settings["limits"])
    lane = Lane(task, space, [Latency()])
    wanted = {t.number: t for t in (front.baseline, *front) if t is not None and "latency_ms" not in t.scores}
    outcomes = [lane.evaluate(number, trial.candidate) for number, trial in sorted(wanted.items())]
    measured = [o for o in outcomes if o.scores is not None]
    if not measured:
        return
    known = front.baseline.scores.get("latency_ms") if front.baseline else None
    reference = known or statistics.median(o.detail["baseline_ms"] for o in measured)
    for outcome in measured:
        steady = steadied(outcome, reference)
        ledger.measure(steady.number, steady.scores or {}, steady.detail)
