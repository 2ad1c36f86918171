"""Watch over the folder of a run, so that its loss is noticed while a long trial goes on, not at its end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..results.database import is_at
from ..results.ledger import Ledger

EVERY = 1.0  # seconds between two looks


@contextmanager
def watched(ledger: Ledger, *, every: float = EVERY) -> Iterator[None]:
    """Stop what goes on in the ``with`` block, as Ctrl-C does, once the ledger's file is not at its path.

    Two looks in a row have to miss it, ``every`` seconds apart. Only Python's main thread can be stopped: in
    others the next write notices. A Ctrl-C that is ignored (a shell's ``&`` in a script) still is.

    Raises:
        LedgerError: the folder was removed, moved or replaced; all that was scored is saved beside it.
    """
    path, file = ledger.path, ledger.path.stat()
    over, lost, main = threading.Event(), threading.Event(), threading.main_thread()

    def ignored(number: int, frame: FrameType | None) -> None:
        if lost.is_set():
            signal.default_int_handler(number, frame)

    def look() -> None:
        missed = 0
        while missed < 2 and not over.wait(every):
            missed = 0 if is_at(path, file) else missed + 1
        # A write that has noticed by itself saves everything just now.
        if not over.is_set() and not ledger.rescuing and callable(signal.getsignal(signal.SIGINT)):
            lost.set()
            # A signal of its own, since `_thread.interrupt_main` waits until a sleeping call returns.
            signal.pthread_kill(main.ident or 0, signal.SIGINT)

    kept = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is main:
        if kept is signal.SIG_IGN:
            signal.signal(signal.SIGINT, ignored)
        threading.Thread(target=look, name="watch over the run", daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        with ledger.transaction():  # saves everything and says so, if the folder is gone
            pass
        raise
    finally:
        over.set()
        if signal.getsignal(signal.SIGINT) is ignored:
            signal.signal(signal.SIGINT, kept)
