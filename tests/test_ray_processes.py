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
    pool.submit([(i, space.baseline) for i in range(5)])
    done = 0
    while done < 5:
        done += len(pool.finished())
    print("five", flush=True)
    if sys.argv[1] == "normal":
        pool.submit([(5, space.candidate([2]))])  # kills its worker
        while not pool.finished():
            pass
        time.sleep(2)  # Ray would tell of it meanwhile
    if sys.argv[1] == "hang":
        pool.submit([(i, space.candidate([1])) for i in range(5, 9)])
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
