"""Greetings of strangers: whatever they send, the stage listens on and the driver is let in."""

import json
import socket
import struct
import threading
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netcarve.standalone import wire
from netcarve.standalone.stage import serve


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv(wire.TOKEN, "secret")


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def text(body: bytes) -> bytes:
    return wire.HEADER.pack(wire.MAGIC, wire.CONTROL, 0, 0, 0, len(body)) + body


def greeting(**changed) -> bytes:
    said = {"role": "control", "session": "s", "token": "secret", **changed}
    return text(json.dumps(said).encode())


BAD = {
    "surrogate": greeting(token="\ud800"),
    "deep": text(b"[" * 4000),
    "deep object": text(b'{"a":' * 800),
    "huge number": text(b'{"token": ' + b"9" * 4000 + b"}"),
    "another token": greeting(token="guessed"),
    "no text": greeting(token=7),
    "a list": greeting(session=["s"]),
    "nothing": b"",
    "no frame": b"GET / HTTP/1.1\r\n\r\n" * 4,
    "long": wire.HEADER.pack(wire.MAGIC, wire.CONTROL, 0, 0, 0, 1 << 20),
    "empty": text(b""),
    "data": wire.HEADER.pack(wire.MAGIC, wire.DATA, 1, 0, 1, 8) + bytes(8),
    "not unicode": text(b"\xff\xfe{}"),
}


def let_in(listener, seconds=5.0):
    with wire.connect(*listener.getsockname(), "control", "s", "secret") as driver:
        connection, session = wire.accept(listener, "control", seconds=seconds)
        assert session == "s"
        connection.sendall(b"x")
        assert driver.recv(1) == b"x"
        wire.close(connection)


@pytest.mark.parametrize("sent", BAD.values(), ids=BAD)
def test_a_bad_greeting_ends_its_connection_alone(listener, sent):
    with socket.create_connection(listener.getsockname()) as stranger:
        stranger.sendall(sent)
        stranger.shutdown(socket.SHUT_WR)
        let_in(listener)
        stranger.settimeout(5)
        with suppress(ConnectionError):
            assert stranger.recv(1) == b""


@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=100).map(text),
        st.recursive(
            st.one_of(st.none(), st.floats(), st.text(st.characters(codec=None)), st.integers()),
            lambda inner: (
                st.lists(inner) | st.dictionaries(st.sampled_from(["role", "session", "token"]), inner)
            ),
        ).map(lambda value: text(json.dumps(value).encode())),
        st.tuples(*[st.integers(0, 2**n - 1) for n in (8, 16, 64, 64, 64)]).map(
            lambda head: struct.pack("<4sBxHQQQ", wire.MAGIC, *head)
        ),
    )
)
@settings(max_examples=150, deadline=None)
def test_no_bytes_of_a_stranger_reach_further(sent):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(sent)
        theirs.shutdown(socket.SHUT_WR)
        reading = wire._Greeting(ours)
        with pytest.raises(wire.FrameError):
            read_through(reading)


def read_through(reading):
    while reading.read() is None:
        pass


def test_who_sends_slowly_holds_up_nobody_and_not_for_long(listener, monkeypatch):
    monkeypatch.setattr(wire, "GREETING_SECONDS", 0.5)
    over = threading.Event()

    def trickle(stranger):
        for byte in greeting():
            if over.wait(0.05):
                return
            with suppress(OSError):
                stranger.sendall(bytes([byte]))

    with socket.create_connection(listener.getsockname()) as stranger:
        sending = threading.Thread(target=trickle, args=(stranger,))
        sending.start()
        start = time.monotonic()
        let_in(listener)
        assert time.monotonic() - start < 0.5
        over.set()
        sending.join()
    with socket.create_connection(listener.getsockname()) as stranger:
        over.clear()
        sending = threading.Thread(target=trickle, args=(stranger,))
        sending.start()
        with pytest.raises(TimeoutError):  # it would have been complete after 4 s, each byte in time
            wire.accept(listener, "control", seconds=1.5)
        over.set()
        sending.join()


def test_many_silent_connections_do_not_shut_the_driver_out(listener):
    strangers = [socket.create_connection(listener.getsockname()) for _ in range(wire.MOST_GREETINGS + 20)]
    try:
        let_in(listener)
    finally:
        for stranger in strangers:
            stranger.close()


ORDERS = [
    {},
    {"next": 5},
    {"next": None, "hops": [[1]]},
    {"next": [{}, []]},
    {"next": None, "hops": [], "slow": 10**400},
    {"next": ["a\ud800", 1]},
]


@pytest.mark.parametrize("order", ORDERS)
def test_a_bad_order_ends_its_session_alone(listener, monkeypatch, order):
    monkeypatch.setattr(wire, "GREETING_SECONDS", 0.3)
    stage = type("Stage", (), {"name": "first", "takes": None, "gives": None})()

    def serving():
        with suppress(OSError):  # once the listener is closed
            serve(stage, listener)

    threading.Thread(target=serving, daemon=True).start()
    for _ in range(2):
        with wire.connect(*listener.getsockname(), "control", "s", "secret") as driver:
            assert wire.read_frame(driver.fileno()).json() == {"stage": "first"}
            wire.write_frame(driver.fileno(), wire.text_frame(wire.CONTROL, **order))
            assert "fault" in wire.read_frame(driver.fileno()).json()
