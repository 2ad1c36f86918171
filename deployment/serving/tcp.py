"""Stages as processes that send to each other over TCP."""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from ...export.stages import write_stages
from ...model.stages import Stage
from ...standalone import wire
from ...standalone.wire import TOKEN
from .transport import Answer, Lost, StageError, Transport

STATUS_SECONDS = 2.0  # for a stage to say how it is


class Tcp(Transport):
    """Processes of this machine, or stages that already listen elsewhere.

    Args:
        hosts: ``"host:port"`` of each stage; empty: processes are started here.
        hops: the simulated route to each stage, see :class:`wire.Delay`.
        slow: seconds that each stage takes for a second of computing.
        cores: of each stage; ``None``: any.
        patience: seconds that a stage may take to be ready for a session.

    Raises:
        StageError: a stage does not start.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        runtime: str,
        hosts: Sequence[str],
        hops: Sequence[Sequence[Sequence[float]]],
        slow: Sequence[float],
        cores: Sequence[int | None],
        threads: int,
        patience: float,
        gives: wire.Expected,
    ) -> None:
        super().__init__([stage.name for stage in stages])
        self._hops, self._slow, self._cores, self._threads = hops, slow, cores, threads
        self._patience, self._gives, self._runtime = patience, gives, runtime
        self._hosts = [_address(host) for host in hosts]
        self._token = os.environ.get(wire.TOKEN, "") if hosts else secrets.token_hex(16)
        self._controls: list[socket.socket] = []
        self._listeners: list[threading.Thread] = []
        self._data: socket.socket | None = None
        self._sender: wire.Sender | None = None
        self._replies: SimpleQueue[tuple[int, dict[str, Any]]] = SimpleQueue()
        self.processes: list[StageProcess] = []
        self._folder = tempfile.TemporaryDirectory(prefix="netcarve-serve-")
        try:
            if not hosts:
                write_stages(stages, Path(self._folder.name), formats=(runtime,))
                for k in range(len(stages)):
                    self.processes.append(self._start(k))
                for process in self.processes:
                    process.wait_ready()
        except BaseException:
            self.close()
            raise

    def open(self) -> None:
        session = secrets.token_hex(8)
        self.events, self._replies = SimpleQueue(), SimpleQueue()
        places = self._hosts or [("127.0.0.1", process.port) for process in self.processes]
        for k, (host, port) in enumerate(places):
            self._controls.append(self._call(k, host, port, session))
        for k, control in enumerate(self._controls):
            after = places[k + 1] if k + 1 < len(places) else None
            hops = self._hops[k + 1] if after else ()
            order = wire.text_frame(wire.CONTROL, next=after, hops=hops, slow=self._slow[k])
            try:
                wire.write_frame(control.fileno(), order)
            except OSError as error:
                raise self._lost(self.blame(Lost(k, str(error)))) from error
            arguments = (k, control, self.events, self._replies)
            self._listeners.append(threading.Thread(target=self._listen, args=arguments, daemon=True))
            self._listeners[-1].start()
        try:
            self._data = wire.connect(*places[0], "data", session, self._token)
        except OSError as error:
            raise self._lost(self.blame(Lost(0, str(error)))) from error
        events = self.events
        self._sender = wire.Sender(
            self._data.fileno(), wire.Delay(self._hops[0]), lambda why: events.put(Lost(0, why))
        )

    def send(self, frame: wire.Frame) -> None:
        assert self._sender is not None
        self._sender.send(frame, room=float("inf"))

    def end(self) -> None:
        if self._sender is not None:
            self._sender.lane.end(drop=True)
        for connection in (*self._controls, self._data):
            if connection is not None:
                wire.wake(connection)
        if self._sender is not None:
            self._sender.finish()
        for listener in self._listeners:
            listener.join()  # the numbers of closed connections are given to new ones: nobody may read on
        for connection in (*self._controls, self._data):
            if connection is not None:
                wire.close(connection)
        self._controls, self._listeners, self._data, self._sender = [], [], None, None

    def blame(self, lost: Lost) -> Lost:
        end = time.monotonic() + 1.0
        while True:  # a neighbour may notice before the system has buried it
            for k, process in enumerate(self.processes):
                if (how := process.death()) is not None:
                    return Lost(k, how)
            if not self.processes or time.monotonic() > end:
                return lost
            time.sleep(0.01)

    def hung(self, seconds: float) -> Lost:
        found = self.status()
        for k, status in enumerate(found):
            if status is None:
                return self.blame(Lost(k, "does not answer: it is stopped, or its machine cannot be reached"))
        working = [(s["for_s"], k) for k, s in enumerate(found) if s and s["computing"] is not None]
        if working:
            long, k = max(working)
            return Lost(k, f"has been computing for {long:.1f} s")
        return Lost(0, f"and all others are idle, but nothing was answered for {seconds:g} s")

    def restart(self, stage: int) -> None:
        self.end()
        if not self.processes:
            raise StageError(
                f"stage {self.names[stage]} runs on another machine; start it again there", self.names[stage]
            )
        self.processes[stage].kill()
        self.processes[stage] = self._start(stage)
        self.processes[stage].wait_ready()

    def status(self) -> list[dict[str, Any] | None]:
        for control in self._controls:
            with suppress(OSError):
                wire.write_frame(control.fileno(), wire.text_frame(wire.CONTROL))
        found: list[dict[str, Any] | None] = [None] * len(self.names)
        end = time.monotonic() + STATUS_SECONDS
        with suppress(Empty):
            while any(status is None for status in found):
                k, status = self._replies.get(timeout=max(0.0, end - time.monotonic()))
                found[k] = status
        return found

    def sent(self) -> tuple[int, int | None]:
        return (self._sender.payload, self._sender.bytes) if self._sender is not None else (0, 0)

    def close(self) -> None:
        self.end()
        for process in self.processes:
            process.kill()
        self.processes = []
        self._folder.cleanup()

    def _start(self, k: int) -> StageProcess:
        return StageProcess(
            Path(self._folder.name),
            f"stage-{k + 1}.{self._runtime}",
            self.names[k],
            token=self._token,
            threads=self._threads,
            core=self._cores[k],
        )

    def _call(self, k: int, host: str, port: int, session: str) -> socket.socket:
        """A control connection to a stage that has said it is the right one."""
        try:
            control = wire.connect(host, port, "control", session, self._token)
        except OSError as error:
            why = f"does not listen at {host}:{port} ({error}); start it there with stage.py --listen"
            raise self._lost(self.blame(Lost(k, why))) from error
        try:
            frame = wire.read_frame(control.fileno(), end=time.monotonic() + self._patience)
            name = frame.json().get("stage") if frame is not None else None
        except (OSError, wire.FrameError) as error:
            wire.close(control)
            raise self._lost(self.blame(Lost(k, f"does not answer: {error}"))) from error
        if name != self.names[k]:
            wire.close(control)
            what = "hung up (another token, or busy)" if name is None else f"is {name!r}"
            raise StageError(f"at {host}:{port} stage {self.names[k]} should be: it {what}", self.names[k])
        return control

    def _listen(
        self,
        k: int,
        control: socket.socket,
        events: SimpleQueue[Any],
        replies: SimpleQueue[tuple[int, dict[str, Any]]],
    ) -> None:
        why = "ended the connection"
        try:
            expected = self._gives if k + 1 == len(self.names) else None
            while (frame := wire.read_frame(control.fileno(), expected)) is not None:
                if frame.kind != wire.CONTROL:
                    events.put(Answer(frame))
                elif (said := frame.json()) and "fault" in said:
                    events.put(Lost(k, f"says: {said['fault']}"))
                elif "status" in said:
                    replies.put((k, said["status"]))
        except (OSError, wire.FrameError) as error:
            why = f"broke the connection: {error}"
        events.put(Lost(k, why))

    def _lost(self, lost: Lost) -> StageError:
        return StageError(f"stage {self.names[lost.stage]} {lost.why}", self.names[lost.stage])


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"a host is given as host:port, such as 10.0.0.2:7001, got {text!r}")
    return host.strip("[]"), int(port)


# -- One stage as a process of this machine -------------------------------------------------------------

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
