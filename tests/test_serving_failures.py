"""Stages that die, hang or are left alone: named, restarted where asked, and never left behind."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from netcarve.deployment.serving import Deployment, StageError, tcp
from netcarve.export.stages import write_stages
from netcarve.model.capture import capture
from netcarve.model.stages import find_cuts, functionalise, split
from torch import nn


def make(after=("1", "3")):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    network = functionalise(capture(net, torch.zeros(2, 8)))
    cuts = {c.name.partition(":")[0]: c for c in find_cuts(network)}
    return net, split(network, [cuts[name] for name in after])


STREAM = [torch.full((1, 8), float(i)) for i in range(40)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Network and stages, which are exported once for all deployments: most of the time that one takes."""
    net, stages = make()
    folder = tmp_path_factory.mktemp("stages")
    write_stages(stages, folder, formats=("onnx",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tcp, "write_stages", lambda of, to, formats: copied(folder, to))
        yield net, stages


def copied(folder, to):
    shutil.copytree(folder, to, dirs_exist_ok=True)


def gone(pids, seconds=10.0):
    """Whether all processes end within so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(Path(f"/proc/{pid}").exists() and state(pid) != "Z" for pid in pids):
            return True
        time.sleep(0.02)
    return False


def state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def hurting(pid, how, at):
    """The stream, in the middle of which a process is hurt."""
    for number, one in enumerate(STREAM):
        if number == at:
            os.kill(pid, how)
        yield one


def assert_answered(got, net):
    """Every input once: with these weights no two inputs have the same answer."""
    want = [net(x) for x in STREAM]
    assert len({tuple(w.flatten().tolist()) for w in want}) == len(STREAM)
    assert len(got) == len(want)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(got, want, strict=True))


pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")


def test_a_stage_that_is_killed_ends_the_stream_with_its_name_and_all_others_with_it(made) -> None:
    _, stages = made
    with Deployment(stages, runtime="onnx") as deployment:
        pids = deployment.pids
        with pytest.raises(StageError, match=r"stage 1\S* was killed by SIGKILL; \d+ inputs were") as found:
            list(deployment.run(hurting(pids[1], signal.SIGKILL, 20)))
        assert found.value.stage == stages[1].name
        assert gone(pids)


def test_a_stage_that_hangs_is_found_by_its_silence(made) -> None:
    _, stages = made
    with Deployment(stages, runtime="onnx", timeout=1.0) as deployment:
        pids = deployment.pids
        with pytest.raises(StageError, match="does not answer: it is stopped") as found:
            list(deployment.run(hurting(pids[2], signal.SIGSTOP, 20)))
        assert found.value.stage == stages[2].name
        assert gone(pids)


def test_after_a_restart_no_input_is_lost_or_answered_twice(made) -> None:
    net, stages = made
    with Deployment(stages, runtime="onnx", timeout=1.5, restart=True) as deployment:
        seen = set(deployment.pids)
        for how, which in ((signal.SIGKILL, 0), (signal.SIGSTOP, 1), (signal.SIGKILL, 2)):
            pids = deployment.pids
            assert_answered(list(deployment.run(hurting(pids[which], how, 20))), net)
            assert deployment.record.restarts == 1
            same = [a == b for a, b in zip(pids, deployment.pids, strict=True)]
            assert same == [k != which for k in range(3)]  # the others live on
            seen.update(deployment.pids)
        assert_answered(list(deployment.run(STREAM)), net)
        assert deployment.record.restarts == 0
    assert len(seen) == 6
    assert gone(seen)


def test_what_kills_its_stage_again_and_again_ends_the_stream(made) -> None:
    _, stages = made
    with Deployment(stages, runtime="onnx", restart=True) as deployment:
        first, over = deployment.pids[1], threading.Event()

        def kill_each() -> None:
            killed = set()
            while not over.is_set():
                for pid in deployment.pids[1:2]:
                    if pid not in killed:
                        killed.add(pid)
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.001)

        def inputs():
            yield STREAM[0]
            os.kill(first, signal.SIGSTOP)  # so that the next input cannot be answered before the killing
            threading.Thread(target=kill_each, daemon=True).start()
            yield STREAM[1]

        with pytest.raises(StageError, match=r"was killed by SIGKILL|ended") as found:
            list(deployment.run(inputs()))
        over.set()
        assert found.value.stage == stages[1].name


SCRIPT = """
import sys, time
sys.path.insert(0, {folder!r})
from test_serving_failures import STREAM, copied, make
from netcarve.deployment.serving import Deployment, tcp
tcp.write_stages = lambda of, to, formats: copied({stages!r}, to)
with Deployment(make()[1], runtime="onnx") as deployment:
    answers = deployment.run(x for _ in range(10**9) for x in STREAM)
    next(answers)
    print(*deployment.pids, flush=True)
    for _ in answers:
        pass
"""


@pytest.mark.slow
def test_a_driver_that_is_killed_takes_its_stages_with_it(made, tmp_path) -> None:
    tcp.write_stages(made[1], tmp_path, formats=("onnx",))
    script = SCRIPT.format(folder=str(Path(__file__).parent), stages=str(tmp_path))
    pipe = subprocess.PIPE
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=pipe, stderr=pipe, text=True)
    pids = [int(pid) for pid in driver.stdout.readline().split()]
    assert len(pids) == 3, driver.stderr.read()
    assert not gone(pids, 0.1)
    driver.kill()
    driver.communicate(timeout=30)
    assert gone(pids)


def test_ctrl_c_leaves_nothing_behind(made) -> None:
    _, stages = made
    pids = []

    def interrupted() -> None:
        with Deployment(stages, runtime="onnx") as deployment:
            pids.extend(deployment.pids)
            assert all(os.getsid(pid) == pid for pid in pids)  # what a terminal sends does not reach them
            for number, _ in enumerate(deployment.run(x for _ in range(10**6) for x in STREAM)):
                if number == 20:
                    signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert gone(pids)


def test_a_stage_that_does_not_start_says_why(made, monkeypatch) -> None:
    _, stages = made
    monkeypatch.setattr("netcarve.deployment.serving.tcp.START_SECONDS", 0.0)
    with pytest.raises(StageError, match="within 0 s") as found, Deployment(stages, runtime="onnx"):
        pass
    assert found.value.stage == stages[0].name


@pytest.mark.slow
@pytest.mark.ray
def test_stages_are_ray_actors_too_named_and_restarted() -> None:
    net, stages = make(("1",))
    with Deployment(stages, transport="ray", runtime="onnx", restart=True, timeout=30) as deployment:
        actors = deployment._transport._actors
        pids = [deployment._transport._ray.get(a.__ray_call__.remote(lambda _: os.getpid())) for a in actors]
        assert len(set(pids)) == 2
        assert_answered(list(deployment.run(hurting(pids[1], signal.SIGKILL, 20))), net)
        assert deployment.record.restarts == 1
        assert_answered(list(deployment.run(STREAM)), net)
        boundaries = deployment.record.boundaries
        assert [b.payload_bytes for b in boundaries] == [40 * n for n in (32, 64, 12)]
        assert [b.wire_bytes for b in boundaries] == [None] * 3
        deployment._restart = False
        with pytest.raises(StageError, match="ActorDiedError") as found:
            list(deployment.run(hurting(pids[0], signal.SIGKILL, 20)))
        assert found.value.stage == stages[0].name
    assert gone(pids)
