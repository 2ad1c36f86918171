"""A ``.pt2`` from elsewhere holds a graph and numbers, or is not opened."""

import json
import re
import shutil
import zipfile

import pytest
import torch
from netcarve.results.export import ExportError
from netcarve.results.export.pt2_check import check_pt2, is_arithmetic
from torch import nn


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A program with a symbolic batch and a guard on it."""
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        model, (torch.zeros(2, 1, 6, 6),), dynamic_shapes=({0: batch},), strict=False
    )
    program.example_inputs = None
    torch.export.save(program, path)
    return path


class TestProgramsWithCode:
    """Files that torch.export.load would execute something of."""

    @pytest.fixture(autouse=True)
    def _folder(self, written, tmp_path):
        self.path = tmp_path / "model.pt2"
        shutil.copy(written, self.path)

    def spoil(self, change=None, *, add=None):
        """Rewrite the archive: ``change(name, bytes) -> bytes`` each of its files, and ``add`` one."""
        with zipfile.ZipFile(self.path) as archive:
            files = {info.filename: archive.read(info) for info in archive.infolist()}
        root = next(iter(files)).partition("/")[0]
        if add:
            files[f"{root}/{add}"] = b"x"
        with zipfile.ZipFile(self.path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, change(name.partition("/")[2], data) if change else data)

    def program(self, edit):
        def change(name, data):
            if name != "models/model.json":
                return data
            program = json.loads(data)
            edit(program)
            return json.dumps(program).encode()

        self.spoil(change)

    def refused(self, reason):
        with pytest.raises(ExportError, match=reason):
            check_pt2(self.path)

    def test_untouched(self):
        check_pt2(self.path)
        self.spoil()
        check_pt2(self.path)

    def test_code_in_the_graph(self, tmp_path):
        mark = tmp_path / "ran"

        def call(program):
            program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"

        self.program(call)
        self.refused("calls 'torch.os.system'")

        def guard(program):
            program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.conv2d.default"
            program["guards_code"] = [f"open({str(mark)!r}, 'w') is not None"]

        self.program(guard)
        self.refused("more than arithmetic")
        assert not mark.exists()

    def test_expressions_are_evaluated_by_torch(self, tmp_path):
        """What the check is for: without it, the string below would run."""
        mark = tmp_path / "ran"
        text = json.dumps(f"__import__('pathlib').Path({str(mark)!r}).touch()")[1:-1]

        def change(name, data):
            found = re.sub(rb'"expr_str": "[^"]*"', f'"expr_str": "{text}"'.encode(), data)
            return found if name == "models/model.json" else data

        self.spoil(change)
        self.refused("more than arithmetic")
        assert not mark.exists()
        with pytest.raises(Exception):  # noqa: B017 - torch's own, whatever it is
            torch.export.load(self.path)
        assert mark.exists()

    def test_pickles(self):
        self.spoil(lambda name, data: b"x" if name == "data/sample_inputs/model.pt" else data)
        self.refused("pickled sample inputs")
        self.spoil(lambda name, data: b"" if name == "data/sample_inputs/model.pt" else data)
        self.spoil(lambda name, data: data.replace(b'"use_pickle": false', b'"use_pickle": true', 1))
        self.refused("as a pickle")

    @pytest.mark.parametrize("name", ["data/weights/model.pt", "data/constants/opaque_obj_0", "x/model.so"])
    def test_other_files(self, name):
        self.spoil(add=name)
        self.refused("does not need")

    def test_no_program(self):
        self.path.write_bytes(b"PK")
        self.refused("not a program of torch.export")


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("Mul(Integer(3), Symbol('s77', positive=True, integer=True))", True),
        ("((L['x'].size()[1]*L['x'].size()[0]) // 2) <= 4", True),
        ("__import__('os').system('true')", False),
        ("().__class__", False),
        ("Symbol('s0').__class__", False),
        ("[x for x in (1, 2)]", False),
        ("lambda: 1", False),
        ("Symbol('s0', **{})", True),
        ("eval('1')", False),
        ("S('__import__(1)')", False),
        ("1\n+1", False),
        ("1 #", False),
        ("(" * 500, False),
        ("x := 3", False),
    ],
)
def test_arithmetic(text, fine):
    assert is_arithmetic(text) is (fine and "**{" not in text)
