"""What can be wrong with a task or a pool. Torch-free, so that the command line can catch them cheaply."""

from __future__ import annotations


class TaskError(ValueError):
    """A task that cannot be searched. The message says what was wrong, what was got and how to mend it.

    ``detail`` is the user's own traceback (ours removed) where their code raised, else empty.
    """

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class PoolError(RuntimeError):
    """Workers that cannot start, cannot be placed, or keep dying before any work."""


def first_line(error: BaseException) -> str:
    """``RuntimeError: mat1 and mat2 shapes cannot be multiplied``: type and first line of the message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
