"""Pipes, devices, links and sizes that lie in files of a run or an export: refused at once and in words.

Reading a pipe that nobody writes to, or /dev/zero, would never end.
"""

import json
import os
import signal
import struct
from contextlib import contextmanager

import numpy as np
import onnx
import pytest
from netcarve import Choice, Ledger, Space, load, sweep
from netcarve.engine import RunError
from netcarve.engine.warm_start import read_source
from netcarve.export import ExportError, Receipt, load_state, recheck
from netcarve.export.onnx import run_file
from netcarve.export.samples import SAMPLES, Samples
from netcarve.results import LedgerError
from netcarve.results.database import being_written, last_word
from netcarve.results.salvage import salvage
from netcarve.standalone import limits
from netcarve.standalone.stage import RunningStage

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")

PLACES = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link to a pipe": lambda path: (os.mkfifo(f"{path}.target"), path.symlink_to(f"{path}.target")),
    "link to nothing that ends": lambda path: path.symlink_to("/dev/full"),
}


@contextmanager
def soon(seconds=10):
    """What takes longer hangs."""

    def late(*_):
        pytest.fail(f"still reading after {seconds} s")

    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


@pytest.fixture(params=PLACES)
def put(request):
    """Puts a special file in the place of another."""

    def place(path):
        path.unlink(missing_ok=True)
        PLACES[request.param](path)

    return place


def scored(task, model, candidate):
    return {"accuracy": 1.0 - candidate.values["prune:a"], "macs": 10.0}


@pytest.fixture
def run(tmp_path):
    space = Space([Choice("prune:a", (0.0, 0.25, 0.5))])
    return sweep(
        None, space, "grid", ["accuracy"], trials=3, workers=0, out=tmp_path / "run", evaluators=[scored]
    ).path


@pytest.mark.parametrize("end", ["", "-wal", "-shm", "-journal"])
def test_files_of_a_ledger(run, put, end):
    path = run / "ledger.sqlite"
    put(run / f"ledger.sqlite{end}")
    with soon():
        for use in (lambda: Ledger(path), lambda: Ledger(path, write=True), lambda: load(run)):
            with pytest.raises((LedgerError, RunError), match=r"not a regular file|no run in"):
                use()
        assert not being_written(path)


def test_a_lock_file(run, put):
    """Nor is it written through a link."""
    path = run / "ledger.sqlite"
    put(run / "ledger.sqlite.lock")
    with soon():
        assert len(load(run).trials) == 3
        with pytest.raises(LedgerError, match=r"not a regular file|is a link"):
            Ledger(path, write=True)
        assert not being_written(path)
        assert last_word(path) == ""


def test_a_lock_that_is_a_link_has_no_other_file_written(run, tmp_path):
    (tmp_path / "precious").write_text("mine")
    (run / "ledger.sqlite.lock").unlink(missing_ok=True)
    (run / "ledger.sqlite.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(LedgerError, match="is a link"):
        Ledger(run / "ledger.sqlite", write=True)
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("end", ["", "-wal"])
def test_what_is_salvaged(run, put, tmp_path, end):
    put(run / f"ledger.sqlite{end}")
    with soon():
        if end:  # not read: what is in the ledger itself is saved
            assert salvage(run / "ledger.sqlite", tmp_path / "out.sqlite").outcomes == 3
        else:
            with pytest.raises(LedgerError, match=r"no ledger at|nothing can be salvaged"):
                salvage(run / "ledger.sqlite", tmp_path / "out.sqlite")


def test_candidates_to_begin_with(tmp_path, put):
    put(tmp_path / "begin.json")
    with soon(), pytest.raises(RunError, match="not a regular file"):
        read_source(tmp_path / "begin.json")


@pytest.fixture
def export(tmp_path):
    """Of a folder with every file that readers look for; all but the receipt are empty."""
    folder = tmp_path / "export"
    folder.mkdir()
    for name in ("description.json", "weights.safetensors", SAMPLES, "model.pt2", "stage-1.onnx"):
        (folder / name).write_text("{}")
    stage = {"name": "a", "onnx": "stage-1.onnx", "inputs": [], "outputs": [], "samples": [1, 1]}
    (folder / "manifest.json").write_text(json.dumps({"stages": [stage]}))
    return folder


READERS = {
    "receipt.json": (Receipt.load, recheck),
    "description.json": (load_state,),
    "weights.safetensors": (load_state,),
    SAMPLES: (Samples.load,),
    "manifest.json": (lambda folder: RunningStage(folder / "stage-1.onnx"),),
    "stage-1.onnx": (lambda folder: RunningStage(folder / "stage-1.onnx"),),
}


@pytest.mark.parametrize("name", READERS)
def test_files_of_an_export(export, put, name):
    put(export / name)
    with soon():
        for read in READERS[name]:
            with pytest.raises((ValueError, ExportError, OSError), match="not a regular file"):
                read(export)


def test_texts_are_read_up_to_a_limit(tmp_path):
    with (tmp_path / "receipt.json").open("wb") as file:
        file.truncate(limits.MAX_TEXT + 1)
    with pytest.raises(ValueError, match="larger than"):
        Receipt.load(tmp_path)
    (tmp_path / "a").write_text("é" * 5)
    assert limits.read_text(tmp_path / "a", 10) == "é" * 5
    with pytest.raises(OSError, match="larger than 9 bytes"):
        limits.read_text(tmp_path / "a", 9)


def framed(header, body=b"1234"):
    """A safetensors file."""
    text = json.dumps({"__metadata__": {"netcarve": "{}"}, **header}).encode()
    return struct.pack("<Q", len(text)) + text + body


def tensor(*shape, end=4):
    return {"0.in.0": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}


LIES = {
    "a header larger than the file": struct.pack("<Q", 1000) + b"{}",
    "a header larger than any": struct.pack("<Q", 2**62) + b"{}",
    "more bytes than there are": framed(tensor(2**30, end=2**32)),
    "a shape larger than its bytes": framed(tensor(2**40)),
    "a shape beyond 64 bits": framed(tensor(2**63, 2**63)),
    "a deep header": struct.pack("<Q", 100_000) + b"[" * 100_000,
}


@pytest.mark.parametrize("data", LIES.values(), ids=LIES)
def test_sizes_that_samples_and_weights_declare(export, data):
    (export / SAMPLES).write_bytes(data)
    with pytest.raises(ExportError, match=r"holds no samples.*header"):
        Samples.load(export)


@pytest.mark.parametrize(
    "place", ["../secret", "{}/secret", "up/secret", "link", "device", "model.onnx.data"]
)
def test_weights_beside_an_onnx_graph_lie_in_its_folder_and_are_as_large_as_it_says(tmp_path, place):
    """Of onnxruntime, on which netcarve relies here."""
    folder = tmp_path / "export"
    folder.mkdir()
    for path in (tmp_path / "secret", folder / "model.onnx.data"):
        path.write_bytes(bytes(16))
    for name, target in {"up": tmp_path, "link": tmp_path / "secret", "device": "/dev/zero"}.items():
        (folder / name).symlink_to(target)
    items = 2**34 if place == "model.onnx.data" else 4
    onnx_file(folder / "model.onnx", place.format(tmp_path), items)
    with soon(), pytest.raises(Exception, match=r"escapes|Absolute path|out of bounds"):
        run_file(folder / "model.onnx", 1)


def test_weights_beside_an_onnx_graph_are_read(tmp_path):
    (tmp_path / "model.onnx.data").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    onnx_file(tmp_path / "model.onnx", "model.onnx.data", 4)
    (answer,) = run_file(tmp_path / "model.onnx", 1)([np.ones(4, np.float32)])
    assert answer.tolist() == [1, 2, 3, 4]


def onnx_file(path, weights, items):
    """``y = x + w``, with ``w`` in another file."""
    w = onnx.TensorProto(
        name="w", data_type=onnx.TensorProto.FLOAT, dims=[items], data_location=onnx.TensorProto.EXTERNAL
    )
    w.external_data.add(key="location", value=weights)
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [items]) for n in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [w])
    opset = [onnx.helper.make_opsetid("", 17)]
    path.write_bytes(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString())
