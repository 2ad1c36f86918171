"""Progress of a sweep: what the driver tells, and how it is shown on a terminal and in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from ..results.front import FrontTracker
from ..results.objective import Limit, Objective
from ..results.table import metric_text
from ..results.trial import Trial
from .budget import Budget

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

REFRESH = 0.1  # seconds between two updates of the screen: the engine does not wait for a terminal
REDRAW = 0.5  # seconds between two of the front so far
ROWS = 8  # of the front so far
SIGN_OF_LIFE = 30.0  # seconds between two lines where lines stay (nohup, SLURM, CI)


class Progress(Protocol):
    """Follows a sweep. Called by the driver, between two trials: be quick."""

    def started(self, budget: Budget, objectives: Sequence[Objective], limits: Sequence[Limit]) -> None:
        """The sweep begins."""

    def told(self, trial: Trial, *, replayed: bool) -> None:
        """One more trial, in number order; ``replayed`` when an earlier session scored it."""

    def says(self, text: str) -> None:
        """What is being done now, in a few words: ``"measuring latency"``."""

    def finished(self) -> None:
        """Nothing more comes. Also called after an error or Ctrl-C, and when nothing was started."""


class Silent:
    """Shows nothing."""

    def started(self, budget: Budget, objectives: Sequence[Objective], limits: Sequence[Limit]) -> None: ...

    def told(self, trial: Trial, *, replayed: bool) -> None: ...

    def says(self, text: str) -> None: ...

    def finished(self) -> None: ...


class Lines:
    """Plain lines for a stream that is not a terminal: every phase at once, then a sign of life.

    The phase is the text before its first colon. What is said again about the same phase is kept, and the
    latest of it is written ``seconds`` after the last line; a thread does that, so that one long step does
    not look like a hang. Lines begin with the time of day.

    Args:
        write: takes one line.
        seconds: between two lines of one phase, more than 0.
    """

    def __init__(self, write: Callable[[str], None], *, seconds: float = SIGN_OF_LIFE) -> None:
        self._write, self._seconds = write, seconds
        self._text = self._phase = ""
        self._written = time.monotonic()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="progress lines", daemon=True)
        self._thread.start()

    def say(self, text: str, *, now: bool = False) -> None:
        """The latest news.

        Args:
            now: write it at once, whatever its phase.
        """
        with self._lock:
            phase = text.partition(":")[0]
            new, self._text, self._phase = phase != self._phase, text, phase
            if new or now:
                self._line()

    def close(self) -> None:
        """Write nothing more. May be called twice."""
        self._over.set()
        self._thread.join()

    def _live(self) -> None:
        while not self._over.wait(min(1.0, self._seconds)):
            with self._lock:
                if self._text and time.monotonic() - self._written >= self._seconds:
                    self._line()

    def _line(self) -> None:
        self._written = time.monotonic()
        self._write(f"{time.strftime('%H:%M:%S')} {self._text}")


class RichProgress:
    """A line on standard error: trials, rate, time left, front size, hypervolume, best, failures.

    On a terminal one line that changes, with the front so far, thinned to a few rows, below it. Elsewhere
    plain :class:`Lines`.

    Args:
        console: where to draw; standard error by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._console = console = console or Console(stderr=True)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[facts]}"),
            console=console,
        )
        self._live = Live(self._bar, console=console, refresh_per_second=8) if console.is_terminal else None
        self._lines: Lines | None = None
        self._task = self._bar.add_task("starting", total=None, facts="")
        self._tracker: FrontTracker | None = None
        self._budget = Budget()
        self._done = self._failed = self._replayed = 0
        self._over = False
        self._shown = self._drawn = 0.0
        self._first: float | None = None  # when the first new trial came: starting workers is not in the rate

    def started(self, budget: Budget, objectives: Sequence[Objective], limits: Sequence[Limit]) -> None:
        self._tracker = FrontTracker(objectives, limits)
        self._budget = budget
        if self._live is not None:
            self._live.start()
        else:
            self._lines = Lines(lambda line: self._console.print(line, soft_wrap=True, markup=False))
            self._lines.say("starting to score" + (f": {budget.trials} trials" if budget.trials else ""))

    def told(self, trial: Trial, *, replayed: bool) -> None:
        assert self._tracker is not None
        self._tracker.add(trial)
        self._done += 1
        self._failed += trial.failed
        self._replayed += replayed
        now = time.perf_counter()
        if self._first is None and not replayed:
            self._first = now
        if now - self._shown >= REFRESH:
            self._shown = now
            self._show("searching")
        if self._live is not None and now - self._drawn >= REDRAW:
            self._drawn = now
            self._live.update(self._view(self._tracker), refresh=True)

    def says(self, text: str) -> None:
        self._show(text)

    def finished(self) -> None:
        self._over = True
        if self._done:
            self._show("searched")
        if self._live is not None:
            self._live.update(self._bar)  # the front is printed by whoever has it whole
            self._live.stop()
        if self._lines is not None:
            self._lines.close()

    def _view(self, tracker: FrontTracker) -> RenderableType:
        from rich.console import Group

        from ..results.front import Front
        from ..results.table import render_front

        held = tracker.trials
        if len(held) > ROWS:
            held = [held[round(i * (len(held) - 1) / (ROWS - 1))] for i in range(ROWS)]
        front = Front(held, tracker.objectives)
        return Group(self._bar, render_front(front, tracker.baseline)) if len(front) else self._bar

    def _show(self, what: str) -> None:
        if self._lines is not None:
            self._lines.say(f"{what}: {self.facts()}")
            return
        budget = self._budget
        if budget.trials is not None:
            total, done = float(budget.trials), float(self._done)
        else:
            total, done = 60.0 * (budget.minutes or 0.0), budget.seconds
        total = done if self._over else max(total, done)
        self._bar.update(self._task, description=what, total=total, completed=done, facts=self.facts())

    def _rate(self) -> float:
        """New trials per second; 0 until there are two."""
        new = self._done - self._replayed
        return (new - 1) / (time.perf_counter() - self._first) if self._first is not None and new > 1 else 0.0

    def facts(self) -> str:
        """The text beside the bar; once all is over, without what was planned and how long it would take."""
        budget = self._budget
        rate = self._rate()
        of = f"/{budget.trials}" if budget.trials is not None and not self._over else ""
        parts = [f"{self._done}{of} trials"]
        if rate:
            parts.append(f"{rate:.3g}/s" if rate >= 1 else f"{1 / rate:.3g} s each")
        left = None if self._over else budget.left(self._done, rate)
        if left:
            parts.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
        if self._tracker is not None:
            parts.append(f"front {self._tracker.size}, hypervolume {self._tracker.hypervolume():.4f}")
            if self._lines is not None and (best := self._tracker.trials[:1]):
                lead = self._tracker.objectives[0]
                parts.append(
                    f"best {lead.name} {metric_text(lead.name, best[0].scores[lead.name], lead.unit)}"
                )
        if self._failed:
            parts.append(f"{self._failed} failed")
        return ", ".join(parts)
