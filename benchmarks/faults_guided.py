"""Is there a ``.pt2`` or a greeting that gets past its reader? Searched for by a fuzzer guided by coverage.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/faults_guided.py texts|pt2|greeting [--seconds 240]

Needs atheris (``pip install atheris``), which netcarve itself does not. ``texts``: expressions and guards,
as the checker of ``.pt2`` files parses and prints them again, and what sympy makes of those that pass.
``pt2``: a real export whose graph is edited or whose bytes are changed; torch opens what passes.
``greeting``: what strangers send to the listener of a stage, before a driver comes. A finding ends the run:
any exception that is not the reader's own, a text that is printed otherwise a second time, code that runs,
ten seconds or 2 GB for one input.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import socket
import struct
import sys
import tempfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from netcarve.standalone import pt2_check, pt2_texts, wire
from netcarve.standalone.pt2_check import Pt2Error

WATCHED = ("os.system", "subprocess.Popen", "socket.connect", "os.exec", "os.posix_spawn")
GRAPH = "model/models/model.json"
SEEDS = (
    "Mul(Integer(3), Symbol('s77', positive=True, integer=True))",
    "Add(Integer(1), FloorDiv(Add(Integer(-1), Symbol('s0', integer=True)), Integer(2)))",
    "Piecewise(ExprCondPair(Integer(1), StrictLessThan(Symbol('s0'), Float('0.5', precision=53))))",
    "Pow(Symbol('s0'), Rational(1, 2))",
    "Mod(Pow(Symbol('u0'), Integer(2)), Max(Integer(1), Symbol('s1')))",
    "((L['x'].size()[1]*L['x'].size()[0]) // 2) <= 4 and max(1, L['n']) % 8 == 0",
    "S(S('open.__doc__[6]') + S('open.__doc__[6]'))",
)
happened: list[str] = []


def read_texts(data: bytes) -> None:
    import sympy
    from torch.utils._sympy import functions

    text = data.decode("utf-8", errors="surrogateescape")
    for read in (pt2_texts.shape_expression, pt2_texts.guard, pt2_texts.operator, pt2_texts.tree_spec):
        try:
            made = read(text)
        except Pt2Error:
            continue
        assert read(made) == made, (text, made)
        if read is pt2_texts.shape_expression:
            with contextlib.suppress(Exception):  # no size, but nothing ran and it did not take long
                sympy.sympify(made, locals=dict(vars(functions)))


class Program:
    """A real export, changed as the fuzzer's bytes say."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model.pt2"
        model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 2))
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(
            model.eval(), (torch.zeros(2, 1, 4, 4),), dynamic_shapes=({0: batch},), strict=False
        )
        program.example_inputs = None
        torch.export.save(program, self.path)
        self.bytes = self.path.read_bytes()
        with zipfile.ZipFile(self.path) as archive:
            self.files = {info.filename: archive.read(info) for info in archive.infolist()}
        self.name = next(name for name in self.files if name.endswith("models/model.json"))

    def __call__(self, data: bytes) -> None:
        import atheris

        given = atheris.FuzzedDataProvider(data)
        if given.ConsumeBool():
            self.path.write_bytes(self._bytes(given))
        else:
            graph = json.loads(self.files[self.name])
            for _ in range(given.ConsumeIntInRange(1, 3)):
                _edit(graph, given)
            with zipfile.ZipFile(self.path, "w") as archive:
                for name, content in self.files.items():
                    archive.writestr(name, json.dumps(graph) if name == self.name else content)
        try:
            pt2_check.check_pt2(self.path)
        except Pt2Error:
            return
        if given.ConsumeIntInRange(0, 9) == 0:  # it is slow
            with contextlib.suppress(Exception):  # torch may not understand it
                pt2_check.load_pt2(self.path)

    def _bytes(self, given: Any) -> bytes:
        changed = bytearray(self.bytes)
        for _ in range(given.ConsumeIntInRange(1, 8)):
            changed[given.ConsumeIntInRange(0, len(changed) - 1)] = given.ConsumeIntInRange(0, 255)
        return bytes(changed[: given.ConsumeIntInRange(1, len(changed))] if given.ConsumeBool() else changed)


def _edit(graph: Any, given: Any) -> None:
    """Another value in one place of the graph: a text, a number, a copy of another part, or none."""
    places = list(_places(graph))
    inside, key = places[given.ConsumeIntInRange(0, len(places) - 1)]
    what = given.ConsumeIntInRange(0, 5)
    if what == 0:
        del inside[key]
    elif what == 1:
        inside[key] = json.loads(json.dumps(_value(places[given.ConsumeIntInRange(0, len(places) - 1)])))
    elif what == 2:
        inside[key] = given.ConsumeInt(9)
    elif what == 3:
        inside[key] = given.PickValueInList([None, True, [], {}, "", 1e308, float("nan"), -1, 2**63])
    elif what == 4:
        inside[key] = given.PickValueInList(list(SEEDS))
    else:
        inside[key] = given.ConsumeUnicode(60)


def _places(value: Any) -> Any:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from _places(inner)


def _value(place: tuple[Any, Any]) -> Any:
    return place[0][place[1]]


class Greeting:
    """A stranger sends the fuzzer's bytes and is let go; the driver who comes next is let in."""

    def __init__(self) -> None:
        self.token = os.environ[wire.TOKEN] = secrets.token_hex(16)  # strangers cannot know it
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()

    def __call__(self, data: bytes) -> None:
        with socket.create_connection(self.address) as stranger:
            # Ends with a reset, which leaves no port waiting: some ten thousand connections come.
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(OSError):
                stranger.sendall(data[: 1 << 14])
            with wire.connect(*self.address, "control", "driver", self.token) as driver:
                driver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one, session = wire.accept(self.listener, "control", seconds=5.0)
                one.close()
                assert session == "driver"


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in WATCHED and not (event == "socket.connect" and arguments[1][0] == "127.0.0.1"):
        happened.append(f"{event} {arguments!r:.100}")


def _instrumented(module: types.ModuleType, atheris: Any) -> None:
    for owner in (module, *(v for v in vars(module).values() if isinstance(v, type))):
        if getattr(owner, "__module__", module.__name__) == module.__name__:
            for value in vars(owner).values():
                function = getattr(value, "__wrapped__", value)
                if isinstance(function, types.FunctionType) and function.__module__ == module.__name__:
                    atheris.instrument_func(function)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reader", choices=("texts", "pt2", "greeting"))
    parser.add_argument("--seconds", type=int, default=240)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    try:
        import atheris
    except ImportError:
        sys.exit("error: this part needs the fuzzer atheris; install it: pip install atheris")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        seeds = [text.encode() for text in SEEDS]
        reader: Callable[[bytes], None] = read_texts
        if options.reader == "pt2":
            reader, seeds = Program(folder), [bytes(range(k, k + 60)) for k in (0, 60, 120, 180)]
        elif options.reader == "greeting":
            said = json.dumps({"role": "control", "session": "s", "token": "secret"}).encode()
            head = wire.HEADER.pack(wire.MAGIC, wire.CONTROL, 0, 0, 0, len(said))
            reader, seeds = Greeting(), [head + said, head + said.replace(b"secret", b"\\ud800")]
        corpus = folder / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(seeds):
            (corpus / str(number)).write_bytes(seed)
        for module in (pt2_check, pt2_texts, wire):
            _instrumented(module, atheris)
        sys.addaudithook(_audit)

        def one(data: bytes) -> None:
            happened.clear()
            reader(data)
            assert not happened, happened

        flags = [f"-max_total_time={options.seconds}", f"-seed={options.seed}", "-timeout=10"]
        flags += [
            "-rss_limit_mb=2048",
            "-max_len=4096",
            "-print_final_stats=1",
            f"-artifact_prefix={os.getcwd()}/",
        ]
        atheris.Setup([sys.argv[0], *flags, str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
