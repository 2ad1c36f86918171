"""One stream of inputs through stages: numbered, bounded, answered in order, none lost and none twice."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from queue import Empty
from typing import Any

from ...standalone.wire import DATA, Frame
from .transport import Answer, InputError, Lost, StageError, Transport

DEATHS = 2  # of stages, with the same input unanswered for longest: more and the input is to blame
_TICK = 0.5  # seconds between looks while there is nothing to wait for


class Stream:
    """Feeds inputs from a thread of its own and gives their answers in order.

    Args:
        frame: makes the frame of an input, or raises :class:`InputError`.
        output: makes an answer of a frame.
        inflight: inputs that may be taken and not yet given back as answers; bounds memory everywhere.
        timeout: seconds without an answer, while one is due, after which a stage counts as hung.
        restart: a stage that dies or hangs is started again and what is unanswered is sent again.
    """

    def __init__(
        self,
        transport: Transport,
        inputs: Iterable[Any],
        *,
        frame: Callable[[int, Any], Frame],
        output: Callable[[Frame], Any],
        inflight: int,
        timeout: float,
        restart: bool,
    ) -> None:
        self.latencies: list[float] = []  # seconds, of answered inputs
        self.samples = self.failed = self.restarts = 0
        self.first_sent = self.last_answered = 0.0
        self._transport, self._inputs = transport, inputs
        self._frame, self._output = frame, output
        self._inflight, self._timeout, self._restart = inflight, timeout, restart
        self._changed = threading.Condition()  # guards all that follows
        self._unanswered: dict[int, tuple[Frame, float]] = {}  # by number, with the time of sending
        self._answers: dict[int, Any] = {}  # by number, not yet given; also errors
        self._given = 0
        self._total: int | None = None  # inputs, when there are no more
        self._broken: BaseException | None = None  # what the inputs' own iterator raised
        self._stopped = False
        self._deaths: dict[int | None, int] = {}  # by oldest unanswered input

    def answers(self) -> Iterator[Any]:
        """Outputs in the order of the inputs, :class:`InputError` in the place of those that have none.

        Raises:
            StageError: a stage died, hangs, or cannot be started again.
        """
        self._transport.open()
        threading.Thread(target=self._feed, daemon=True).start()
        try:
            while True:
                while (answer := self._next()) is not None:
                    yield answer
                if self._given == self._total:
                    break
                self._wait()
            if self._broken is not None:
                raise self._broken
        finally:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()

    def _next(self) -> Any:
        with self._changed:
            answer = self._answers.pop(self._given, None)
            if answer is not None:
                self._given += 1
                self._changed.notify_all()
        return self._output(answer) if isinstance(answer, Frame) else answer

    def _feed(self) -> None:
        fed = 0
        try:
            for one in self._inputs:
                try:
                    made: Frame | InputError = self._frame(fed, one)
                except InputError as error:
                    made = error
                if not self._hand_over(fed, made):
                    return
                fed += 1
        except BaseException as error:
            self._broken = error
        with self._changed:
            self._total = fed
            self._transport.events.put(None)

    def _hand_over(self, number: int, made: Frame | InputError) -> bool:
        """Send it when there is room; False where nobody wants it any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or number - self._given < self._inflight)
            if self._stopped:
                return False
            if isinstance(made, InputError):
                self.failed += 1
                self._answers[number] = made
                self._transport.events.put(None)
            else:
                now = time.perf_counter()
                self.first_sent = self.first_sent or now
                self._unanswered[number] = made, now
                self._transport.send(made)
            return True

    def _wait(self) -> None:
        """Take in one event."""
        since = time.perf_counter()
        while True:
            with self._changed:
                oldest = min(self._unanswered, default=None)
                if oldest is None and self._total is not None:
                    return
                sent = self._unanswered[oldest][1] if oldest is not None else None
                events = self._transport.events
            due = max(since, sent, self.last_answered) + self._timeout if sent is not None else None
            left = _TICK if due is None else due - time.perf_counter()
            try:
                event = events.get(timeout=max(0.001, min(left, _TICK)))
            except Empty:
                if due is not None and time.perf_counter() >= due:
                    self._recover(self._transport.hung(self._timeout))
                    return
                continue
            if isinstance(event, Answer):
                self._take(event)
            elif isinstance(event, Lost):
                self._recover(self._transport.blame(event))
            return

    def _take(self, answer: Answer) -> None:
        frame = answer.frame
        with self._changed:
            known = self._unanswered.pop(frame.number, None)
            if known is None:
                return  # answered before
            self.last_answered = answer.at
            if frame.kind == DATA:
                self.latencies.append(answer.at - known[1])
                self.samples += frame.samples
                self._answers[frame.number] = frame
            else:
                said = frame.json()
                stage = str(said.get("stage"))
                self.failed += 1
                self._answers[frame.number] = InputError(
                    f"input {frame.number}: stage {stage} raised {said.get('error')}", stage, frame.number
                )

    def _recover(self, lost: Lost) -> None:
        name = self._transport.names[lost.stage]
        with self._changed:
            oldest = min(self._unanswered, default=None)
            self._deaths[oldest] = self._deaths.get(oldest, 0) + 1
            if not self._restart:
                raise StageError(
                    f"stage {name} {lost.why}; {len(self._unanswered)} inputs were unanswered, the first is "
                    f"number {oldest}; restart=True (--restart) starts a lost stage again",
                    name,
                )
            if self._deaths[oldest] > DEATHS:
                raise StageError(
                    f"stage {name} {lost.why}; it is not started again, since stages were lost "
                    f"{self._deaths[oldest]} times before input {oldest} was answered",
                    name,
                )
            self.restarts += 1
            self._transport.restart(lost.stage)
            self._transport.open()
            for number in sorted(self._unanswered):
                self._transport.send(self._unanswered[number][0])


# -- Record of a deployment: measurements taken while inputs went through its stages --------------------


@dataclass(frozen=True)
class StageRecord:
    """One stage, since the session began (the stream, or the last restart in it)."""

    name: str
    inputs: int  # answered
    busy_ms: float  # of computing, per input
    slept_ms: float  # per input, to be as slow as the simulated device


@dataclass(frozen=True)
class Boundary:
    """What was sent from one stage to the next; the first boundary is from the driver, the last one to it."""

    sender: str
    receiver: str
    payload_bytes: int  # of tensors
    wire_bytes: int | None  # with the headers of frames, without those of TCP; None: not known (Ray)
    crossings: int  # links on the route; 0: both ends are on one device


@dataclass(frozen=True)
class Record:
    """One stream of inputs."""

    inputs: int  # answered
    samples: int  # in them
    failed: int  # refused, or a stage raised
    seconds: float  # from the first input sent to the last answer
    latency_ms: float  # from sending an input to its answer, waiting in queues included; median
    latency_q25_ms: float
    latency_q75_ms: float
    inflight: int  # inputs between driver and driver at most: with 1 the latency is that of an idle pipeline
    restarts: int
    stages: tuple[StageRecord, ...]
    boundaries: tuple[Boundary, ...]

    @property
    def throughput_per_s(self) -> float:
        """Samples a second, filling and emptying of the pipeline included."""
        return self.samples / self.seconds if self.seconds else float("nan")

    @property
    def traffic_kb(self) -> float:
        """Tensor bytes per sample over all links, in 1000 bytes: the measured ``traffic_kb``."""
        sent = sum(b.payload_bytes * b.crossings for b in self.boundaries)
        return sent / 1000 / self.samples if self.samples else float("nan")

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "throughput_per_s": self.throughput_per_s,
            "traffic_kb": self.traffic_kb,
        }


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """25 %, 50 %, 75 %; NaN of nothing."""
    if len(values) < 2:
        return (values[0],) * 3 if values else (float("nan"),) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
