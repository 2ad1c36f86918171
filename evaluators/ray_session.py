"""A Ray of our own: offline, quiet, private to this process, and gone when it is closed."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from . import ray_guard
from .errors import PoolError, first_line

_SOCKET_LIMIT = 107  # bytes of a Unix socket's path
_SOCKET_TAIL = 67  # bytes that Ray adds to its temporary folder's path
_STORE_BYTES = 96 << 20  # Ray's least is 75 MiB
_SETTINGS = 4  # type of a frame of HTTP/2, its fourth byte (RFC 9113, section 4.1)
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0])
ANSWER_SECONDS = 10.0  # for a cluster to answer

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no prompt, no report
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else `uv run` re-creates its environment in every worker
    # Of workers and machines that died Ray tells on stdout, at length, whatever logs were asked for.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed|worker processes have been started on node|"
    "marked dead because|Raylet is terminated|cannot be scheduled right now|[Nn]o available node types|"
    "not registered within the timeout|killed due to memory pressure|killed due to the node running low",
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
        self._guard: subprocess.Popen[bytes] | None = None
        self._owned = False
        self._held: IO[str] | None = None  # in the session's folder: says that this process lives
        local = address in (None, "local")
        _set_environment(local)
        import ray

        if not ray.is_initialized():
            atexit.register(self.close)
            self._owned = True
            try:
                with _signals_kept():
                    self._start(None if local else address, workers, data_bytes)
            except PoolError:
                self.close()
                raise
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
        owned, self._owned = self._owned, False
        guard, self._guard = self._guard, None
        try:
            if owned:
                atexit.unregister(self.close)
                import ray

                ray.shutdown()
        finally:
            if guard is not None:
                guard.communicate()  # closes its input, whereupon it cleans up
            if self._held is not None:
                self._held.close()

    def _start(self, address: str | None, workers: int, data_bytes: int) -> None:
        import ray

        if address is not None:
            check_reachable(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            return
        most = max(16, 4 * (os.cpu_count() or 1))
        if workers > most:
            raise PoolError(f"{workers} workers are too many for this machine; ask for {most} at most")
        folder = _new_folder()
        self._held = ray_guard.hold(folder)
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", ray_guard.__file__, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the others
        )
        os.environ[ray_guard.MARK] = folder
        try:
            ray.init(
                address="local",  # else Ray joins whatever cluster was started last on this machine
                num_cpus=workers,
                object_store_memory=_STORE_BYTES + int(1.3 * data_bytes),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=folder,
            )
        finally:
            del os.environ[ray_guard.MARK]


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


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray answers SIGTERM itself once it has started, and would end the program in its middle."""
    main = threading.current_thread() is threading.main_thread()
    kept = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if main and kept is not None:
            signal.signal(signal.SIGTERM, kept)


def check_reachable(address: str) -> None:
    """Refuse in seconds where Ray would wait for minutes. Addresses without a port (``auto``) are left to it.

    Its servers speak HTTP/2 (gRPC), and answer a client's first words with their settings.

    Raises:
        PoolError: nothing answers at ``address``, or what answers is not Ray.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS) as server:
            if os.environ.get("RAY_USE_TLS", "0") in ("", "0"):
                server.sendall(_GREETING)
                answer = server.recv(4)
                if len(answer) < 4 or answer[3] != _SETTINGS:
                    raise ConnectionError("what answers there is not Ray")
    except OSError as error:
        raise PoolError(
            f"no Ray cluster answers at {address}: {first_line(error)}; start one there, "
            f"`ray start --head --port={port}`, or leave out the address to use this machine"
        ) from error


def _new_folder() -> str:
    """A private folder with a path short enough for the sockets in it."""
    longest = _SOCKET_LIMIT - _SOCKET_TAIL - len(ray_guard.PREFIX) - 9
    for parent in ("/tmp", tempfile.gettempdir()):
        if os.access(parent, os.W_OK) and len(str(Path(parent))) <= longest:
            ray_guard.sweep(parent)
            return tempfile.mkdtemp(prefix=ray_guard.PREFIX, dir=parent)
    raise PoolError(
        f"Ray needs a writable temporary folder whose path has at most {longest} characters; set TMPDIR"
    )
