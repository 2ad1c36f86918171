"""Export: files that reproduce in a fresh process, or nothing at all."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from netcarve.export import ExportError, Receipt, export, load_state
from netcarve.export.process import relative_difference
from torch import nn

# A module of the user's, in a folder that only this process has on its search path.
USER_CODE = """
import torch
from torch import nn

class SmallNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        y = self.norm(self.conv(x)).relu()
        return self.head(y.mean((2, 3)))

def make(width):
    return SmallNet(width)

def wrong(width):
    torch.manual_seed(1)
    model = SmallNet(width)
    model.register_forward_hook(lambda module, inputs, output: output + 0.01)
    return model
"""


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """The imported user module."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "user_small_net.py").write_text(USER_CODE)
    sys.path.insert(0, str(folder))
    try:
        yield __import__("user_small_net")
    finally:
        sys.path.remove(str(folder))
        del sys.modules["user_small_net"]


@pytest.fixture(scope="module")
def case(user):
    """Arguments of an export: a trained-looking model, an example, three real batches with labels."""
    torch.manual_seed(0)
    model = user.make(width=4)
    model.norm.running_mean.uniform_(-1, 1)
    model.norm.running_var.uniform_(0.5, 2)
    batches = [torch.randn(n, 1, 8, 8) for n in (5, 5, 2)]
    labels = torch.randint(10, (12,))

    def accuracy(outputs):
        assert [type(output) for output in outputs] == [torch.Tensor] * 3
        return float((torch.cat(outputs).argmax(1) == labels).double().mean())

    return {
        "model": model,
        "example_args": (torch.randn(1, 1, 8, 8),),
        "inputs": [((x,), {}) for x in batches],
        "score": accuracy,
        "describe": {
            "task": "toy",
            "candidate": {"width": 4},
            "costs": {"macs": 1.0},
            "rebuild": {"function": "user_small_net:make", "arguments": {"width": 4}},
        },
    }


@pytest.fixture(scope="module")
def exported(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "deep" / "export"
    return export(**case, directory=folder)


def fresh(code, *arguments):
    """Run code in a process that sees neither this folder nor the user's."""
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


class TestExported:
    def test_every_format_reproduces(self, exported):
        assert set(exported.formats) == {"pt2", "onnx", "state"}
        assert all(0 <= record.max_relative_difference <= 1e-5 for record in exported.formats.values())
        assert all(record.score == exported.score for record in exported.formats.values())

    def test_receipt_is_complete(self, exported, case):
        data = json.loads((exported.directory / "receipt.json").read_text())
        assert data["describe"]["candidate"] == {"width": 4} == exported.candidate
        assert data["metric"] == "accuracy"
        assert data["samples"] == 12
        assert data["batches"] == [1, 3]
        assert data["created"].endswith("+00:00")
        assert data["macs"] == 4 * 9 * 64 + 4 * 10
        assert data["params"] == sum(p.numel() for p in case["model"].parameters())
        assert {"netcarve", "python", "torch", "onnx", "onnxruntime", "safetensors"} <= set(data["versions"])
        for name in ("model.pt2", "model.onnx", "weights.safetensors", "model.py", "description.json"):
            assert data["files"][name]["bytes"] == (exported.directory / name).stat().st_size
            assert len(data["files"][name]["sha256"]) == 64
        files = {name for record in exported.formats.values() for name in record.files}
        assert set(data["files"]) == files | {"README.md", "samples.safetensors"}

    def test_receipt_round_trip_and_changed_files(self, exported, tmp_path):
        assert Receipt.load(exported.directory) == exported
        assert exported.changed() == []
        moved = tmp_path / "moved"
        moved.mkdir()
        for path in exported.directory.iterdir():
            (moved / path.name).write_bytes(path.read_bytes())
        (moved / "model.onnx").write_bytes(b"other")
        (moved / "description.json").unlink()
        assert Receipt.load(moved).changed() == ["description.json", "model.onnx"]

    def test_nothing_else_is_left(self, exported):
        assert leftovers(exported.directory.parent) == ["export"]
        assert leftovers(exported.directory) == sorted([*exported.files, "receipt.json"])

    def test_model_is_untouched(self, exported, case):
        assert case["model"].training
        assert all(p.requires_grad for p in case["model"].parameters())

    def test_pt2_needs_torch_alone(self, exported, case, tmp_path):
        batches = [torch.randn(n, 1, 8, 8) for n in (1, 3, 7)]
        np.savez(tmp_path / "x.npz", *[x.numpy() for x in batches])
        answers, ours = fresh(
            "import json, sys, numpy, torch\n"
            "batches = numpy.load(sys.argv[2]).values()\n"
            "model = torch.export.load(sys.argv[1]).module()\n"
            "answers = [model(torch.from_numpy(x)).tolist() for x in batches]\n"
            "print(json.dumps([answers, [m for m in ('netcarve', 'user_small_net') if m in sys.modules]]))",
            exported.directory / "model.pt2",
            tmp_path / "x.npz",
        )
        assert ours == []
        model = copy.deepcopy(case["model"]).eval()
        for x, answer in zip(batches, answers, strict=True):
            torch.testing.assert_close(torch.tensor(answer), model(x), rtol=1e-4, atol=1e-5)

    def test_onnx_needs_onnxruntime_alone(self, exported):
        names, shape, shapes, modules = fresh(
            "import json, sys, numpy, onnxruntime\n"
            "s = onnxruntime.InferenceSession(sys.argv[1])\n"
            "x, y = s.get_inputs()[0], s.get_outputs()[0]\n"
            "run = lambda n: s.run(None, {x.name: numpy.zeros((n, 1, 8, 8), 'float32')})[0].shape\n"
            "print(json.dumps([[x.name, y.name], x.shape, [run(n) for n in (1, 3, 7)],\n"
            "    [m for m in ('torch', 'netcarve', 'user_small_net') if m in sys.modules]]))",
            exported.directory / "model.onnx",
        )
        assert names == ["x", "output"]
        assert shape == ["batch", 1, 8, 8]
        assert shapes == [[1, 10], [3, 10], [7, 10]]
        assert modules == []


class TestState:
    def test_loads(self, exported, case):
        model = load_state(exported.directory, trust=["user_small_net"])
        assert not model.training
        for name, tensor in case["model"].state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=0)

    def test_calls_only_functions_that_are_trusted(self, exported, tmp_path):
        with pytest.raises(ValueError, match=r"trust=\['user_small_net'\]"):
            load_state(exported.directory)
        description = {"rebuild": {"function": "netcarve.export.folder:check_target", "arguments": {}}}
        (tmp_path / "description.json").write_text(
            json.dumps(description).replace("check_target", "ExportError")
        )
        with pytest.raises(ValueError, match="does not itself define"):
            load_state(tmp_path, trust=["netcarve"])

    def test_what_0_1_called_rebuild_is_known(self, tmp_path):
        rebuild = {"function": "netcarve.search.rebuild:rebuild", "arguments": {"spec": "their.py:task"}}
        (tmp_path / "description.json").write_text(json.dumps({"rebuild": rebuild}))
        with pytest.raises(ValueError, match=r"asks to run 'their.py:task'"):
            load_state(tmp_path)

    def test_missing_folder(self, tmp_path):
        with pytest.raises(ValueError, match="holds no exported state"):
            load_state(tmp_path / "none")

    def test_without_a_way_to_rebuild(self, case, tmp_path):
        receipt = export(**{**case, "describe": {}}, directory=tmp_path / "out", formats=["state"])
        assert receipt.formats["state"].files == ("weights.safetensors", "model.py", "description.json")
        assert receipt.formats["state"].max_relative_difference == 0
        with pytest.raises(ValueError, match=r"model.py, which is code, run it there yourself: from model"):
            load_state(tmp_path / "out")
        with pytest.raises(ExportError, match="'rebuild' must be"):
            export(**{**case, "describe": {"rebuild": 3}}, directory=tmp_path / "no", formats=["state"])

    @pytest.mark.slow
    def test_rebuilding_something_else_is_an_error(self, case, tmp_path):
        describe = {"rebuild": {"function": "user_small_net:wrong", "arguments": {"width": 4}}}
        with pytest.raises(ExportError, match=r"rebuild answers otherwise than model\.py"):
            export(**{**case, "describe": describe}, directory=tmp_path / "out", formats=["state"])
        describe["rebuild"]["arguments"] = {"width": 5}
        with pytest.raises(ExportError, match=r"state: .* fails in a fresh process") as caught:
            export(**{**case, "describe": describe}, directory=tmp_path / "out", formats=["state"])
        assert "Traceback" in caught.value.detail
        assert leftovers(tmp_path) == []


class Bag(dict):
    """An output container that only its own package knows."""


torch.utils._pytree.register_pytree_node(
    Bag,
    lambda bag: (list(bag.values()), list(bag)),
    lambda values, keys: Bag(zip(keys, values, strict=True)),
    serialized_type_name="test_export.Bag",
)


class Many(nn.Module):
    """Several inputs and outputs, constants, a table without batch axis, axes of varying length."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.mix = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 20, bias=False)
        self.tied.weight = self.embed.weight

    def forward(self, tokens, bias, flag=True, *, mask=None, unused=None):
        x = self.mix(self.embed(tokens))
        if mask is not None:
            x = x * mask[..., None]
        if flag:
            x = x + bias
        return Bag(logits=self.tied(x), hidden=(x.mean(1), None))


@pytest.mark.slow
def test_many_inputs_and_outputs(tmp_path):
    torch.manual_seed(0)

    def batch(n, length):
        kwargs = {"mask": torch.rand(n, length), "unused": torch.zeros(n)}
        return (torch.randint(20, (n, length)), torch.rand(6), True), kwargs

    seen = []

    def score(outputs):
        seen.append(outputs)
        return float(len(outputs))

    args, kwargs = batch(4, 7)
    steps = []
    receipt = export(
        Many(),
        example_args=args,
        example_kwargs=kwargs,
        inputs=[batch(4, 7), batch(4, 9), batch(2, 5)],
        score=score,
        metric_name="count",
        directory=tmp_path / "out",
        formats=["pt2", "onnx"],
        progress=steps.append,
    )
    assert receipt.batches == (1, 3, 4)
    assert receipt.metric == "count"
    assert receipt.score == 3.0
    assert steps[0] == "pt2: writing"
    assert {type(output) for outputs in seen for output in outputs} == {Bag}
    assert {output["hidden"][1] for outputs in seen for output in outputs} == {None}
    plain = torch.export.load(tmp_path / "out" / "model.pt2").module()(*args, **kwargs)
    assert type(plain) is dict
    assert plain["logits"].shape == (4, 7, 20)


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(x.view(2, 5))


@pytest.mark.slow
def test_fixed_batch(tmp_path):
    receipt = export(
        Fixed(),
        example_args=(torch.zeros(2, 5),),
        inputs=[((torch.randn(2, 5),), {})],
        directory=tmp_path / "out",
        formats=["pt2"],
    )
    assert receipt.batches == (2,)
    assert receipt.score is None
    assert receipt.macs == 10


@pytest.mark.slow
def test_silence():
    """Not a word on either stream, from a process where nothing was imported before."""
    code = """
import sys, tempfile, torch
from torch import nn
from netcarve.export import export
x = torch.randn(2, 1, 8, 8)
model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
with tempfile.TemporaryDirectory() as folder:
    export(model, example_args=(x,), inputs=[((x,), {})], directory=folder, formats=["pt2", "onnx"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_torch_free_import():
    code = "import sys, netcarve.export; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_relative_difference():
    one = [[np.array([1.0, -4.0, np.inf, np.nan])]]
    assert relative_difference("x", one, one) == 0.0
    assert relative_difference("x", [[np.array([1.0, -4.5, np.inf, np.nan])]], one) == 0.5 / 4
    assert relative_difference("x", [[np.array([1.0, -4.0, -np.inf, np.nan])]], one) == np.inf
    zero = [[np.zeros(2)]]
    assert relative_difference("x", zero, zero) == 0.0
    assert relative_difference("x", [[np.array([0.0, 1e-9])]], zero) == np.inf
    # The scale is that of all batches together: a batch of small outputs is not held to a tighter bound.
    assert relative_difference(
        "x", [[np.array([10.0])], [np.array([0.2])]], [[np.array([10.0])], [np.array([0.1])]]
    ) == (pytest.approx(0.01))
    assert relative_difference("x", [[np.array([3])]], [[np.array([4])]]) == 0.25
    assert relative_difference("x", [[np.zeros((0, 3))]], [[np.zeros((0, 3))]]) == 0.0
