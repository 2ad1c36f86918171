"""Budget and clock of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field


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
