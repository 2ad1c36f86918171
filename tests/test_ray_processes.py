"""Ray as a newcomer's script starts it: quiet, offline, and gone afterwards, however the script ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest


def test_a_cluster_that_does_not_answer_is_refused_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        script = (
            "from netcarve.evaluators import PoolError\n"
            "from netcarve.evaluators.ray_session import RaySession\n"
            f"try:\n    RaySession(1, address={address!r})\nexcept PoolError as error:\n    print(error)\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(f"no Ray cluster answers at {address}: ConnectionRefusedError"), done.stderr


# -- as a user's script, without a __main__ guard

SCRIPT = """
import os, sys, time
from netcarve.evaluators import Job, RayPool
from netcarve.results import Proposal
from netcarve.spaces import Choice, Space

class Scale:
    factor = 2.0

def evaluate(task, model, candidate):
    if candidate["seconds"] < 0:
        os._exit(1)
    time.sleep(candidate["seconds"])
    return {"score": Scale.factor}

space = Space([Choice("seconds", (0.0, 1000, -1))])
pool = RayPool(Job(None, space, (evaluate,)), workers=2)
with pool:
    import ray
    print(ray._private.worker._global_node.get_temp_dir_path(), flush=True)
    pool.submit([(i, Proposal(space.baseline)) for i in range(5)])
    done = 0
    while done < 5:
        done += len(pool.finished())
    print("five", flush=True)
    if sys.argv[1] == "normal":
        pool.submit([(5, Proposal(space.candidate([2])))])  # kills its worker
        while not pool.finished():
            pass
        time.sleep(2)  # Ray would tell of it meanwhile
    if sys.argv[1] == "hang":
        pool.submit([(i, Proposal(space.candidate([1]))) for i in range(5, 9)])
        pool.finished()
"""


def _left(mark: str) -> list[str]:
    """Living processes with ``mark`` in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.mark.quick("normal")
@pytest.mark.ray
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
@pytest.mark.parametrize("end", ["normal", "SIGINT", "SIGKILL"])
def test_a_script_is_quiet_and_leaves_nothing_behind(end: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    mark = f"NETCARVE_TEST={tmp_path}"
    # A long folder for temporary files, and a home that cannot be written.
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "NETCARVE_TEST": str(tmp_path),
        "HOME": "/proc/nowhere",
        "TMPDIR": str(tmp_path),
    }
    process = subprocess.Popen(
        [sys.executable, "-u", "script.py", "normal" if end == "normal" else "hang"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    folder = process.stdout.readline().strip()
    assert Path(folder).is_dir(), process.communicate()
    assert process.stdout.readline() == "five\n", process.communicate()
    if end == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    elif end == "SIGKILL":
        assert len(_left(mark)) > 4
        process.kill()
    said, errors = process.communicate(timeout=60)
    if end == "normal":
        assert (process.returncode, said, errors) == (0, "", "")
    if end == "SIGINT":
        assert errors.strip().splitlines()[-1] == "KeyboardInterrupt"
        assert errors.count("Traceback") == 1
    # What a killed driver leaves ends by itself, on a busy machine not at once.
    deadline = time.monotonic() + (30 if end == "SIGKILL" else 5)
    while (left := _left(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    assert not Path(folder).exists()


CLUSTER = """
import logging, time
from netcarve.evaluators.ray_session import _set_environment

_set_environment(local=False)
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
cluster.add_node(num_cpus=1)
lost = cluster.add_node(num_cpus=1)
logging.basicConfig(level=logging.INFO, format="%(message)s")
from netcarve.evaluators import Job, RayPool, ray_pool
from netcarve.results import Proposal
from netcarve.spaces import Choice, Space

ray_pool.PLACE_SECONDS = 3.0

def evaluate(task, model, candidate):
    time.sleep(0.3)
    return {"score": 1.0}

space = Space([Choice("only", (0,))])
who = []
with RayPool(Job(None, space, (evaluate,)), workers=2, address=cluster.address) as pool:
    def score(goal):
        count = 0
        while not goal(count):
            pool.submit([(len(who) + k, Proposal(space.baseline)) for k in range(4)])
            wanted = len(who) + 4
            while len(who) < wanted:
                who.extend(o.worker for o in pool.finished() if not o.error)
            count += 4
    score(lambda n: len(set(who)) == 2)
    cluster.remove_node(lost, allow_graceful=False)
    score(lambda n: n >= 20)  # each is scored by somebody, in the end by one worker
    assert len(set(who[-4:])) == 1
    cluster.add_node(num_cpus=1)
    score(lambda n: len(set(who)) == 3)
print("all scored", flush=True)
cluster.shutdown()
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_cluster_that_loses_a_machine_goes_on_and_takes_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(CLUSTER)
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["all scored"], done.stderr  # nothing of Ray's own
    assert "1 of 2 workers score: the cluster has no room for the others" in done.stderr
    assert "2 of 2 workers score again" in done.stderr


def test_folders_of_killed_sessions_are_swept_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    from netcarve.evaluators import ray_guard

    living, dead, new, old, foreign = (tmp_path / f"{ray_guard.PREFIX}{k}" for k in range(5))
    for folder in (living, dead, new, old):
        folder.mkdir()
    ray_guard.hold(str(dead)).close()
    (tmp_path / "theirs").mkdir()
    foreign.symlink_to(tmp_path / "theirs")
    os.utime(old, (0, 0))
    with ray_guard.hold(str(living)):
        ray_guard.sweep(str(tmp_path))
    assert [p.exists() for p in (living, dead, new, old, foreign)] == [True, False, True, False, True]


def test_a_cluster_that_says_nothing_is_refused_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    from netcarve.evaluators import PoolError, ray_session

    monkeypatch.setattr(ray_session, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(PoolError, match=rf"no Ray cluster answers at {address}: TimeoutError.*ray start"):
            ray_session.check_reachable(address)


def test_the_commands_ask_for_the_cluster_before_any_work(call, tmp_path: Path) -> None:
    """Neither the task nor the run is looked for: there are none."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        for command in (
            ("sweep", "none.py:task", "--workers", "1"),
            ("serve", str(tmp_path / "none"), "1", "--transport", "ray"),
        ):
            done = call(*command, "--address", address)
            assert (done.code, done.out) == (1, "")
            assert done.err.startswith(f"error: no Ray cluster answers at {address}: ConnectionRefusedError")
