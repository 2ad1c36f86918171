"""Mirrors of a run by name, and the thread that hands them its trials without making it wait."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, ClassVar

from ..evaluators.errors import first_line
from ..results.front import FrontTracker
from ..results.objective import Limit, Objective
from ..results.settings import RunSettings
from ..results.trial import Trial
from .budget import Budget
from .progress import Progress


class Mirror(ABC):
    """Copies trials to another tool's storage, one by one, in number order.

    Args:
        where: in the tool's own words (a folder, a URI); "" for a place that the tool or the run suggests.

    Attributes:
        needs: module that must be installed.
    """

    needs: ClassVar[str] = ""

    def __init__(self, where: str = "") -> None:
        self.where = where

    @abstractmethod
    def open(self, folder: Path, settings: RunSettings) -> set[int]:
        """Begin, or go on with a run that was resumed.

        Args:
            folder: of the run.
            settings: of the run.

        Returns:
            Numbers of the trials that are there already.
        """

    @abstractmethod
    def write(self, trial: Trial, *, front: int, volume: float) -> None:
        """Copy one trial.

        Args:
            front: trials on the front, this one counted.
            volume: hypervolume of that front.
        """

    @abstractmethod
    def close(self, *, finished: bool) -> None:
        """No more trials in this session; ``finished``: the run has come to its end."""


# -- Mirrors by name, as the command line gives them ----------------------------------------------------

MIRRORS = {  # name: class in `trackers`, which is imported where one is asked for
    "mlflow": "MLflow",
    "optuna": "Optuna",
    "tensorboard": "TensorBoard",
}


def mirror(text: str) -> Mirror:
    """The mirror that ``NAME`` or ``NAME:WHERE`` names: ``"optuna:sqlite:///studies.db"``.

    Raises:
        ValueError: an unknown name, or its package is not installed.
    """
    name, _, where = text.partition(":")
    if name not in MIRRORS:
        raise ValueError(f"unknown mirror {name!r}; known are {', '.join(MIRRORS)}, each also as NAME:WHERE")
    made: type[Mirror] = getattr(import_module(".trackers", __package__), MIRRORS[name])
    if find_spec(made.needs) is None:
        raise ValueError(
            f"the mirror {name!r} needs {made.needs}, which is not installed: pip install 'netcarve[{name}]'"
        )
    return made(where)


# -- Follows a sweep and hands its trials to mirrors, without making it wait ----------------------------

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
