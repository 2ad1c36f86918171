"""How stages talk: frames of tensors and of text, over pipes and sockets. Standard library only.

A frame is a header of 32 bytes, little-endian, and a body::

    magic "NCS1" | kind uint8 | 0 | tensors uint16 | number uint64 | samples uint64 | bytes of the body uint64

The body of a data frame (kind 1) is the tensors of the ports, dense, one after the other: the ports tell
their types and, with the number of samples, their shapes. Other bodies are JSON: an error in the place of an
answer (2), control (3). Nothing that arrives is unpickled or run.
"""

from __future__ import annotations

import hmac
import json
import math
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

MAGIC = b"NCS1"
HEADER = struct.Struct("<4sBxHQQQ")
DATA, ERROR, CONTROL = 1, 2, 3
MAX_TEXT = 1 << 20  # bytes of a JSON body
MAX_BODY = 1 << 31  # bytes of all tensors of a frame
TOKEN = "NETCARVE_STAGE_TOKEN"
GREETING_SECONDS = 10.0  # for a connection to say what it is
ROOM = 2  # frames that wait before and after the computation; the rest waits in the sender's socket


class FrameError(ValueError):
    """What arrived is no frame for this stage."""


class Port(NamedTuple):
    """One tensor on its way into or out of a stage."""

    name: str
    dtype: str
    itemsize: int  # bytes
    sizes: tuple[tuple[int, int], ...]  # per axis (k, c): its length is k x samples + c

    def shape(self, samples: int) -> tuple[int, ...]:
        return tuple(k * samples + c for k, c in self.sizes)

    def bytes(self, samples: int) -> int:
        return math.prod(self.shape(samples)) * self.itemsize

    @classmethod
    def read(cls, made: dict[str, Any]) -> Port:
        return cls(made["name"], made["dtype"], made["itemsize"], tuple((k, c) for k, c in made["sizes"]))


class Expected(NamedTuple):
    """What the data frames of a connection hold."""

    ports: tuple[Port, ...]
    least: int  # samples
    most: int | None

    @classmethod
    def read(cls, stage: dict[str, Any], which: str) -> Expected:
        """Of an entry of the manifest, ``which``: its ``inputs`` or its ``outputs``."""
        return cls(tuple(map(Port.read, stage[which])), *stage["samples"])

    def sizes(self, samples: int) -> list[int]:
        """Bytes of each tensor.

        Raises:
            FrameError: a number of samples that the stage does not take.
        """
        if samples < self.least or (self.most is not None and samples > self.most):
            raise FrameError(f"a frame holds {samples} samples, but {self.least} to {self.most or 'any'} fit")
        return [port.bytes(samples) for port in self.ports]

    def samples(self, shapes: Sequence[Sequence[int]]) -> int:
        """How many samples tensors of these shapes hold; 1 where no axis tells."""
        for port, shape in zip(self.ports, shapes, strict=True):
            for (k, c), length in zip(port.sizes, shape, strict=True):
                if k:
                    return (length - c) // k
        return 1


class Frame(NamedTuple):
    kind: int
    number: int  # of the input, counted by who sends it first
    samples: int
    body: Sequence[Any]  # data: one buffer of bytes per port; else one JSON text

    @property
    def bytes(self) -> int:
        return sum(len(part) for part in self.body)

    def json(self) -> dict[str, Any]:
        try:
            made = json.loads(bytes(self.body[0]))
        except ValueError as error:
            raise FrameError(f"a frame of kind {self.kind} is no JSON") from error
        if not isinstance(made, dict):
            raise FrameError(f"a frame of kind {self.kind} holds no JSON object")
        return made


def text_frame(kind: int, number: int = 0, **content: Any) -> Frame:
    return Frame(kind, number, 0, [json.dumps(content).encode()])


def write_frame(fd: int, frame: Frame) -> int:
    """Send a frame; its bytes with the header."""
    kind, number, samples, body = frame
    head = HEADER.pack(MAGIC, kind, len(body) if kind == DATA else 0, number, samples, frame.bytes)
    parts = [memoryview(part) for part in (head, *body) if len(part)]
    while parts:
        done = os.writev(fd, parts[:512])
        while parts and done >= len(parts[0]):
            done -= len(parts.pop(0))
        if done:
            parts[0] = parts[0][done:]
    return HEADER.size + frame.bytes


def read_frame(fd: int, expected: Expected | None = None) -> Frame | None:
    """The next frame; ``None`` at the end. Nothing is allocated before the header is found in order.

    Args:
        expected: of data frames; ``None``: only text may come.

    Raises:
        FrameError: no frame, one of another size than the ports', or one that ends early.
    """
    head = bytearray(HEADER.size)
    if not _fill(fd, head, may_end=True):
        return None
    magic, kind, count, number, samples, length = HEADER.unpack(head)
    if magic != MAGIC:
        raise FrameError(f"a frame begins with {magic!r}, not {MAGIC!r}: the sender is no stage or driver")
    if kind == DATA and expected is not None:
        sizes = expected.sizes(samples)
        if count != len(sizes) or length != sum(sizes) or length > MAX_BODY:
            raise FrameError(
                f"frame {number} holds {count} tensors, {length} bytes for {samples} samples, but "
                f"{len(sizes)} tensors, {sum(sizes)} bytes (at most {MAX_BODY}) are expected"
            )
    elif kind in (ERROR, CONTROL):
        sizes = [length]
        if length > MAX_TEXT:
            raise FrameError(f"frame {number} has a text of {length} bytes, {MAX_TEXT} are allowed")
    else:
        raise FrameError(f"frame {number} is of kind {kind}, which is not expected here")
    body = [bytearray(size) for size in sizes]
    for part in body:
        _fill(fd, part)
    return Frame(kind, number, samples, body)


def _fill(fd: int, buffer: bytearray, may_end: bool = False) -> bool:
    view = memoryview(buffer)
    while len(view):
        got = os.readv(fd, [view])
        if got == 0:
            if may_end and len(view) == len(buffer):
                return False
            raise FrameError("the connection ended in the middle of a frame")
        view = view[got:]
    return True


class Lane:
    """Hands items from one thread to another, in order."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._changed = threading.Condition()
        self.ended = False

    def put(self, item: Any, room: float = ROOM) -> None:
        """Waits for room. After the end, items are dropped."""
        with self._changed:
            self._changed.wait_for(lambda: self.ended or len(self._items) < room)
            if not self.ended:
                self._items.append(item)
                self._changed.notify_all()

    def get(self) -> Any:
        """Waits for an item; ``None`` when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self.ended or self._items)
            item = self._items.popleft() if self._items else None
            self._changed.notify_all()
            return item

    def end(self, *, drop: bool = False) -> None:
        """No more items; ``drop``: nor those that wait."""
        with self._changed:
            self.ended = True
            if drop:
                self._items.clear()
            self._changed.notify_all()


class Delay:
    """A simulated way over links, each given as (seconds per byte, seconds until the first bit arrives)."""

    def __init__(self, hops: Sequence[Sequence[float]]) -> None:
        self.hops = [(float(per_byte), float(latency)) for per_byte, latency in hops]
        self._free = [0.0] * len(self.hops)  # when each link has sent all that it was given

    def arrival(self, ready: float, size: int) -> float:
        """When a message that is ready to be sent at this time has arrived; messages follow each other."""
        for i, (per_byte, latency) in enumerate(self.hops):
            self._free[i] = max(ready, self._free[i]) + size * per_byte
            ready = self._free[i] + latency
        return ready


class Sender:
    """Sends frames in the order in which they are given, beside whatever else is done.

    Args:
        delay: a frame leaves when it would have arrived.
        lost: told why nothing more can be sent.
        turn: held while a frame is written, where others write there too.
    """

    def __init__(
        self,
        fd: int,
        delay: Delay,
        lost: Callable[[str], None],
        turn: AbstractContextManager[Any] = nullcontext(),  # noqa: B008
    ) -> None:
        self.payload = self.bytes = 0  # sent; bytes: with headers
        self.lane = Lane()
        self._fd, self._delay, self._lost, self._turn = fd, delay, lost, turn
        self._room = math.inf if delay.hops else ROOM  # messages under way wait here too
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def send(self, frame: Frame, room: float | None = None) -> None:
        self.lane.put((time.monotonic(), frame), self._room if room is None else room)

    def finish(self) -> None:
        """Wait until all is sent."""
        self.lane.end()
        self._thread.join()

    def _run(self) -> None:
        while (item := self.lane.get()) is not None:
            ready, frame = item
            left = self._delay.arrival(ready, frame.bytes) - time.monotonic()
            if left > 0:
                time.sleep(left)
            # Counted first: who has the answer may ask for the counts.
            self.payload += frame.bytes if frame.kind == DATA else 0
            self.bytes += HEADER.size + frame.bytes
            try:
                with self._turn:
                    write_frame(self._fd, frame)
            except OSError as error:
                self.lane.end(drop=True)
                self._lost(f"cannot send: {error}")
                return


def connect(host: str, port: int, role: str, session: str, token: str) -> socket.socket:
    """A connection on which we have said who we are."""
    connection = socket.create_connection((host, port), timeout=GREETING_SECONDS)
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    write_frame(connection.fileno(), text_frame(CONTROL, role=role, session=session, token=token))
    return connection


def accept(
    listener: socket.socket, role: str, session: str | None = None, seconds: float | None = None
) -> tuple[socket.socket, str]:
    """The next connection of that role and session, and its session. All others are closed.

    Raises:
        TimeoutError: nobody came.
    """
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        listener.settimeout(None if end is None else max(0.01, end - time.monotonic()))
        connection, _ = listener.accept()
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with patience(connection, GREETING_SECONDS), suppress(OSError, FrameError):
            frame = read_frame(connection.fileno())
            said = frame.json() if frame is not None else {}
            known = hmac.compare_digest(str(said.get("token")).encode(), os.environ.get(TOKEN, "").encode())
            if known and said.get("role") == role and session in (None, said.get("session")):
                return connection, str(said.get("session"))
        close(connection)


@contextmanager
def patience(connection: socket.socket, seconds: float) -> Iterator[None]:
    """Within: reading fails where nothing comes for so long. (Python's own timeouts make reads not block.)"""
    for limit in (seconds, 0.0):
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(limit), int(limit % 1 * 1e6))
        )
        if limit:
            yield


def wake(connection: socket.socket) -> None:
    """End what waits for the connection."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def close(connection: socket.socket) -> None:
    wake(connection)
    connection.close()
