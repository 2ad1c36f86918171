"""One stage as a process of this machine."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from ...standalone.wire import TOKEN
from .transport import StageError

START_SECONDS = 120.0  # to import torch and load the file, on a busy machine


class StageProcess:
    """Runs ``stage.py`` of a folder. It ends with this process, however that ends.

    Args:
        name: of the stage, for messages.
        core: the one core that it runs on; ``None``: any.
    """

    def __init__(
        self, folder: Path, file: str, name: str, *, token: str, threads: int, core: int | None
    ) -> None:
        self.name, self.port = name, 0
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 closed by kill
        command = [sys.executable, str(folder / "stage.py"), str(folder / file)]
        command += ["--listen", "127.0.0.1:0", "--tied", "--threads", str(threads)]
        command += [] if core is None else ["--core", str(core)]
        limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, **limits, TOKEN: token, "PYTHONWARNINGS": "ignore"},
            start_new_session=True,  # Ctrl-C is for the driver, which ends the stages
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> None:
        """Until it listens.

        Raises:
            StageError: it died, or did not start in time.
        """
        assert self._process.stdout is not None
        end, line = time.monotonic() + START_SECONDS, b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            got = os.read(self._process.stdout.fileno(), 4096) if ready else b""
            if not got:
                why = self.death(1.0) or f"did not start within {START_SECONDS:.0f} s"
                raise StageError(f"stage {self.name} {why}", self.name)
            line += got
        self.port = int(json.loads(line)["port"])

    def death(self, seconds: float = 0.0) -> str | None:
        """How it died, ``None`` while it lives; waits so long for it to die."""
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(seconds) if seconds else self._process.poll()
            if code is None:
                return None
            if code < 0:
                return f"was killed by {signal.Signals(-code).name}"
            self._said.seek(0)
            lines = self._said.read().decode(errors="replace").strip().splitlines()
            return f"ended with status {code}" + (f": {lines[-1][:400]}" if lines else "")
        return None

    def kill(self) -> None:
        """May be called twice."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
