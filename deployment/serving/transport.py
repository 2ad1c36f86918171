"""Transport of frames through stages: the seam between a stream of inputs and TCP or Ray, and its errors."""

from __future__ import annotations

import queue
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...standalone.wire import Frame


class ServeError(RuntimeError):
    """Stages cannot be started, or something is wrong with what they were asked.

    Attributes:
        stage: name of the stage that it is about, if of one.
    """

    def __init__(self, message: str, stage: str | None = None) -> None:
        super().__init__(message)
        self.stage = stage


class InputError(ServeError):
    """One input has no answer: it was refused before it was sent, or a stage raised. Others are not touched.

    Attributes:
        number: of the input, from 0.
    """

    def __init__(self, message: str, stage: str | None, number: int) -> None:
        super().__init__(message, stage)
        self.number = number


class StageError(ServeError):
    """A stage died, hangs or cannot be reached; all were stopped."""


# -- What carries frames through stages: the seam between a stream of inputs and TCP or Ray -------------


@dataclass(frozen=True)
class Answer:
    frame: Frame  # data, or an error
    at: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class Lost:
    stage: int  # the one that was seen to fail; another may be to blame
    why: str


class Transport(ABC):
    """Stages that are running. A session is one stream through them.

    Attributes:
        names: of the stages.
        events: :class:`Answer` and :class:`Lost` of the present session, in the order of their arrival.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()

    @abstractmethod
    def open(self) -> None:
        """Begin a session with empty stages; what is left of another one is dropped.

        Raises:
            StageError: a stage does not answer.
        """

    @abstractmethod
    def send(self, frame: Frame) -> None:
        """Hand one frame to the first stage. Does not wait."""

    @abstractmethod
    def end(self) -> None:
        """End the session. May be called twice."""

    @abstractmethod
    def blame(self, lost: Lost) -> Lost:
        """The stage that died and how, told of one that was seen to fail."""

    @abstractmethod
    def hung(self, seconds: float) -> Lost:
        """The stage to blame when nothing was answered for so long."""

    @abstractmethod
    def restart(self, stage: int) -> None:
        """A new one in its place; ends the session.

        Raises:
            StageError: it cannot be started.
        """

    @abstractmethod
    def status(self) -> list[dict[str, Any] | None]:
        """Of each stage in this session ``inputs``, ``busy_s``, ``slept_s``, ``payload``, ``bytes``;
        ``None`` for one that does not answer."""

    @abstractmethod
    def sent(self) -> tuple[int, int | None]:
        """Payload and bytes that were sent to the first stage in this session."""

    @abstractmethod
    def close(self) -> None:
        """Stop the stages. May be called twice."""
