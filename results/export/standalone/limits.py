"""Limits of a process that opens files from elsewhere. Standard library only, imported before all else."""

from __future__ import annotations

import os
import threading
from contextlib import suppress


def tie() -> None:
    """End this process with the one that holds the other end of its stdin, however that one ends.

    The kernel sends SIGIO when the pipe is closed, which ends a process that is caught in a long computation
    as well; where it sends none, a thread notices as soon as Python lets it.
    """
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    threading.Thread(target=lambda: (os.read(0, 1), os._exit(0)), daemon=True).start()


def limit(cpu_seconds: int, memory_bytes: int) -> None:
    """What this process may take; asking for more memory fails, more time ends it.

    Where the system knows no such limit, nothing happens.
    """
    with suppress(ImportError, AttributeError):
        import resource

        # Data, not address space: torch reserves far more of that than it ever uses.
        limits = {
            resource.RLIMIT_CPU: cpu_seconds,
            resource.RLIMIT_DATA: memory_bytes,
            resource.RLIMIT_CORE: 0,
        }
        for which, most in limits.items():
            with suppress(OSError, ValueError):
                soft, hard = (
                    most if old == resource.RLIM_INFINITY else min(most, old)
                    for old in resource.getrlimit(which)
                )
                resource.setrlimit(which, (soft, hard))
