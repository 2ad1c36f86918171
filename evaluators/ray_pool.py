"""Persistent Ray workers: one thread each, holding model and data, fed in batches of measured size."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..results.fidelity import Proposal
from .errors import PoolError, first_line
from .pool import Job, Outcome, Pool, worker_name
from .ray_session import RaySession
from .shipping import Parcel, check_sendable, pack, unpack

Numbered = tuple[int, Proposal]

CALL_SECONDS = 0.15  # of one call: long against its 1 ms of overhead, short enough to share work evenly
MAX_CALL = 512  # candidates
PIPELINE_SECONDS = 2.0  # slower candidates wait in the driver, free for whichever worker is ready first
START_SECONDS = 180.0  # for a worker to import, to be placed, and to load
PLACE_SECONDS = 30.0  # the same, before it is said that the others go on without it
_TICK = 1.0  # seconds between looks at deadlines

log = logging.getLogger(__name__)


class _Worker:
    """The actor. Loading is a call of its own, so that its errors arrive as they are."""

    def load(self, parcel: Parcel) -> str:
        self.job = unpack(parcel)
        if self.job.space.model is not None or self.job.task is not None:
            import torch

            torch.set_num_threads(1)
        return worker_name()

    def evaluate(self, calls: list[tuple[int, tuple[int, ...], str]]) -> list[Outcome]:
        candidate = self.job.space.candidate
        return [self.job.evaluate(number, candidate(indices), rung) for number, indices, rung in calls]


@dataclass(slots=True)
class _Call:
    ref: Any
    jobs: list[Numbered]  # empty for loading


@dataclass(slots=True)
class _Seat:
    """A worker's place: the actor, and its unfinished calls in the order they will run."""

    actor: Any  # Ray's handle of a _Worker
    calls: deque[_Call] = field(default_factory=deque)
    since: float = 0.0  # when we saw the first of them begin
    loaded: bool = False
    alone: bool = False  # it runs one candidate that may kill it


class RayPool(Pool):
    """Evaluates on Ray actors, which receive the job once.

    A worker that dies or exceeds its time is replaced. What a dead worker held is tried again, each
    candidate alone in a worker, so that only one that kills its worker again fails. Where a cluster has lost
    the machine of a worker, the others go on, and it is replaced once there is room again.

    Args:
        job: see :class:`Job`; what it refers to may be defined in a script, a notebook or a test.
        workers: actors, one core and one thread each.
        address: of a running Ray cluster; ``None`` starts a private local one and stops it in the end.
            Modules that the job imports must then be installed there; files beside the script are not sent.
        trial_timeout: seconds that one candidate may take.

    Raises:
        ValueError: ``workers`` or ``trial_timeout`` not positive.
        PoolError: Ray does not start, or the workers cannot load the job (also from :meth:`finished`).
    """

    def __init__(
        self, job: Job, *, workers: int, address: str | None = None, trial_timeout: float | None = None
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if trial_timeout is not None and not trial_timeout > 0:
            raise ValueError(f"trial_timeout must be positive seconds, got {trial_timeout}")
        self.trial_timeout = trial_timeout
        try:
            parcel = pack(job)
        except Exception as error:
            check_sendable(job.task)
            raise PoolError(
                f"the task cannot be sent to workers: {first_line(error)}; models, metrics and evaluators "
                "must not hold open files or generators, or score in this process: workers=0"
            ) from error
        self._session: RaySession | None = RaySession(workers, address=address, data_bytes=parcel.size)
        self._queue: deque[Numbered] = deque()
        self._suspects: deque[Numbered] = deque()  # each to be run alone in a worker
        self._outcomes: list[Outcome] = []
        self._seconds: float | None = None  # of one candidate, a moving average
        self._failed_starts = 0
        self._short = False  # some workers have not been placed for long
        self._seats: list[_Seat] = []
        try:
            import ray

            self._ray = ray
            self._parcel = ray.put(parcel)
            actor = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_Worker)
            self._new_actor = actor.remote
            self._seats.extend(self._new_seat() for _ in range(workers))
        except BaseException:
            self.close()
            raise

    def room(self) -> int:
        """Enough to give every worker its next calls."""
        waiting = len(self._queue) + len(self._suspects)
        running = sum(len(call.jobs) for seat in self._seats for call in seat.calls)
        return max(0, len(self._seats) * self._depth() * self._call_size() - waiting - running)

    def submit(self, jobs: Sequence[Numbered]) -> None:
        """Queue ``(number, proposal)`` pairs and hand out as many as the workers can take."""
        self._queue.extend(jobs)
        self._dispatch()

    def finished(self, timeout: float | None = None) -> list[Outcome]:
        """See :class:`Pool`.

        Raises:
            PoolError: workers cannot load the job, or keep dying before any work.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        while not self._outcomes and self._busy():
            left = end - time.monotonic()
            self._collect(max(0.0, min(left, _TICK, self._next_deadline())))
            self._enforce_deadlines()
            self._dispatch()
            if left <= 0:
                break
        taken, self._outcomes = self._outcomes, []
        return taken

    def close(self) -> None:
        """Kill the workers, and Ray if it was started here."""
        session, self._session = self._session, None
        if session is None:
            return
        try:
            for seat in self._seats:
                self._ray.kill(seat.actor, no_restart=True)
        finally:
            self._seats = []
            self._queue.clear()
            self._suspects.clear()
            session.close()

    def _new_seat(self) -> _Seat:
        actor: Any = self._new_actor()
        seat = _Seat(actor, since=time.monotonic())
        seat.calls.append(_Call(actor.load.remote(self._parcel), []))
        return seat

    def _busy(self) -> bool:
        return bool(self._queue or self._suspects) or any(call.jobs for s in self._seats for call in s.calls)

    # -- handing out

    def _call_size(self) -> int:
        if self._seconds is None:
            return 1
        budget = CALL_SECONDS if self.trial_timeout is None else min(CALL_SECONDS, self.trial_timeout / 4)
        return max(1, min(MAX_CALL, int(budget / max(self._seconds, 1e-6))))

    def _depth(self) -> int:
        """Calls in flight per worker; two hide the way to the driver and back."""
        return 2 if self._seconds is None or self._seconds < PIPELINE_SECONDS else 1

    def _dispatch(self) -> None:
        while self._suspects:
            seat = next((s for s in self._seats if s.loaded and not s.calls), None)
            if seat is None:
                break
            seat.alone = True
            self._send(seat, [self._suspects.popleft()])
        depth, size = self._depth(), self._call_size()
        while self._queue:
            # Not for workers that are still to be placed: the cluster may have no room for them for long.
            free = {id(s): depth - len(s.calls) for s in self._seats if s.loaded and not s.alone}
            seat = max(
                (s for s in self._seats if free.get(id(s), 0) > 0), key=lambda s: free[id(s)], default=None
            )
            if seat is None:
                break
            share = math.ceil(len(self._queue) / sum(max(0, n) for n in free.values()))
            self._send(seat, [self._queue.popleft() for _ in range(min(size, share))])

    def _send(self, seat: _Seat, jobs: list[Numbered]) -> None:
        if not seat.calls:
            seat.since = time.monotonic()
        calls = [(number, one.candidate.indices, one.fidelity) for number, one in jobs]
        seat.calls.append(_Call(seat.actor.evaluate.remote(calls), jobs))

    # -- taking in

    def _collect(self, wait: float) -> None:
        """Wait for any worker's running call, then take all that has finished."""
        heads = {seat.calls[0].ref: seat for seat in self._seats if seat.calls}
        if not heads:
            return
        ready, _ = self._ray.wait(list(heads), num_returns=1, timeout=wait)
        while ready:
            for ref in ready:
                self._take(heads[ref])
            heads = {seat.calls[0].ref: seat for seat in self._seats if seat.calls}
            ready, _ = self._ray.wait(list(heads), num_returns=len(heads), timeout=0) if heads else ([], [])

    def _take(self, seat: _Seat) -> None:
        call = seat.calls[0]
        try:
            result = self._ray.get(call.ref)
        except self._ray.exceptions.RayError as error:
            self._lost(seat, error)
            return
        seat.calls.popleft()
        seat.since = time.monotonic()
        if not call.jobs:
            seat.loaded, self._failed_starts = True, 0
            if self._short:
                log.info("%d of %d workers score again", self._alive(), len(self._seats))
            self._short = self._short and self._alive() < len(self._seats)
            return
        seat.alone = False
        self._outcomes.extend(result)
        mean = sum(outcome.seconds for outcome in result) / len(result)
        self._seconds = mean if self._seconds is None else (self._seconds + mean) / 2

    def _lost(self, seat: _Seat, error: Exception) -> None:
        """A call came back without a result: the worker died, or its result could not be sent."""
        jobs = [job for call in seat.calls for job in call.jobs]
        if not seat.loaded:
            self._failed_start(error)
            (self._suspects if seat.alone else self._queue).extendleft(reversed(jobs))
        elif seat.alone:
            self._outcomes.append(Outcome(jobs[0][0], error=self._reason(error)))
        else:
            # Even a single candidate may be innocent: the worker may have died before it began, or of
            # what ran next while its result was on the way.
            self._suspects.extend(jobs)
        self._replace(seat)

    def _failed_start(self, error: Exception) -> None:
        if isinstance(error, self._ray.exceptions.RayTaskError):
            if isinstance(error.cause, PoolError):  # what unpack says
                raise PoolError(str(error.cause), detail=error.cause.detail) from None
            raise PoolError(f"workers cannot load the task: {first_line(error.cause or error)}") from error
        self._failed_starts += 1
        if self._failed_starts > len(self._seats):
            raise PoolError(f"workers die while they start: {first_line(error)}") from error

    def _reason(self, error: Exception) -> str:
        """Text whose last line says it all."""
        if isinstance(error, self._ray.exceptions.RayTaskError):
            return f"{error}\nthe outcome could not be sent: {first_line(error.cause or error)}"
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return "\n".join([*lines, f"worker died ({type(error).__name__})"])

    def _replace(self, seat: _Seat) -> None:
        self._ray.kill(seat.actor, no_restart=True)
        self._seats[self._seats.index(seat)] = self._new_seat()

    # -- deadlines

    def _alive(self) -> int:
        return sum(seat.loaded for seat in self._seats)

    def _still_waiting(self, seat: _Seat) -> None:
        """A worker has not started in time: the others go on without it, if there are any."""
        if not self._alive():
            raise PoolError(
                f"no worker has started within {START_SECONDS:.0f} s; is the cluster busy, or its machines "
                "gone? What was scored is kept"
            )
        seat.since = time.monotonic()
        if not self._short:
            self._short = True
            log.warning(
                "%d of %d workers score: the cluster has no room for the others; they join when it has",
                *(self._alive(), len(self._seats)),
            )

    def _limit(self, seat: _Seat) -> float:
        if not seat.calls:
            return math.inf
        if not seat.calls[0].jobs:
            return PLACE_SECONDS if self._alive() else START_SECONDS
        return math.inf if self.trial_timeout is None else self.trial_timeout

    def _next_deadline(self) -> float:
        now = time.monotonic()
        return min(seat.since + self._limit(seat) - now for seat in self._seats)

    def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        for seat in list(self._seats):
            if now - seat.since < self._limit(seat):
                continue
            if not seat.loaded:
                self._still_waiting(seat)
                continue
            running = seat.calls[0].jobs
            if len(running) == 1:
                text = f"TimeoutError: took longer than {self.trial_timeout:g} s; stopped with its worker"
                self._outcomes.append(Outcome(running[0][0], error=text, seconds=now - seat.since))
            else:
                self._suspects.extend(running)
            later = [job for call in list(seat.calls)[1:] for job in call.jobs]
            self._queue.extendleft(reversed(later))
            self._replace(seat)
