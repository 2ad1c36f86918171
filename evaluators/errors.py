"""Errors of tasks and pools. Torch-free, so that the command line can catch them cheaply."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path(__file__).parent.parent
# Not all of the root: a clone also holds tests, examples and whatever its owner tries out.
_OURS = tuple(
    f'  File "{_ROOT / ours}'
    for ours in (
        *(f"{folder}/" for folder in ("standalone", "devices", "model", "spaces", "results", "evaluators")),
        *(f"{folder}/" for folder in ("search", "explain", "export", "deployment", "report", "engine")),
        "testing.py",
    )
)


class TaskError(ValueError):
    """A task that cannot be searched. The message says what was wrong, what was got and how to mend it.

    ``detail`` is the user's own traceback (ours removed) where their code raised, else empty.
    """

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class PoolError(RuntimeError):
    """Workers that cannot start, cannot be placed, or keep dying before any work.

    ``detail`` is the traceback in the worker (ours removed) where the user's code raised, else empty.
    """

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self._message, self.detail = message, detail

    def __str__(self) -> str:
        return self._message  # torch.fx adds lines to the arguments of what is raised while it runs a model


def their_part(text: str) -> str:
    """A traceback's text without our frames, for the user whose code raised; empty where only ours did.

    Of exceptions that caused each other those that passed through foreign code are left.
    """
    kept = []
    for part in re.split(r"\n(?=Traceback \(most recent call last\):\n)", text):
        lines = part.splitlines()
        starts = [i for i, line in enumerate(lines) if line.startswith('  File "')]
        if not starts:
            continue
        end = next((i for i in range(starts[-1], len(lines)) if not lines[i].startswith(" ")), len(lines))
        frames = ["\n".join(lines[a:b]) for a, b in zip(starts, [*starts[1:], end], strict=True)]
        theirs = [frame for frame in frames if not frame.startswith(_OURS)]
        if theirs:
            message = re.split(r"\n\n(?:The above|During handling)", "\n".join(lines[end:]))[0].rstrip()
            kept.append("\n".join([*lines[: starts[0]], *theirs, message]))
    return "\n\n".join(kept)


def first_line(error: BaseException) -> str:
    """``RuntimeError: mat1 and mat2 shapes cannot be multiplied``: type and first line of the message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
