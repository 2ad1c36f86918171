"""The pool of a sweep: workers, and behind them a latency lane for what must run alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..evaluators.lane import Lane, steadied
from ..evaluators.pool import InProcessPool, Job, Outcome, Pool
from ..results.fidelity import FULL, Fidelity, Proposal
from ..results.points import BUSY
from ..spaces import Space
from .read_settings import SweepSettings

if TYPE_CHECKING:
    from ..evaluators.base import Evaluator
    from ..evaluators.task import Task

log = logging.getLogger(__name__)


def make_pool(
    task: Task | None,
    space: Space,
    scorers: Sequence[Evaluator],
    asked: SweepSettings,
    reference_ms: float | None = None,
    rungs: tuple[Fidelity, ...] = (FULL,),
) -> Pool:
    """Workers for what may run side by side (0: this process), and a lane behind them for what must not.

    Args:
        asked: how many workers, where, and how long a trial may take.
        reference_ms: latency of the unchanged model where an earlier session has measured it.
    """
    tunes = any(rung.epochs for rung in rungs)
    light = task and (task.without_test() if tunes else task.without_train())
    beside = [s for s in scorers if not s.lane]
    alone = [s for s in scorers if s.lane]
    job = Job(light, space, beside, repeats=asked.repeats, rungs=rungs)
    pool: Pool
    workers = asked.workers
    if not workers:
        pool = InProcessPool(job)
    else:
        from ..evaluators.ray_pool import RayPool

        pool = RayPool(job, workers=workers, address=asked.address, trial_timeout=asked.trial_timeout)
    return LanePool(pool, Lane(light, space, alone), reference_ms=reference_ms) if alone else pool


class LanePool(Pool):
    """Scores by ``pool`` first; once it is idle, by ``lane``, one candidate at a time.

    An outcome is complete only with both, and a failure in either fails the candidate; the lane sees only
    candidates that the pool has scored. Latencies are shares of one time of the unchanged model
    (:func:`steadied`): ``reference_ms``, or else what is seen beside the first candidate.
    """

    def __init__(self, pool: Pool, lane: Lane, *, reference_ms: float | None = None) -> None:
        self.pool = pool
        self.lane = lane
        self.reference_ms = reference_ms
        self._in_flight: dict[int, Proposal] = {}
        self._warned = False

    def room(self) -> int:
        return self.pool.room()

    def submit(self, jobs: Sequence[tuple[int, Proposal]]) -> None:
        self._in_flight.update(jobs)
        self.pool.submit(jobs)

    def finished(self, timeout: float | None = None) -> list[Outcome]:
        """All that was submitted: waits, whatever ``timeout``, until nothing else runs on this machine."""
        outcomes: list[Outcome] = []
        while len(outcomes) < len(self._in_flight):
            outcomes += self.pool.finished()
        outcomes.sort(key=lambda o: o.number)
        done = [self._measured(o, self._in_flight[o.number]) for o in outcomes]
        self._in_flight.clear()
        return done

    def close(self) -> None:
        self.pool.close()

    def _measured(self, outcome: Outcome, asked: Proposal) -> Outcome:
        if outcome.scores is None:
            return outcome
        lane = self.lane.evaluate(outcome.number, asked.candidate)
        seconds = outcome.seconds + lane.seconds
        if lane.scores is None:
            return replace(outcome, scores=None, error=lane.error, seconds=seconds)
        self._warn(lane)
        if self.reference_ms is None:
            self.reference_ms = lane.detail.get("baseline_ms")
        if self.reference_ms is not None:
            lane = steadied(lane, self.reference_ms)
        assert lane.scores is not None
        return replace(
            outcome, scores=outcome.scores | lane.scores, seconds=seconds, detail=outcome.detail | lane.detail
        )

    def _warn(self, outcome: Outcome) -> None:
        drift = outcome.detail.get("drift", 0.0)
        if drift > BUSY and not self._warned:
            self._warned = True
            log.warning(
                "this machine is busy: while latency was measured, the unchanged model differed from itself "
                f"by {drift:.0%}. What decides the front is measured again at the end"
            )
