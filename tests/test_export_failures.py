"""Failing exports: a clear reason, and nothing that looks finished."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from netcarve import export as export_package
from netcarve.export import FORMATS, ExportError, Receipt, export
from torch import nn


@pytest.fixture
def case():
    """Arguments of an export that works."""
    torch.manual_seed(0)
    return {
        "model": nn.Linear(5, 3),
        "example_args": (torch.zeros(1, 5),),
        "inputs": [((torch.randn(4, 5),), {})],
        "score": lambda outputs: float(torch.cat(outputs).mean()),
        "describe": {
            "task": "toy",
            "rebuild": {
                "function": "torch.nn.modules.linear:Linear",
                "arguments": {"in_features": 5, "out_features": 3},
            },
        },
    }


# A format without torch in its check process: a tenth of a second instead of two.
QUICK = """
import numpy
NEEDS, STANDALONE = "numpy", True
def require(describe): pass
def write(source, folder):
    weight, bias = (tensor.detach().numpy() for tensor in source.model.parameters())
    factor = source.describe.get("factor", 1)
    numpy.savez(folder / "model.npz", w=factor * weight, b=bias)
    return ("model.npz",)
def load(folder, structure, threads):
    model = numpy.load(folder / "model.npz")
    return lambda leaves: [leaves[0] @ model["w"].T + model["b"]]
"""


@pytest.fixture
def quick(tmp_path_factory, monkeypatch):
    """Name of that format."""
    folder = tmp_path_factory.mktemp("formats")
    (folder / "quick_format.py").write_text(QUICK)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(FORMATS, "quick", "quick_format")
    yield "quick"
    sys.modules.pop("quick_format", None)


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


BROKEN = """
NEEDS, STANDALONE = "nothing", True
def require(describe): pass
def write(source, folder):
    (folder / "model.broken").write_text("x")
    {write}
    return ("model.broken",)
def load(folder, structure, threads):
    import numpy
    return lambda leaves: {answer}
"""


@pytest.mark.parametrize(
    ("write", "answer", "reason"),
    [
        (
            "raise KeyError('no such operator')",
            "[]",
            "broken: cannot be written: KeyError: 'no such operator'",
        ),
        ("raise OSError(28, 'No space left on device')", "[]", "No space left on device"),
        ("pass", "1 / 0", "broken: .* fails in a fresh process: ZeroDivisionError"),
        ("pass", "[]", "broken: .* has 0 outputs, not 1"),
        ("pass", "[numpy.zeros((2, 4))]", r"broken: output 0 has shape \(2, 4\)"),
        ("pass", "[numpy.zeros((len(leaves[0]), 3))]", "broken: .* does not reproduce .* 1 of the largest"),
        ("pass", "[numpy.full((len(leaves[0]), 3), numpy.nan)]", "broken: .* does not reproduce .* inf of"),
        ("import netcarve", "__import__('netcarve') and []", "needs netcarve to load"),
    ],
)
def test_broken_format_leaves_nothing(case, tmp_path, monkeypatch, write, answer, reason):
    (tmp_path / "broken_format.py").write_text(BROKEN.format(write=write, answer=answer))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(FORMATS, "broken", "broken_format")
    sys.modules.pop("broken_format", None)
    out = tmp_path / "out"
    out.mkdir()
    (out / "target").mkdir()
    with pytest.raises(ExportError, match=reason):
        export(**case, directory=out / "target", formats=["broken"])
    assert leftovers(out) == ["target"]
    assert leftovers(out / "target") == []


def test_interrupt_leaves_nothing(case, tmp_path):
    def interrupt(step):
        if "checking" in step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(**case, directory=tmp_path / "out", formats=["state"], progress=interrupt)
    assert leftovers(tmp_path) == []


class TestTarget:
    @pytest.fixture(autouse=True)
    def _format(self, quick):
        self.formats = [quick]

    def one(self, case, directory, **options):
        return export(**case, directory=directory, formats=self.formats, **options)

    def test_unknown_format(self, case, tmp_path):
        with pytest.raises(ExportError, match=r"unknown format 'tflite'; known are pt2, onnx, .*quick"):
            export(**case, directory=tmp_path / "out", formats=["pt2", "tflite"])
        with pytest.raises(ExportError, match="no format given; known are pt2, onnx, state"):
            export(**case, directory=tmp_path / "out", formats=[])
        assert leftovers(tmp_path) == []

    def test_taken(self, case, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        for options in ({}, {"overwrite": True}):
            with pytest.raises(ExportError, match="exists and is not an export"):
                self.one(case, tmp_path, **options)
            with pytest.raises(ExportError, match="exists and is not an export"):
                self.one(case, tmp_path / "notes.txt", **options)
        assert leftovers(tmp_path) == ["notes.txt"]

    def test_overwrite(self, case, tmp_path):
        first = self.one(case, tmp_path / "out")
        with pytest.raises(ExportError, match="holds an earlier export"):
            self.one(case, tmp_path / "out")
        (tmp_path / ".out.partial").mkdir()  # an export that was killed
        second = self.one(
            {**case, "describe": {**case["describe"], "task": "again"}}, tmp_path / "out", overwrite=True
        )
        assert first.describe["task"] == "toy"
        assert Receipt.load(tmp_path / "out").describe["task"] == "again" == second.describe["task"]
        assert leftovers(tmp_path) == ["out"]

    def test_overwrite_deletes_nothing_but_the_earlier_export(self, case, tmp_path):
        first = self.one(case, tmp_path / "out")
        (tmp_path / "out" / "__pycache__").mkdir()  # of a script that was run there
        (tmp_path / "link").symlink_to(tmp_path / "out")
        with pytest.raises(ExportError, match="is a symbolic link"):
            self.one(case, tmp_path / "link", overwrite=True)
        for stray in ("notes.txt", "thesis"):
            (tmp_path / "out" / stray).mkdir() if stray == "thesis" else (tmp_path / "out" / stray).touch()
            with pytest.raises(ExportError, match=rf"did not write \(.*{stray}\); move that elsewhere"):
                self.one(case, tmp_path / "out", overwrite=True)
        (tmp_path / "out" / "notes.txt").unlink()
        (tmp_path / "out" / "thesis").rmdir()
        assert Receipt.load(tmp_path / "out") == first
        self.one(case, tmp_path / "out", overwrite=True)
        (tmp_path / "out" / "receipt.json").write_text("{}")
        with pytest.raises(ExportError, match="nothing there is overwritten"):
            self.one(case, tmp_path / "out", overwrite=True)

    def test_what_is_put_there_during_an_export_stays(self, case, tmp_path):
        def put(step):
            (tmp_path / "out" / "notes.txt").write_text("mine")

        self.one(case, tmp_path / "out")
        with pytest.raises(ExportError, match="did not write"):
            self.one(case, tmp_path / "out", overwrite=True, progress=put)
        assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
        assert leftovers(tmp_path) == ["out"]

    def test_failing_overwrite_keeps_the_earlier_export(self, case, tmp_path):
        first = self.one(case, tmp_path / "out")
        with pytest.raises(ExportError, match="does not reproduce"):
            self.one({**case, "describe": {"factor": 1.01}}, tmp_path / "out", overwrite=True)
        assert Receipt.load(tmp_path / "out").changed() == []
        assert Receipt.load(tmp_path / "out") == first

    def test_failing_last_step_keeps_the_earlier_export(self, case, tmp_path, monkeypatch):
        first = self.one(case, tmp_path / "out")
        rename = os.rename

        def refuse(source, target):
            if Path(source).name == ".out.partial":
                raise OSError(5, "Input/output error")
            rename(source, target)

        monkeypatch.setattr(os, "rename", refuse)
        with pytest.raises(ExportError, match="Input/output error"):
            self.one(case, tmp_path / "out", overwrite=True)
        assert Receipt.load(tmp_path / "out") == first
        assert leftovers(tmp_path) == ["out"]

    def test_cannot_write(self, case, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        with pytest.raises(ExportError, match=r"cannot (write|read) .*choose another folder"):
            self.one(case, tmp_path / "file" / "out")

        def refuse(self, *_args, **_options):
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "mkdir", refuse)
        with pytest.raises(
            ExportError, match=r"cannot write to .*: Permission denied; choose another folder"
        ):
            self.one(case, tmp_path / "out")
        assert leftovers(tmp_path) == ["file"]

    def test_no_room(self, case, tmp_path, monkeypatch):
        monkeypatch.setattr(
            export_package.folder.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000)
        )
        with pytest.raises(ExportError, match=r"no room in .*: about 16 MB are needed, 1 MB are free"):
            self.one(case, tmp_path / "out")
        assert leftovers(tmp_path) == []

    def test_describe_must_be_json(self, case, tmp_path):
        for bad in ({"x": object()}, {"x": float("nan")}):
            with pytest.raises(ExportError, match="describe must be JSON"):
                self.one({**case, "describe": bad}, tmp_path / "out")

    def test_inputs(self, case, tmp_path):
        with pytest.raises(ExportError, match="inputs is empty"):
            self.one({**case, "inputs": []}, tmp_path / "out")
        with pytest.raises(ExportError, match="batch 0 of the inputs is not built like the example"):
            self.one({**case, "inputs": [((torch.zeros(5),), {})]}, tmp_path / "out")
        with pytest.raises(ExportError, match="does not run on its inputs: RuntimeError"):
            self.one({**case, "inputs": [((torch.zeros(2, 6),), {})]}, tmp_path / "out")
        with pytest.raises(ExportError, match="score of the exported model is nan"):
            self.one({**case, "score": lambda _: float("nan")}, tmp_path / "out")
        assert leftovers(tmp_path) == []


class Branching(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


def test_model_that_cannot_be_captured(tmp_path):
    with pytest.raises(ExportError, match=r"torch\.export cannot capture Branching: "):
        export(
            Branching(),
            example_args=(torch.ones(2, 5),),
            inputs=[((torch.ones(2, 5),), {})],
            directory=tmp_path / "out",
            formats=["onnx"],
        )
    assert leftovers(tmp_path) == []


def test_formats_of_packages_that_are_not_there(case, tmp_path, monkeypatch):
    from importlib import util

    find = util.find_spec
    missing = ("executorch", "onnxscript")
    monkeypatch.setattr(util, "find_spec", lambda name, *a: None if name in missing else find(name, *a))
    with pytest.raises(ExportError, match="executorch, which is not installed; pip install executorch"):
        export(**case, directory=tmp_path / "out", formats=["executorch"])
    with pytest.raises(ExportError, match="needs onnxscript; pip install onnxscript"):
        export(**case, directory=tmp_path / "out", formats=["int8"])
    assert leftovers(tmp_path) == []
