"""A Ray of our own: offline, quiet, private to this process, and gone when it is closed."""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from .errors import PoolError, first_line

_PREFIX = "netcarve-ray-"
_SOCKET_LIMIT = 107  # bytes of a Unix socket's path
_SOCKET_TAIL = 67  # bytes that Ray adds to its temporary folder's path
_MARK = "NETCARVE_RAY"  # in the environment of every process of a session; its value is the folder
_GRACE = 0.5  # seconds
_STORE_BYTES = 96 << 20  # Ray's least is 75 MiB

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no prompt, no report
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else `uv run` re-creates its environment in every worker
    "RAY_DEDUP_LOGS": "0",
    "RAY_AUTH_MODE": "token",  # said explicitly, since Ray warns about a default
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray warns of a change to come
}


class RaySession:
    """Ray for ``workers`` one-core actors.

    A Ray that the program has already started is used, and left running.

    Args:
        workers: cores needed.
        address: ``None`` starts a private local cluster; else that of a running one.
        data_bytes: what will be put into the object store.

    Raises:
        PoolError: Ray does not start, the cluster cannot be reached, or it has too few cores.
    """

    def __init__(self, workers: int, *, address: str | None = None, data_bytes: int = 0) -> None:
        self._folder: Path | None = None
        self._lock: IO[str] | None = None
        self._owned = False
        local = address in (None, "local")
        _set_environment(local)
        import ray

        if not ray.is_initialized():
            atexit.register(self.close)
            self._owned = True
            try:
                self._start(None if local else address, workers, data_bytes)
            except Exception as error:
                self.close()
                raise PoolError(f"Ray does not start: {first_line(error)}") from error
            except BaseException:
                self.close()
                raise
        cores = int(ray.cluster_resources().get("CPU", 0))
        if cores < workers:
            self.close()
            raise PoolError(
                f"{workers} workers need {workers} cores, but this Ray cluster has {cores}; ask for fewer"
            )

    def close(self) -> None:
        """Stop what was started here. May be called twice."""
        folder, self._folder = self._folder, None
        owned, self._owned = self._owned, False
        try:
            if owned:
                atexit.unregister(self.close)
                import ray

                ray.shutdown()
        finally:
            if folder is not None:
                _end_processes(folder)
                shutil.rmtree(folder, ignore_errors=True)
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def _start(self, address: str | None, workers: int, data_bytes: int) -> None:
        import ray

        if address is not None:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            return
        self._folder, self._lock = _new_folder()
        os.environ[_MARK] = str(self._folder)
        try:
            ray.init(
                address="local",  # else Ray joins whatever cluster was started last on this machine
                num_cpus=workers,
                object_store_memory=_STORE_BYTES + int(1.3 * data_bytes),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(self._folder),
            )
        finally:
            del os.environ[_MARK]


def _set_environment(local: bool) -> None:
    """For good: Ray reads these once per process, so that taking them back would only confuse it."""
    wanted = dict(_ENVIRONMENT)
    if not local:
        del wanted["RAY_AUTH_MODE"]  # the cluster's business
    elif "ray" not in sys.modules:
        # Else Ray writes a token into the home folder. Not where it was used before: it has one in memory.
        wanted["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def _new_folder() -> tuple[Path, IO[str]]:
    """A private folder with a short path, and its lock, held as long as this process lives."""
    for parent in dict.fromkeys(("/tmp", tempfile.gettempdir())):
        if not os.access(parent, os.W_OK) or len(parent) + len(_PREFIX) + 9 + _SOCKET_TAIL > _SOCKET_LIMIT:
            continue
        _remove_stale(Path(parent))
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = open(path / "lock", "w")  # noqa: SIM115
        fcntl.flock(lock, fcntl.LOCK_EX)
        return path, lock
    raise PoolError(
        "Ray needs a writable temporary folder with a path of at most "
        f"{_SOCKET_LIMIT - _SOCKET_TAIL - len(_PREFIX) - 9} characters; set TMPDIR to one"
    )


def _remove_stale(parent: Path) -> None:
    """What killed processes left: folders whose lock nobody holds, and whatever still runs in them."""
    for path in parent.glob(f"{_PREFIX}*"):
        try:
            if time.time() - path.stat().st_mtime < 10:
                continue  # it may be about to be locked
            with open(path / "lock", "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _end_processes(path)
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue


def _end_processes(folder: Path) -> None:
    """Kill what Ray left running: it forgets helpers that were starting up when it was interrupted."""
    end = time.monotonic() + _GRACE
    while pids := _marked(folder):
        if time.monotonic() > end:
            for pid in pids:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > end + _GRACE:
                return
        time.sleep(0.02)


def _marked(folder: Path) -> list[int]:
    """Processes started with our mark in their environment (where the system shows it: Linux)."""
    mark = f"{_MARK}={folder}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
    return found
