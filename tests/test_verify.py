"""An export checked again elsewhere, and opened: tampering, crafted files, other versions, bare processes."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import netcarve
import pytest
import torch
from netcarve.__main__ import run as command
from netcarve.engine import RunError
from netcarve.evaluators import resolve_task
from netcarve.export import FileRecord, Receipt, load_state, recheck
from netcarve.report.about import about
from torch import nn

TASK = """
import torch
from torch import nn
from netcarve import Task

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))

def task():
    torch.manual_seed(0)
    x, y = torch.randn(60, 1, 6, 6), torch.arange(60) % 3
    return Task(Net(), x[:1], (x[:40], y[:40]), test=(x[40:], y[40:]), name="tiny <b>`net`</b>")
"""
HEAVY = ("ray", "pandas", "sklearn", "optuna", "pymoo", "scipy", "onnx", "onnxruntime", "matplotlib",
         "plotly", "rich", "typer", "captum")  # fmt: skip
# Makes them unimportable, as where they are not installed.
BARE = f"""
import sys
from importlib.machinery import PathFinder
class Without:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in {HEAVY!r} else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a task, a run and an export of it in all formats that need no other package."""
    folder = tmp_path_factory.mktemp("a place ünï")
    (folder / "mine.py").write_text(TASK)
    task = resolve_task(f"{folder}/mine.py:task")
    space = netcarve.trace(task.model, task.example).space(calibration=task.calibration_batches)
    run = netcarve.sweep(task, space, "random", ["accuracy", "macs"], trials=3, workers=0, out=folder / "run")
    run.export(1, folder / "export <1>", ("pt2", "onnx", "state", "int8"))
    return folder


@pytest.fixture(scope="module")
def exported(home):
    return home / "export <1>"


@pytest.fixture
def copy(exported, tmp_path):
    """Of the export, to be spoiled."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def only(folder, *formats):
    """As if nothing else had been exported: each format that is asked costs a process."""
    receipt = json.loads((folder / "receipt.json").read_text())
    rewrite(folder, formats={name: receipt["formats"][name] for name in formats})
    return folder


def python(code, cwd="/", *arguments):
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def rewrite(folder, **changes):
    """Change the receipt, as whoever forges an export would."""
    path = folder / "receipt.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def reseal(folder):
    """Record the hashes that the files have by now."""
    receipt = Receipt.load(folder)
    rewrite(folder, files={name: dataclasses.asdict(FileRecord.of(folder / name)) for name in receipt.files})


class TestVerdict:
    def test_all_is_well(self, exported):
        verdict = recheck(exported)
        assert verdict.ok
        assert set(verdict.files.values()) == {"same"}
        assert {name: f.status for name, f in verdict.formats.items()} == {
            "pt2": "same", "onnx": "same", "state": "not checked", "int8": "same"
        }  # fmt: skip
        assert verdict.formats["pt2"].difference == 0.0
        assert 0 < verdict.formats["int8"].difference < 0.5
        assert verdict.formats["onnx"].latency["median_ms"] > 0
        assert verdict.versions == {}
        assert json.loads(json.dumps(verdict.to_json()))["ok"]

    def test_with_the_task_the_metric_is_measured_again(self, home, copy):
        verdict = netcarve.verify(only(copy, "onnx", "int8"), task=f"{home}/mine.py:task")
        assert verdict.ok
        assert {f.status for f in verdict.formats.values()} == {"same"}
        for name, record in Receipt.load(copy).formats.items():
            assert verdict.formats[name].score == record.score

    def test_another_task_is_refused(self, exported, tmp_path):
        (tmp_path / "other.py").write_text(TASK.replace("manual_seed(0)", "manual_seed(1)"))
        with pytest.raises(RunError, match="is not the one of"):
            netcarve.verify(exported, task=f"{tmp_path}/other.py:task")

    def test_changed_and_missing_files_are_not_opened(self, copy):
        with (copy / "model.onnx").open("ab") as file:
            file.write(b"x")
        (copy / "description.json").unlink()
        (copy / "notes.txt").write_text("mine")
        verdict = recheck(only(copy, "onnx", "state", "int8"))
        assert not verdict.ok
        assert (verdict.files["model.onnx"], verdict.files["description.json"]) == ("changed", "missing")
        assert verdict.files["notes.txt"] == "unknown"
        assert verdict.formats["onnx"].reason == "model.onnx is changed; not opened"
        assert verdict.formats["state"].status == "changed"
        assert verdict.formats["int8"].status == "same"

    def test_other_numbers_under_a_forged_receipt_are_found_by_their_answers(self, copy):
        (copy / "model.onnx").write_bytes((copy / "model.int8.onnx").read_bytes())
        reseal(copy)
        verdict = recheck(only(copy, "onnx"))
        assert set(verdict.files.values()) == {"same"}
        assert verdict.formats["onnx"].status == "differs"
        assert "answers differ by" in verdict.formats["onnx"].reason
        assert not verdict.ok

    def test_samples_that_were_changed_prove_nothing(self, copy):
        (copy / "samples.safetensors").write_bytes(b"\0" * 100)
        verdict = recheck(only(copy, "onnx"))
        assert not verdict.ok
        assert verdict.formats["onnx"].status == "not checked"
        reseal(copy)
        assert "holds no samples of an export" in recheck(copy).formats["onnx"].reason

    def test_other_versions_are_told_and_do_not_fail(self, copy):
        versions = Receipt.load(copy).versions
        rewrite(copy, versions={**versions, "torch": "1.0", "abacus": "7"})
        verdict = recheck(only(copy, "onnx"))
        assert verdict.ok
        assert verdict.versions == {"torch": ("1.0", versions["torch"]), "abacus": ("7", "")}

    def test_a_format_of_the_future_and_a_missing_package(self, copy):
        formats = json.loads((copy / "receipt.json").read_text())["formats"]
        formats["hologram"] = formats.pop("pt2")
        formats["onnx"]["needs"] = "no_such_package"
        rewrite(copy, formats=formats)
        only(copy, "hologram", "onnx")
        verdict = recheck(copy)
        assert "does not know the format" in verdict.formats["hologram"].reason
        assert "pip install no_such_package" in verdict.formats["onnx"].reason

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"schema": 99}, "its schema is 99, this one reads 2; upgrade with: pip install"),
            ({"schema": 1}, "its schema is 1, this one reads 2; export again"),
            ({"files": {"../../../etc/passwd": {"bytes": 1, "sha256": "0"}}}, "not the name of a file"),
            ({"files": {}}, "no hash of"),
            ({"samples": float("nan")}, "NaN is no JSON number"),
            ({"formats": 3}, "AttributeError"),
            ({"describe": []}, "must be objects"),
        ],
    )
    def test_crafted_receipts(self, copy, changes, reason):
        rewrite(copy, **changes)
        with pytest.raises(ValueError, match=f"receipt.json cannot be read by this netcarve: .*{reason}"):
            recheck(copy)

    @pytest.mark.quick("not checked")
    @pytest.mark.parametrize(
        ("given", "state"), [([], "not checked"), (["--task", "{}/mine.py:task"], "same")]
    )
    def test_from_the_command_line(self, given, state, home, copy, tmp_path, capsys):
        only(copy, "onnx", "state")
        assert command(["verify", str(copy), "--json", *(word.format(home) for word in given)]) == 0
        found = json.loads(capsys.readouterr().out)["formats"]
        assert [found[name]["status"] for name in ("onnx", "state")] == ["same", state]
        (copy / "weights.safetensors").unlink()
        assert command(["verify", str(copy)]) == 1
        out = capsys.readouterr().out
        assert all(text in out for text in ("weights.safetensors: missing", "This is not what was exported"))
        assert command(["verify", str(tmp_path)]) == 2
        assert "is not an export (there is no receipt.json in it)" in capsys.readouterr().err


def test_without_samples(home, tmp_path):
    run = netcarve.load(home / "run", task=f"{home}/mine.py:task")
    receipt = run.export(1, tmp_path / "out", ["onnx"], samples=False)
    assert set(receipt.files) == {"model.onnx", "README.md"}
    assert "samples.safetensors" not in (tmp_path / "out" / "README.md").read_text()
    verdict = recheck(tmp_path / "out")
    assert verdict.ok
    assert "it loads; without samples" in verdict.formats["onnx"].reason
    told = netcarve.verify(tmp_path / "out", task=run.task)
    assert told.formats["onnx"].status == "same"
    assert told.formats["onnx"].score == receipt.score


class TestLoad:
    @pytest.mark.slow
    def test_pt2_needs_torch_alone(self, home, exported):
        code = BARE + (
            "import json, torch, netcarve\n"
            "model = netcarve.load(sys.argv[1])\n"
            "print(json.dumps([model(torch.ones(2, 1, 6, 6)).tolist(), 'mine' in sys.modules]))"
        )
        done = python(code, "/", exported)
        assert done.returncode == 0, done.stderr
        answer, theirs = json.loads(done.stdout)
        assert not theirs
        whole = netcarve.load(home / "run", task=f"{home}/mine.py:task").model(1)
        torch.testing.assert_close(torch.tensor(answer), whole(torch.ones(2, 1, 6, 6)))

    @pytest.mark.slow
    def test_state_needs_the_users_class(self, home, exported):
        code = BARE + (
            "import json, torch, netcarve\n"
            "model = netcarve.load(sys.argv[1], task=sys.argv[2])\n"
            "answer = model(torch.ones(2, 1, 6, 6)).tolist()\n"
            "print(json.dumps([type(model).__name__, model.training, answer]))"
        )
        done = python(code, "/", exported, home / "mine.py:task")
        assert done.returncode == 0, done.stderr
        name, training, answer = json.loads(done.stdout)
        assert (name, training) == ("Net", False)
        same = netcarve.load(exported)(torch.ones(2, 1, 6, 6))
        torch.testing.assert_close(torch.tensor(answer), same)

    def test_what_is_loaded_trains_as_the_network_does(self, home, exported):
        """The loss, its gradients and the statistics of one step: bitwise those of the user's class."""
        task = f"{home}/mine.py:task"
        networks = netcarve.load(exported), netcarve.load(exported, task=task)
        x, steps = torch.randn(5, 1, 6, 6), []
        for net in networks:
            assert not net.training
            before = net(x)
            loss = net.train()(x).square().mean()
            loss.backward()
            torch.optim.SGD(net.parameters(), 0.1).step()
            moved = net.state_dict()
            assert not net.eval().training
            assert not net(x).equal(before)
            steps.append((loss.detach(), {k: v for k, v in moved.items() if "tracked" not in k}))
        torch.testing.assert_close(steps[0], steps[1], rtol=0, atol=0)

    def test_code_that_a_folder_names_is_not_run(self, copy, tmp_path):
        (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef task(): pass\n")
        path = only(copy, "state") / "description.json"
        description = json.loads(path.read_text())
        description["rebuild"]["arguments"]["spec"] = f"{tmp_path}/evil.py:task"
        path.write_text(json.dumps(description))
        reseal(copy)
        with pytest.raises(ValueError, match=r"asks to run .*evil.py:task"):
            netcarve.load(copy, format="state")
        with pytest.raises(ValueError, match=r"asks to run .*evil.py:task"):
            load_state(copy)
        assert recheck(copy).formats["state"].status == "not checked"
        assert not (tmp_path / "ran").exists()

    def test_netcarves_other_functions_are_not_called(self, home, copy, tmp_path):
        """Some of them run what they are told; naming the task trusts that task alone."""
        (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef task(): pass\n")
        path = only(copy, "state") / "description.json"
        description = json.loads(path.read_text())
        description["rebuild"] = {
            "function": "netcarve.evaluators.resolve:resolve_task",
            "arguments": {"text": f"{tmp_path}/evil.py:task"},
        }
        path.write_text(json.dumps(description))
        with pytest.raises(ValueError, match=r"asks to call 'netcarve\.evaluators\.resolve"):
            load_state(copy)
        description["rebuild"] = {"function": "builtins:dict", "arguments": {}}
        path.write_text(json.dumps(description))
        reseal(copy)
        verdict = recheck(copy, task=f"{home}/mine.py:task").formats["state"]
        assert verdict.status == "fails"
        assert "asks to call 'builtins:dict'" in verdict.reason
        assert not (tmp_path / "ran").exists()

    def test_a_run_is_still_a_run(self, home):
        for path in (home / "run", home / "run" / "ledger.sqlite"):
            assert len(netcarve.load(path).trials) == 3

    def test_folders_that_are_neither(self, copy, tmp_path):
        with pytest.raises(RunError, match=r"neither a run .* nor an export"):
            netcarve.load(tmp_path)
        with pytest.raises(RunError, match="there is no run in"):
            netcarve.load(tmp_path / "none")
        (copy / "model.pt2").write_bytes((copy / "model.onnx").read_bytes())
        with pytest.raises(
            ValueError, match=r"model.pt2 is not the file that was exported; see netcarve verify"
        ):
            netcarve.load(copy)
        with pytest.raises(
            ValueError, match=r"holds pt2, onnx, state, int8, not 'onnx'; open model.onnx with"
        ):
            netcarve.load(copy, format="onnx")


def test_code_in_a_program_is_neither_loaded_nor_checked(copy):
    with zipfile.ZipFile(copy / "model.pt2", "a") as archive:
        archive.writestr("model/x/model.so", b"x")
    reseal(only(copy, "pt2"))
    with pytest.raises(ValueError, match=r"does not need; if you trust it, open it with torch.export.load"):
        netcarve.load(copy)
    assert recheck(copy).formats["pt2"].status == "fails"


@pytest.mark.slow
def test_a_network_that_was_trained_further_is_exported_with_the_same_proof(home, tmp_path):
    run = netcarve.load(home / "run")
    ((x,), _, y) = run.task.batches[0]
    tuned = run.model(1).train()
    optimiser = torch.optim.SGD(tuned.parameters(), lr=0.5)
    nn.functional.cross_entropy(tuned(x), y).backward()
    optimiser.step()
    receipt = run.export(1, tmp_path / "tuned", ("pt2", "state"), model=tuned)
    wanted = tuned.eval()(x)
    assert not torch.allclose(wanted, run.model(1)(x), atol=1e-3)
    torch.testing.assert_close(netcarve.load(tmp_path / "tuned")(x), wanted, rtol=1e-4, atol=1e-5)
    assert receipt.score == pytest.approx(float((wanted.argmax(1) == y).float().mean()))
    assert "macs" in receipt.describe["scores"]
    assert "accuracy" not in receipt.describe["scores"]  # of other weights
    assert "trained further than the trial" in (tmp_path / "tuned" / "README.md").read_text()
    assert recheck(tmp_path / "tuned").ok
    with pytest.raises(RunError, match=r"not the network of trial 1.*not \(.*run\.model\(1\)"):
        run.export(1, tmp_path / "other", ("pt2",), model=run.task.model)
    assert not (tmp_path / "other").exists()


class TestCard:
    def test_it_says_what_the_receipt_says(self, exported):
        text, receipt = (exported / "README.md").read_text(), Receipt.load(exported)
        assert f"{100 * receipt.test.value:.2f} %" in text
        assert f"{100 * receipt.figure.low:.2f} % to {100 * receipt.figure.high:.2f} %" in text
        assert receipt.test.samples == 20
        assert receipt.figure.samples == 40
        assert receipt.formats["int8"].test is not None
        assert receipt.formats["pt2"].test is None
        assert "McNemar" in text or "right and wrong where" in text
        assert "`tiny <b>'net'</b>`, trial 1" in text  # markup in names is quoted

    @pytest.mark.slow
    def test_its_lines_run(self, exported):
        (code,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
        assert len([line for line in code.splitlines() if line]) <= 5
        done = python(BARE + code + "print(tuple(outputs.shape))", exported)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "(1, 3)"

    def test_the_run_and_its_report_keep_the_test_figure(self, home, exported):
        run, test = netcarve.load(home / "run"), Receipt.load(exported).test
        assert run.info["test"]["1"]["figure"]["value"] == test.value
        lines = dict(about(run))
        assert lines["Test data"].startswith(f"trial 1: accuracy {100 * test.value:.2f} % (")
        run.info["test"] = {"1": {"metric": "accuracy", "figure": {"value": "<b>"}}, "2": 3}
        assert "Test data" not in dict(about(run))


class TwoInputs(nn.Module):
    def forward(self, tokens, *, scale, flag=True):
        return tokens * scale if flag else tokens


@pytest.mark.slow
def test_a_call_with_keywords_and_constants_is_written_out(tmp_path):
    from netcarve.export import export

    call = ((torch.ones(2, 3, dtype=torch.int64),), {"scale": torch.rand(2, 3), "flag": True})
    given = {"example_args": call[0], "example_kwargs": call[1], "inputs": [call], "formats": ["pt2"]}
    export(TwoInputs(), directory=tmp_path / "out", **given)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "model(torch.zeros(1, 3, dtype=torch.int64), scale=torch.zeros(1, 3), flag=True)" in text
    assert "No metric was given." in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code.replace('"."', repr(str(tmp_path / "out"))), "card", "exec"), {})
