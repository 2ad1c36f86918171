"""What can go wrong with stages that run."""

from __future__ import annotations


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
