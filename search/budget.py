"""How long a run goes on."""

from __future__ import annotations

import math
import time
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
