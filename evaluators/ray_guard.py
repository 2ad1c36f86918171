"""Cleans up after a Ray session, however its program ended. Run as a script: ``ray_guard.py FOLDER``.

Waits until its standard input closes, which happens when the program closes it or dies, by SIGKILL too.
Then it kills what still runs in the session and removes its folder. Ray itself forgets helpers that were
starting up when it was stopped. Standard library only, and no import of ours: it must start in no time.
"""

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

MARK = "NETCARVE_RAY"  # in the environment of every process of a session; its value is the folder


def marked(folder: str) -> list[int]:
    """Processes started with our mark in their environment (where the system shows it: Linux)."""
    mark = f"{MARK}={folder}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
    return found


def clean(folder: str, seconds: float = 10.0) -> None:
    """Kill the session's processes, looking again for those being born, and remove its folder."""
    end = time.monotonic() + seconds
    while (pids := marked(folder)) and time.monotonic() < end:
        for pid in pids:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    clean(sys.argv[1])
