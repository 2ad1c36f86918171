"""The terminal of the command line: where results go, and what is being done at the moment."""

from __future__ import annotations

import io
import logging
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

SECONDS = 2.0  # between two words on a long proof
CTRL_C = 130  # exit code of what the user stopped, as shells have it
PRINTS = 20  # lines of the user's code that are shown
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


def tell(text: str, *, err: bool = False) -> None:
    """Sentences on stdout or stderr; a terminal gets them broken between words, never inside one.

    Whatever a terminal would obey in them (names in somebody else's run) is replaced.
    """
    from ..results.table import printable

    stream = sys.stderr if err else sys.stdout
    print(wrapped(printable(text), stream), file=stream)


def wrapped(text: str, stream: TextIO) -> str:
    """The text with line breaks between words, where the stream is a terminal."""
    if not stream.isatty():
        return text
    columns = shutil.get_terminal_size().columns
    lines = (
        textwrap.wrap(x, columns, break_long_words=False, break_on_hyphens=False) for x in text.split("\n")
    )
    return "\n".join("\n".join(line) for line in lines)


@contextmanager
def busy(*, spinner: bool = True) -> Iterator[Callable[[str], None]]:
    """Work is going on: what is said, and what netcarve logs meanwhile, is shown on stderr.

    On a terminal it is one line that changes; elsewhere a line for each phase, then one every 30 s. What the
    user's own code prints goes to stderr too, each line once, so that stdout holds results alone.

    Args:
        spinner: draw that line; not while something else draws one.
    """
    from rich.console import Console

    from ..engine.progress import Lines

    console = Console(stderr=True, highlight=False)
    alive = spinner and console.is_terminal

    def stay(text: str) -> None:
        # A terminal breaks lines between words; a file keeps them whole.
        console.print(text, soft_wrap=not console.is_terminal, markup=False)

    lines = Lines(stay) if spinner and not alive else None
    with console.status("") if alive else nullcontext() as status:

        def say(text: str) -> None:
            if status is not None:
                status.update(text)
            elif lines is not None:
                lines.say(text)

        handler = _Handler(say, stay)
        logger = logging.getLogger("netcarve")
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            with redirect_stdout(_Prints()):
                yield say
        finally:
            logger.setLevel(level)
            logger.removeHandler(handler)
            if lines is not None:
                lines.close()


def proving(say: Callable[[str], None]) -> Callable[[int, int], None]:
    """Tells of a proof that takes longer than a moment, now and then."""
    told = time.perf_counter()

    def progress(done: int, total: int) -> None:
        nonlocal told
        if time.perf_counter() - told >= SECONDS:
            told = time.perf_counter()
            say(f"proving by execution what may be changed: {done} of {total}")

    return progress


class _Prints(io.TextIOBase):
    """What the user's code prints, on stderr: a forward that prints does so thousands of times, so that each
    line is shown once, and no more than :data:`PRINTS` of them."""

    def __init__(self) -> None:
        self._line, self._seen = "", set[str]()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if line in self._seen or len(self._seen) > PRINTS:
                continue
            self._seen.add(line)
            enough = len(self._seen) > PRINTS
            print("(what the task's code prints further is not shown)" if enough else line, file=sys.stderr)
        return len(text)


class _Handler(logging.Handler):
    """News replace each other on the line; warnings stay."""

    def __init__(self, say: Callable[[str], None], stay: Callable[[str], None]) -> None:
        super().__init__()
        self.say, self.stay = say, stay

    def emit(self, record: logging.LogRecord) -> None:
        (self.stay if record.levelno >= logging.WARNING else self.say)(record.getMessage())
