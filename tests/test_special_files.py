"""Pipes, devices and links in the place of files of a run or an export: refused at once and in words.

Reading a pipe that nobody writes to, or /dev/zero, would never end.
"""

import json
import os
import signal
from contextlib import contextmanager

import pytest
from netcarve import Choice, Ledger, Space, load, sweep
from netcarve.results import LedgerError
from netcarve.results.database import being_written, last_word
from netcarve.results.export import ExportError, Receipt, load_state, recheck
from netcarve.results.export.samples import SAMPLES, Samples
from netcarve.results.export.standalone import limits
from netcarve.results.export.standalone.stage import Stage
from netcarve.results.salvage import salvage
from netcarve.search import RunError
from netcarve.search.warm_start import read_source

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
    "manifest.json": (lambda folder: Stage(folder / "stage-1.onnx"),),
    "stage-1.onnx": (lambda folder: Stage(folder / "stage-1.onnx"),),
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
