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
from typing import IO

PREFIX = "netcarve-ray-"  # of the folders of sessions
MARK = "NETCARVE_RAY"  # in the environment of every process of a session; its value is the folder
LOCK = "driver.lock"  # in the folder: held as long as its program lives
OLD = 86400.0  # seconds after which a folder without that file belongs to nobody


def marked(folder: str) -> list[int]:
    """Processes of the session (where the system shows them: Linux).

    They have our mark in their environment. Ray's agents write their title over that; they are known by the
    title, and by the logs in the folder that they hold open.
    """
    mark = f"{MARK}={folder}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            titled = (process / "cmdline").read_bytes().startswith(b"ray::")
            if mark in (process / "environ").read_bytes().split(b"\0") or (
                titled and _opens(process, folder)
            ):
                found.append(int(process.name))
    return found


def _opens(process: Path, folder: str) -> bool:
    return any(str(link.readlink()).startswith(f"{folder}/") for link in (process / "fd").iterdir())


def hold(folder: str) -> IO[str]:
    """Say that the folder's program lives, until the file is closed or the program ends."""
    file = Path(folder, LOCK).open("w", encoding="utf-8")  # noqa: SIM115 for the caller to close
    with suppress(ImportError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def sweep(parent: str) -> None:
    """Clean up after sessions in a folder whose program and guard were both killed."""
    with suppress(ImportError):
        import fcntl

        for folder in Path(parent).glob(f"{PREFIX}*"):
            with suppress(OSError):
                about = folder.lstat()
                if folder.is_symlink() or not folder.is_dir() or about.st_uid != os.getuid():
                    continue
                if not (folder / LOCK).exists():
                    if time.time() - about.st_mtime > OLD:
                        clean(str(folder), 1.0)
                    continue
                with (folder / LOCK).open(encoding="utf-8") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    clean(str(folder), 1.0)


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
