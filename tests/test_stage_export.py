"""Exported stages run where there is no netcarve: by pipes, by TCP, by either runtime, and are the whole."""

import hashlib
import json
import subprocess
import sys
from contextlib import ExitStack

import netcarve
import pytest
import torch
from netcarve.__main__ import run as command
from netcarve.deployment.serving import Deployment, StageError
from netcarve.export.stages import write_stages
from netcarve.model.capture import capture
from netcarve.model.stages import find_cuts, functionalise, split
from netcarve.standalone import wire
from netcarve.standalone.stage import tensor_bytes
from torch import nn


class Net(nn.Module):
    """Images; two tensors cross, one of them twice as it is; a length that depends on the batch, twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        skip = self.first(x)
        rows = self.second(skip).permute(0, 2, 3, 1).reshape(-1, 8)  # [batch * 36, 8]
        return self.last(rows).reshape(x.shape[0], -1), skip.mean((1, 2, 3))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    torch.manual_seed(0)
    net = Net().eval()
    network = functionalise(capture(net, torch.randn(2, 3, 6, 6)))
    cuts = find_cuts(network)
    stages = split(network, [c for c in cuts if c.name in ("second", "last")])
    folder = tmp_path_factory.mktemp("stages")
    files = write_stages(stages, folder, devices=["edge", "edge", "server"])
    return net, stages, folder, files


def test_the_manifest_tells_order_ports_devices_and_hashes(made) -> None:
    _, stages, folder, files = made
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [s["name"] for s in manifest["stages"]] == [s.name for s in stages]
    assert [s["device"] for s in manifest["stages"]] == ["edge", "edge", "server"]
    for about, stage in zip(manifest["stages"], stages, strict=True):
        for key, ports in (("inputs", stage.inputs), ("outputs", stage.outputs)):
            assert [(p["name"], f"torch.{p['dtype']}") for p in about[key]] == [
                (p.name, str(p.dtype)) for p in ports
            ]
            assert [wire.WirePort.read(p).bytes(7) for p in about[key]] == [p.bytes(7) for p in ports]
    assert any(k > 1 for stage in stages for port in stage.inputs for k, _ in port.sizes)  # 36 x batch
    assert set(files) == {path.name for path in folder.iterdir()}
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert set(manifest["sha256"]) == set(files) - {"manifest.json"}


@pytest.mark.quick("kinds1")
@pytest.mark.parametrize("kinds", [("pt2", "pt2", "onnx"), ("onnx", "onnx", "onnx")])
def test_fresh_processes_chained_by_pipes_equal_the_whole_at_any_batch_size(made, kinds, tmp_path) -> None:
    net, stages, folder, _ = made
    batches = [torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(n)) for n in (1, 4, 2)]
    with (tmp_path / "in").open("wb") as file:
        for number, x in enumerate(batches):
            wire.write_frame(file.fileno(), wire.Frame(wire.DATA, number, len(x), [tensor_bytes(x)]))
    chain = " | ".join(
        f"'{sys.executable}' stage.py stage-{k}.{kind}" for k, kind in enumerate(kinds, start=1)
    )
    done = subprocess.run(
        f"set -o pipefail; cat '{tmp_path}/in' | {chain} > '{tmp_path}/out'",
        shell=True,
        executable="/bin/bash",
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = wire.Expected(
        tuple(wire.WirePort(p.name, "float32", 4, p.sizes) for p in stages[-1].outputs), 1, None
    )
    with (tmp_path / "out").open("rb") as file:
        for number, x in enumerate(batches):
            frame = wire.read_frame(file.fileno(), expected)
            assert (frame.kind, frame.number, frame.samples) == (wire.DATA, number, len(x))
            with torch.no_grad():
                wanted = net(x)
            for part, want in zip(frame.body, wanted, strict=True):
                got = torch.frombuffer(part, dtype=torch.float32).reshape(want.shape)
                assert float((got - want).abs().max()) <= 1e-5 * float(want.abs().max())
        assert wire.read_frame(file.fileno(), expected) is None


def test_an_onnx_stage_needs_neither_torch_nor_netcarve(made) -> None:
    _, _, folder, _ = made
    code = (
        "import sys; sys.path.insert(0, '.'); import stage; stage.RunningStage('stage-1.onnx');"
        "print([m for m in ('torch', 'netcarve') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_stage_refuses_what_is_not_for_it(made, tmp_path) -> None:
    _, _, folder, _ = made
    for content, message in (
        (b"x" * 40, "a frame begins with"),
        (wire.HEADER.pack(wire.MAGIC, wire.DATA, 1, 0, 2, 8), "bytes for 2 samples"),
    ):
        done = subprocess.run(
            [sys.executable, "stage.py", "stage-1.onnx"],
            cwd=folder,
            input=content,
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, b"")
        assert message in done.stderr.decode()
    done = subprocess.run(
        [sys.executable, str(folder / "stage.py"), str(folder / "stage-9.pt2")],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert b"knows no stage in stage-9.pt2" in done.stderr


def test_stages_that_listen_elsewhere_are_driven_over_tcp(made, monkeypatch) -> None:
    net, stages, folder, _ = made
    monkeypatch.setenv(wire.TOKEN, "between us")
    batches = [torch.randn(n, 3, 6, 6) for n in (1, 3, 2)]
    with ExitStack() as running:
        processes = [
            running.enter_context(
                subprocess.Popen(
                    [sys.executable, "stage.py", f"stage-{k}.onnx", "--listen", "127.0.0.1:0"],
                    cwd=folder,
                    stdout=subprocess.PIPE,
                )
            )
            for k in (1, 2, 3)
        ]
        for process in processes:
            running.callback(process.kill)
        hosts = [f"127.0.0.1:{json.loads(process.stdout.readline())['port']}" for process in processes]
        for _ in range(2):  # they outlive their driver
            with Deployment(stages, hosts=hosts) as deployment:
                for got, x in zip(deployment.run(batches), batches, strict=True):
                    with torch.no_grad():
                        for a, b in zip(got, net(x), strict=True):
                            assert torch.allclose(a, b, atol=1e-5)
        with (
            Deployment(stages, hosts=hosts[::-1]) as wrong,
            pytest.raises(StageError, match="should be: it is"),
        ):
            list(wrong.run(batches))
        monkeypatch.setenv(wire.TOKEN, "guessed")
        with Deployment(stages, hosts=hosts) as strange, pytest.raises(StageError, match="another token"):
            list(strange.run(batches))
        assert all(process.poll() is None for process in processes)


# -- of a run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()
    )
    net.append(nn.Linear(8 * 16, 4))
    x, y = torch.randn(40, 3, 8, 8), torch.arange(40) % 4
    task = netcarve.Task(net, x[:1], (x, y), name="tiny")
    space = netcarve.trace(task.model, task.example).space("prune", "splits", ratios=2, importance="l1")
    folder = tmp_path_factory.mktemp("run") / "a"
    return netcarve.sweep(
        task, space, "random", ["accuracy", "macs"], trials=6, workers=0, seed=3, out=folder
    )


def cut_trial(run):
    """A trial that is really two stages, and pruned."""
    found = [t.number for t in run.trials if t.scores.get("stages") == 2 and t.scores["macs"]]
    assert found, [t.scores.get("stages") for t in run.trials]
    return found[-1]


@pytest.mark.slow
def test_a_trials_stages_are_exported_and_proven(run, tmp_path) -> None:
    number = cut_trial(run)
    receipt = run.export(number, tmp_path / "out", ["stages"])
    assert receipt.formats["stages"].max_relative_difference <= 1e-5
    assert {"stage-1.pt2", "stage-2.onnx", "stage.py", "wire.py", "manifest.json"} <= set(receipt.files)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [s["device"] for s in manifest["stages"]] == ["device1", "device2"]


@pytest.mark.slow
def test_a_trial_is_deployed_with_its_traffic_as_predicted(run) -> None:
    number = cut_trial(run)
    model = run.model(number)
    inputs = [args for args, _, _ in run.task.batches]
    with run.deploy(number, runtime="onnx") as deployment:
        for got, args in zip(deployment.run(inputs), inputs, strict=True):
            with torch.no_grad():
                assert torch.allclose(got, model(*args), atol=1e-5)
    predicted = run.space.costs([run.space.from_values(run[number].candidate.values)])["traffic_kb"].iloc[0]
    assert deployment.record.traffic_kb == pytest.approx(predicted)


def test_the_command_prints_what_was_measured_beside_what_was_predicted(run, capsys, monkeypatch) -> None:
    number = cut_trial(run)
    monkeypatch.setattr("netcarve.engine.load", lambda path, task=None: run)  # the task of a test has no name
    arguments = ["serve", str(run.path), str(number), "--inputs", "40", "--runtime", "onnx"]
    assert command([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["score"] == pytest.approx(run[number].scores["accuracy"])
    assert found["whole_score"] == pytest.approx(found["score"])
    assert found["difference"] <= 1e-5
    assert found["measured"]["traffic_kb"] == pytest.approx(found["predicted"]["traffic_kb"])
    assert found["inputs"] == 40
    assert command(["serve", str(run.path), "99"]) == 2
    assert "there is no trial 99" in capsys.readouterr().err
    monkeypatch.setattr("netcarve.engine.load", lambda path, task=None: pytest.fail("refused too late"))
    for wrong in (["--transport", "udp"], ["--runtime", "tvm"]):
        assert command([*arguments, *wrong]) == 2
        assert f"{wrong[0]} must be one of" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_says_that_a_trial_is_not_cut(run, capsys, monkeypatch) -> None:
    monkeypatch.setattr("netcarve.engine.load", lambda path, task=None: run)
    (number, *_) = [t.number for t in run.trials if t.scores.get("stages") == 1]
    assert command(["serve", str(run.path), str(number), "--inputs", "3", "--runtime", "onnx"]) == 0
    assert f"trial {number} has no cut: one stage, 3 inputs of 1 sample\n" in capsys.readouterr().out
