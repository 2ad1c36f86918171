"""Wire protocol of stages: frames of tensors and of text, over pipes and sockets. Standard library only.

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
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, NamedTuple, cast

MAGIC = b"NCS1"
HEADER = struct.Struct("<4sBxHQQQ")
DATA, ERROR, CONTROL = 1, 2, 3
MAX_TEXT = 1 << 20  # bytes of a JSON body
MAX_GREETING = 1 << 12  # bytes of the first one, before it is known who speaks
MOST_GREETINGS = 64  # connections that have not said who they are
MAX_BODY = 1 << 31  # bytes of all tensors of a frame
TOKEN = "NETCARVE_STAGE_TOKEN"
GREETING_SECONDS = 10.0  # for a connection to say what it is
ROOM = 2  # frames that wait before and after the computation; the rest waits in the sender's socket


class FrameError(ValueError):
    """What arrived is no frame for this stage."""


class WirePort(NamedTuple):
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
    def read(cls, made: dict[str, Any]) -> WirePort:
        return cls(made["name"], made["dtype"], made["itemsize"], tuple((k, c) for k, c in made["sizes"]))


class Expected(NamedTuple):
    """What the data frames of a connection hold."""

    ports: tuple[WirePort, ...]
    least: int  # samples
    most: int | None

    @classmethod
    def read(cls, stage: dict[str, Any], which: str) -> Expected:
        """Of an entry of the manifest, ``which``: its ``inputs`` or its ``outputs``."""
        return cls(tuple(map(WirePort.read, stage[which])), *stage["samples"])

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
        except (ValueError, RecursionError) as error:
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


def read_frame(fd: int, expected: Expected | None = None, *, end: float | None = None) -> Frame | None:
    """The next frame; ``None`` at the end. Nothing is allocated before the header is found in order.

    Args:
        expected: of data frames; ``None``: only text may come.
        end: when all of it must have come, of :func:`time.monotonic`; ``None``: any time.

    Raises:
        FrameError: no frame, one of another size than the ports', or one that ends early.
        TimeoutError: it has not come in time.
    """
    head = bytearray(HEADER.size)
    if not _fill(fd, head, may_end=True, end=end):
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
        _fill(fd, part, end=end)
    return Frame(kind, number, samples, body)


def _fill(fd: int, buffer: bytearray, may_end: bool = False, end: float | None = None) -> bool:
    view = memoryview(buffer)
    while len(view):
        # For the whole frame: who sends a byte now and then must not hold up others.
        if end is not None:
            with selectors.DefaultSelector() as selector:
                selector.register(fd, selectors.EVENT_READ)
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise TimeoutError("a frame has not come in time")
        got = os.readv(fd, [view])
        if got == 0:
            if may_end and len(view) == len(buffer):
                return False
            raise FrameError("the connection ended in the middle of a frame")
        view = view[got:]
    return True


class SendLane:
    """Hands items from one thread to another, in order."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._changed = threading.Condition()
        self.ended = False

    def put(self, item: object, room: float = ROOM) -> None:
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
        self.lane = SendLane()
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

    Connections are greeted side by side: whatever a stranger sends, or sends slowly, ends that one alone.

    Raises:
        TimeoutError: nobody came.
    """
    end = math.inf if seconds is None else time.monotonic() + seconds
    greetings: dict[socket.socket, _Greeting] = {}
    listener.settimeout(None)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        try:
            while (now := time.monotonic()) < end:
                late = [one for one, greeting in greetings.items() if greeting.end < now]
                for one in late or list(greetings)[:-MOST_GREETINGS]:
                    _drop(one, greetings, selector)
                soonest = min([end, *(greeting.end for greeting in greetings.values())])
                for key, _ in selector.select(None if soonest == math.inf else max(0.01, soonest - now)):
                    if key.fileobj is listener:
                        with suppress(OSError):  # of one that has gone already
                            one, _ = listener.accept()
                            one.setblocking(False)
                            greetings[one] = _Greeting(one)
                            selector.register(one, selectors.EVENT_READ)
                        continue
                    one = cast(socket.socket, key.fileobj)
                    try:
                        said = greetings[one].read()
                    except (OSError, FrameError):
                        said = {}
                    if said and said["role"] == role and session in (None, said["session"]):
                        del greetings[one]
                        one.setblocking(True)
                        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        return one, said["session"]
                    if said is not None:
                        _drop(one, greetings, selector)
        finally:
            for one in greetings:
                close(one)
    raise TimeoutError(f"no {role} connection came within {seconds:g} s")


def _drop(
    connection: socket.socket, greetings: dict[socket.socket, _Greeting], selector: selectors.BaseSelector
) -> None:
    del greetings[connection]
    selector.unregister(connection)
    close(connection)


class _Greeting:
    """The first frame of a connection, as it comes in; nothing behind it is read.

    Attributes:
        end: when it must be complete, of :func:`time.monotonic`.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.end = time.monotonic() + GREETING_SECONDS
        self._connection, self._data, self._size = connection, b"", HEADER.size

    def read(self) -> dict[str, str] | None:
        """Its texts ``role``, ``session`` and ``token``; ``None`` until it is complete.

        Raises:
            FrameError: it is no greeting, or one with another token.
            OSError: the connection is lost.
        """
        try:
            got = self._connection.recv(self._size - len(self._data))
        except BlockingIOError:
            return None
        if not got:
            raise FrameError("the connection ended in the middle of a frame")
        self._data += got
        if len(self._data) == self._size == HEADER.size:
            magic, kind, _, _, _, length = HEADER.unpack(self._data)
            if magic != MAGIC or kind != CONTROL or not 0 < length <= MAX_GREETING:
                raise FrameError("a connection begins with something else than a greeting")
            self._size += length
        if len(self._data) < self._size:
            return None
        said = Frame(CONTROL, 0, 0, [self._data[HEADER.size :]]).json()
        texts = {name: said[name] for name in ("role", "session", "token") if isinstance(said.get(name), str)}
        if len(texts) < 3:
            raise FrameError("a greeting without role, session and token")
        token = texts["token"].encode(errors="surrogatepass")
        if not hmac.compare_digest(token, os.environ.get(TOKEN, "").encode(errors="surrogateescape")):
            raise FrameError("a greeting with another token")
        return texts


def wake(connection: socket.socket) -> None:
    """End what waits for the connection."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def close(connection: socket.socket) -> None:
    wake(connection)
    connection.close()
