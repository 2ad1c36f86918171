"""Follows a sweep and hands its trials to mirrors, without making it wait."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from ...evaluators.errors import first_line
from ...results.objective import Limit, Objective
from ...results.settings import RunSettings
from ...results.tracker import FrontTracker
from ...results.trial import Trial
from ..budget import Budget
from ..progress import Progress
from .base import Mirror

PATIENCE = 60.0  # seconds that the end of a sweep waits for what is not written yet
STALL = 20.0  # the same, where one call has taken so long: a server that does not answer

log = logging.getLogger(__name__)


class Mirroring(Progress):
    """Another progress, and mirrors beside it, if any.

    Mirrors write in a thread of their own. One that fails is dropped with a warning: the ledger has
    everything, and the sweep goes on.

    Args:
        inner: what shows the sweep.
        folder, settings: of the run (see :meth:`Mirror.open`).
    """

    def __init__(
        self, inner: Progress, mirrors: Sequence[Mirror], *, folder: Path, settings: RunSettings
    ) -> None:
        self._inner = inner
        self._mirrors, self._folder, self._settings = list(mirrors), folder, settings
        self._queue: SimpleQueue[Trial | threading.Event | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._tracker: FrontTracker | None = None
        self._over = False  # nobody waits any longer
        self._since = float("inf")  # when the call under way began
        self.completed = False  # the run has come to its end: set by the sweep

    def started(self, budget: Budget, objectives: Sequence[Objective], limits: Sequence[Limit]) -> None:
        self._inner.started(budget, objectives, limits)
        if not self._mirrors:
            return
        self._tracker = FrontTracker(objectives, limits)
        self._thread = threading.Thread(target=self._write_all, name="mirrors", daemon=True)
        self._thread.start()

    def told(self, trial: Trial, *, replayed: bool) -> None:
        self._inner.told(trial, replayed=replayed)
        if self._thread is not None:
            self._queue.put(trial)

    def says(self, text: str) -> None:
        self._inner.says(text)

    def settle(self) -> None:
        """Wait for what is not written yet: what is measured in this process must not be disturbed."""
        if self._thread is None:
            return
        reached = threading.Event()
        self._queue.put(reached)
        self._await(reached.is_set)

    def finished(self) -> None:
        self._inner.finished()
        if self._thread is None or self._over:
            return
        self._queue.put(None)
        thread = self._thread
        self._await(lambda: not thread.is_alive())

    def _await(self, reached: Callable[[], bool]) -> None:
        """Wait, but for no longer than mirrors make progress; after that never again."""
        start = time.monotonic()
        while not self._over and not reached():
            now = time.monotonic()
            if now - start > PATIENCE or now - self._since > STALL:
                self._over = True
                log.warning("the mirrors are behind and were left so; the ledger is complete")
            time.sleep(0.01)

    def _write_all(self) -> None:
        there = {m: held for m in self._mirrors if (held := self._try(m, "open")) is not None}
        while not self._over:
            try:
                item = self._queue.get(timeout=1.0)
            except Empty:
                continue
            if item is None:
                break
            if isinstance(item, threading.Event):
                item.set()
                continue
            assert self._tracker is not None
            self._tracker.add(trial := item)
            front, volume = self._tracker.size, self._tracker.hypervolume()
            for m in list(there):
                if trial.number not in there[m] and self._try(m, "write", trial, front, volume) is None:
                    del there[m]
        for m in there:
            self._try(m, "close")

    def _try(self, m: Mirror, what: str, *details: Any) -> Any:
        """What the mirror returned (True for nothing), or None where it failed."""
        self._since = time.monotonic()
        try:
            if what == "open":
                return m.open(self._folder, self._settings)
            if what == "write":
                trial, front, volume = details
                m.write(trial, front=front, volume=volume)
            else:
                m.close(finished=self.completed)
        except Exception as error:  # whatever a foreign storage raises
            name = type(m).__name__
            said = first_line(error)
            log.warning("the mirror %s cannot %s (%s); the sweep goes on without it", name, what, said)
            return None
        finally:
            self._since = float("inf")
        return True
