"""Limits of a process that opens files from elsewhere, and of what it opens.

Standard library only, imported before all else.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
from contextlib import suppress
from pathlib import Path

MAX_TEXT = 64 << 20  # bytes of a file of settings; the largest that netcarve writes has a few


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


def open_regular(path: str | Path) -> io.BufferedReader:
    """A file that has an end, opened for reading.

    Raises:
        OSError: it cannot be read, or is a pipe, a device or a socket, where reading may never end.
    """
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def read_text(path: str | Path, most: int = MAX_TEXT) -> str:
    """The text of a regular file, of which no more than ``most`` bytes are held in memory.

    Raises:
        OSError: as of :func:`open_regular`, or it is larger.
        UnicodeDecodeError: it is not UTF-8.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most} bytes", str(path))
    return data.decode("utf-8")
