"""The terminal of the command line: where results go, and what is being done at the moment."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

SECONDS = 2.0  # between two words on a long proof
WIDE = 160  # columns where nobody says how wide: a file, a pipe


def printer() -> Console:
    """Where tables go: stdout."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDE)


def program() -> str:
    """What to type for this program: its path where the shell would not find it by name."""
    if shutil.which("netcarve"):
        return "netcarve"
    started = Path(sys.argv[0])
    return os.path.relpath(started) if started.name == "netcarve" else "python -m netcarve"


@contextmanager
def busy(*, spinner: bool = True) -> Iterator[Callable[[str], None]]:
    """Work is going on: what is said, and what netcarve logs meanwhile, is shown on stderr.

    On a terminal it is one line that changes; elsewhere one line each. Whatever the user's own code prints
    goes to stderr too, so that stdout holds results alone.

    Args:
        spinner: draw that line; not while something else draws one.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    alive = spinner and console.is_terminal
    with console.status("") if alive else nullcontext() as status:

        def say(text: str) -> None:
            if status is not None:
                status.update(text)
            elif spinner:
                console.print(text, soft_wrap=True, markup=False)

        handler = _Handler(say, lambda text: console.print(text, soft_wrap=True, markup=False))
        logger = logging.getLogger("netcarve")
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            with redirect_stdout(sys.stderr):
                yield say
        finally:
            logger.setLevel(level)
            logger.removeHandler(handler)


def proving(say: Callable[[str], None]) -> Callable[[int, int], None]:
    """Tells of a proof that takes longer than a moment, now and then."""
    told = time.perf_counter()

    def progress(done: int, total: int) -> None:
        nonlocal told
        if time.perf_counter() - told >= SECONDS:
            told = time.perf_counter()
            say(f"proving by execution what may be changed: {done} of {total}")

    return progress


class _Handler(logging.Handler):
    """News replace each other on the line; warnings stay."""

    def __init__(self, say: Callable[[str], None], stay: Callable[[str], None]) -> None:
        super().__init__()
        self.say, self.stay = say, stay

    def emit(self, record: logging.LogRecord) -> None:
        (self.stay if record.levelno >= logging.WARNING else self.say)(record.getMessage())
