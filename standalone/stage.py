"""Runs one stage of a split network, by itself.

    python stage.py stage-1.pt2 < frames | python stage.py stage-2.onnx > answers
    python stage.py stage-2.onnx --listen 0.0.0.0:7002

The first form takes frames from stdin and gives frames to stdout, so that pipes chain stages. The second
waits for a driver (``netcarve serve RUN TRIAL --hosts ...``), which says to whom to send; where the
environment has NETCARVE_STAGE_TOKEN, it obeys only those who send the same. ``.pt2`` needs torch, ``.onnx``
numpy and onnxruntime; netcarve is not needed. Beside the stage's file lies ``manifest.json``, which knows its
ports; beside this one ``wire.py``, which knows the frames,
and ``pt2_check.py`` with ``pt2_texts.py``, which open a ``.pt2`` that holds no code.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

if __package__:
    from . import limits, pt2_check, wire
else:  # run as a script, wherever both files were copied
    sys.dont_write_bytecode = True  # the folder stays as it was exported
    import limits  # type: ignore[import-not-found, no-redef]
    import pt2_check  # type: ignore[import-not-found, no-redef]
    import wire  # type: ignore[import-not-found, no-redef]

Run = Callable[[int, Sequence[Any]], list[Any]]  # (samples, one buffer per input) -> one buffer per output


class RunningStage:
    """A loaded stage file. Its manifest is ``manifest.json`` in the same folder.

    Raises:
        ValueError: the manifest does not know the file, or the file holds more than a graph and numbers.
    """

    def __init__(self, file: str | Path, threads: int = 1) -> None:
        path = Path(file)
        manifest = json.loads(limits.read_text(path.parent / "manifest.json"))
        found = [s for s in manifest["stages"] if path.name in (s.get("pt2"), s.get("onnx"))]
        if not found:
            raise ValueError(f"{path.parent / 'manifest.json'} knows no stage in {path.name}")
        self.name = str(found[0]["name"])
        self.takes = wire.Expected.read(found[0], "inputs")
        self.gives = wire.Expected.read(found[0], "outputs")
        load = load_onnx if path.suffix == ".onnx" else load_pt2
        self._run = load(path, self.takes.ports, threads)
        self._warm()

    def __call__(self, frame: wire.Frame) -> wire.Frame:
        """The answer to a data frame; an error frame where the stage raises."""
        try:
            body = self._run(frame.samples, frame.body)
            sizes = self.gives.sizes(frame.samples)
            if [len(part) for part in body] != sizes:
                raise ValueError(f"it gave {[len(part) for part in body]} bytes, {sizes} were expected")
            return wire.Frame(wire.DATA, frame.number, frame.samples, body)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"[:4000]
            return wire.text_frame(wire.ERROR, frame.number, stage=self.name, error=text)

    def _warm(self) -> None:
        """The first calls of a program are slow. What zeros do to the network is of no interest."""
        samples = max(1, self.takes.least)
        for _ in range(2):
            self(wire.Frame(wire.DATA, 0, samples, [bytearray(n) for n in self.takes.sizes(samples)]))


def load_pt2(path: Path, ports: Sequence[wire.WirePort], threads: int) -> Run:
    import torch

    torch.set_num_threads(threads)
    program = pt2_check.load_pt2(path)
    checked, fast = program.module(), without_lookups(program)
    known: set[int] = set()  # numbers of samples, and so shapes, that the program's own checks let pass
    dtypes = [getattr(torch, port.dtype) for port in ports]

    def run(samples: int, body: Sequence[Any]) -> list[Any]:
        tensors = [
            torch.frombuffer(part, dtype=dtype).reshape(port.shape(samples))
            if len(part)
            else torch.empty(port.shape(samples), dtype=dtype)
            for part, port, dtype in zip(body, ports, dtypes, strict=True)
        ]
        with torch.inference_mode():
            outputs = (fast if samples in known else checked)(*tensors)
            known.add(samples)
            return [tensor_bytes(t) for t in outputs]

    return run


def without_lookups(program: Any) -> Callable[..., Any]:
    """The calls of a program on tensors that are looked up once. It checks nothing of what it is given.

    ``program.module()`` finds each parameter by its path at every call: a tenth of a mobilenet_v2's time.
    """
    signature = program.graph_signature
    held = {**program.state_dict, **program.constants}
    state = [held.get(spec.target) for spec in signature.input_specs if spec.kind.name != "USER_INPUT"]
    if any(t is None for t in state) or any(s.kind.name != "USER_OUTPUT" for s in signature.output_specs):
        return program.module()
    forward = program.graph_module.forward
    return lambda *inputs: forward(*state, *inputs)


def tensor_bytes(tensor: Any) -> memoryview:
    """The dense bytes of a torch tensor; its own memory where that is dense."""
    import torch

    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())


def load_onnx(path: Path, ports: Sequence[wire.WirePort], threads: int) -> Run:
    import numpy as np
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3  # errors
    limits.open_regular(path).close()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(samples: int, body: Sequence[Any]) -> list[Any]:
        arrays = {
            name: np.frombuffer(part, dtype=port.dtype).reshape(port.shape(samples))
            for name, part, port in zip(names, body, ports, strict=True)
        }
        outputs = (np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in session.run(None, arrays))
        return [a.data for a in outputs]

    return run


class Worker:
    """Reads frames, answers them, sends the answers: three threads, so that sending hides behind computing.

    Args:
        slow: seconds to take for each second of computing, at least 1: a simulated slower device.
        fault: told what is wrong with a connection.
    """

    def __init__(
        self,
        stage: RunningStage,
        source: int,
        sender: wire.Sender,
        fault: Callable[[str], None],
        slow: float = 1.0,
    ) -> None:
        self.received = wire.SendLane()
        self.sender = sender
        self._stage, self._source, self._fault, self._slow = stage, source, fault, slow
        self._inputs, self._busy, self._slept = 0, 0.0, 0.0  # answered; seconds computed, and slowed down
        self._computing: tuple[int, float] | None = None  # number, since when

    def run(self) -> None:
        """Until the frames end, or :attr:`received` is ended and the source woken."""
        receiver = threading.Thread(target=self._receive, daemon=True)
        receiver.start()
        while (frame := self.received.get()) is not None:
            self.sender.send(self._answer(frame) if frame.kind == wire.DATA else frame)
        receiver.join()  # the source's number may be another connection's as soon as it is closed

    def status(self) -> dict[str, Any]:
        number, since = self._computing or (None, 0.0)
        return {
            "inputs": self._inputs,
            "busy_s": self._busy,
            "slept_s": self._slept,
            "payload": self.sender.payload,
            "bytes": self.sender.bytes,
            "computing": number,
            "for_s": 0.0 if number is None else time.monotonic() - since,
        }

    def _answer(self, frame: wire.Frame) -> wire.Frame:
        start = time.monotonic()
        self._computing = (frame.number, start)
        answer = self._stage(frame)
        taken = time.monotonic() - start
        if self._slow > 1:
            time.sleep(taken * (self._slow - 1))
        self._slept += time.monotonic() - start - taken
        self._busy, self._inputs, self._computing = self._busy + taken, self._inputs + 1, None
        return answer

    def _receive(self) -> None:
        try:
            while (frame := wire.read_frame(self._source, self._stage.takes)) is not None:
                self.received.put(frame)
        except (OSError, wire.FrameError) as error:
            self._fault(str(error))
        self.received.end()


def serve(stage: RunningStage, listener: socket.socket) -> None:
    """One session after the other, each as long as its driver's connection."""
    while True:
        control, session = wire.accept(listener, "control")
        try:
            _session(stage, listener, control, session)
        except Exception as error:  # whatever a driver orders ends its own session alone
            with suppress(OSError):
                wire.write_frame(control.fileno(), wire.text_frame(wire.CONTROL, fault=str(error)))
        wire.close(control)


def _session(stage: RunningStage, listener: socket.socket, control: socket.socket, session: str) -> None:
    """The driver says to whom to send; the last stage answers to the driver itself."""
    writing = threading.Lock()

    def tell(**content: Any) -> None:
        with writing, suppress(OSError):
            wire.write_frame(control.fileno(), wire.text_frame(wire.CONTROL, **content))

    tell(stage=stage.name)
    order = wire.read_frame(control.fileno(), end=time.monotonic() + wire.GREETING_SECONDS)
    said = order.json() if order is not None else {}
    after = None
    if said["next"]:
        host, port = said["next"]
        after = wire.connect(host, port, "data", session, os.environ.get(wire.TOKEN, ""))
    source, _ = wire.accept(listener, "data", session, wire.GREETING_SECONDS)
    lost = lambda why: tell(fault=why)  # noqa: E731
    sender = wire.Sender(
        (after or control).fileno(),
        wire.Delay(said["hops"]),
        lost,
        writing if after is None else nullcontext(),
    )
    worker = Worker(stage, source.fileno(), sender, lost, float(said["slow"]))

    def obey() -> None:
        with suppress(OSError, wire.FrameError):
            while wire.read_frame(control.fileno()) is not None:
                tell(status=worker.status())
        worker.received.end(drop=True)
        sender.lane.end(drop=True)
        for connection in (source, after):
            if connection is not None:
                wire.wake(connection)

    obeying = threading.Thread(target=obey, daemon=True)
    obeying.start()
    worker.run()
    obeying.join()
    sender.finish()
    for connection in (source, after):
        if connection is not None:
            wire.close(connection)


def keep_memory() -> None:
    """Freed memory stays with the process (glibc; elsewhere nothing happens).

    Else every input gives its activations back to the system and faults them in again, page by page: 19 ms
    instead of 11 for the first half of a mobilenet_v2.
    """
    with suppress(AttributeError, OSError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        allocator.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, the most that it takes


def pipe(stage: RunningStage, source: int, sink: int) -> int:
    """Answer the frames of a pipe until it ends; the exit status."""
    faults: list[str] = []
    sender = wire.Sender(sink, wire.Delay(()), faults.append)
    Worker(stage, source, sender, faults.append).run()
    sender.finish()
    for fault in faults:
        print(f"error: {stage.name}: {fault}", file=sys.stderr)
    return 1 if faults else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Run one stage of a split network.")
    parser.add_argument("file", help="stage-1.pt2 or stage-1.onnx, beside its manifest.json")
    parser.add_argument("--listen", metavar="HOST:PORT", help="serve a driver over TCP instead of pipes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--core", type=int, help="run on this core alone (Linux)")
    parser.add_argument("--tied", action="store_true", help="end when stdin ends")
    options = parser.parse_args()
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print must not get among the answers
    if options.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.core})
    if options.tied:
        limits.tie()
    keep_memory()
    try:
        stage = RunningStage(options.file, options.threads)
        if options.listen is None:
            return pipe(stage, 0, answers)
        host, _, port = options.listen.rpartition(":")
        with socket.create_server((host, int(port))) as listener:
            ready = {"stage": stage.name, "port": listener.getsockname()[1]}
            os.write(answers, json.dumps(ready).encode() + b"\n")
            serve(stage, listener)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError, KeyError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # threads that wait must not keep it alive
