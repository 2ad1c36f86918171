"""Budget and clock of a run, and the watch over its folder."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from ..results.database import is_at
from ..results.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Budget:
    """How long to go on asking: so many trials, so many minutes, whichever ends first.

    The clock starts when it is made. Earlier sessions of a resumed run count.
    """

    trials: int | None = None  # in all, the unchanged model included
    minutes: float | None = None
    spent: float = 0.0  # seconds, in earlier sessions
    start: float = field(default_factory=time.perf_counter)  # of this session

    @property
    def seconds(self) -> float:
        """Spent on the run so far, in all sessions."""
        return self.spent + time.perf_counter() - self.start

    def allows(self, proposed: int) -> float:
        """How many trials there may be, where ``proposed`` are in the ledger already: never fewer."""
        if self.minutes is not None and self.seconds >= 60.0 * self.minutes:
            return proposed
        return math.inf if self.trials is None else max(self.trials, proposed)

    def left(self, done: int, rate: float) -> float | None:
        """Seconds to the end with ``done`` trials at ``rate`` per second; None when it cannot be said."""
        ends = []
        if self.minutes is not None:
            ends.append(max(0.0, 60.0 * self.minutes - self.seconds))
        if self.trials is not None and rate > 0:
            ends.append(max(0, self.trials - done) / rate)
        return min(ends, default=None)


# -- How many outcomes a run had at which second of its own time ----------------------------------------

POINTS = 400  # kept at most; then every other one goes


class Clock:
    """Points ``[outcomes, seconds]``, both rising.

    Args:
        points: of the sessions before.
    """

    def __init__(self, points: Sequence[Sequence[float]] = ()) -> None:
        self.points = [[int(count), float(seconds)] for count, seconds in points]
        self._every = 1

    def add(self, count: int, seconds: float) -> None:
        """So many outcomes are known after so many seconds; less than the last point is left out."""
        if self.points and count - self.points[-1][0] < self._every:
            return
        self.points.append([count, round(max(seconds, self.points[-1][1] if self.points else 0.0), 3)])
        if len(self.points) > POINTS:
            del self.points[1:-1:2]
            self._every *= 2


# -- Watch over the folder of a run: its loss is noticed while a long trial goes on, not at its end -----

EVERY = 1.0  # seconds between two looks


@contextmanager
def watched(ledger: Ledger, *, every: float = EVERY) -> Iterator[None]:
    """Stop what goes on in the ``with`` block, as Ctrl-C does, once the ledger's file is not at its path.

    Two looks in a row have to miss it, ``every`` seconds apart. Only Python's main thread can be stopped: in
    others the next write notices. A Ctrl-C that is ignored (a shell's ``&`` in a script) still is.

    Raises:
        LedgerError: the folder was removed, moved or replaced; all that was scored is saved beside it.
    """
    path, file = ledger.path, ledger.path.stat()
    over, lost, main = threading.Event(), threading.Event(), threading.main_thread()

    def ignored(number: int, frame: FrameType | None) -> None:
        if lost.is_set():
            signal.default_int_handler(number, frame)

    def look() -> None:
        missed = 0
        while missed < 2 and not over.wait(every):
            missed = 0 if is_at(path, file) else missed + 1
        # A write that has noticed by itself saves everything just now.
        if not over.is_set() and not ledger.rescuing and callable(signal.getsignal(signal.SIGINT)):
            lost.set()
            # A signal of its own, since `_thread.interrupt_main` waits until a sleeping call returns.
            signal.pthread_kill(main.ident or 0, signal.SIGINT)

    kept = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is main:
        if kept is signal.SIG_IGN:
            signal.signal(signal.SIGINT, ignored)
        threading.Thread(target=look, name="watch over the run", daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        with ledger.transaction():  # saves everything and says so, if the folder is gone
            pass
        raise
    finally:
        over.set()
        if signal.getsignal(signal.SIGINT) is ignored:
            signal.signal(signal.SIGINT, kept)
