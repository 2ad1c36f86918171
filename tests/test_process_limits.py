"""Processes that open files from elsewhere: a deadline, a limit on memory, and no life after their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from netcarve.export import ExportError, FileRecord
from netcarve.export.process import FileCalls, ask
from netcarve.standalone import limits

STANDALONE = str(Path(limits.__file__).parent)
IMPORT = f"import sys; sys.path.insert(0, {STANDALONE!r}); import limits; "
# In C and without a look at signals or other threads, for hours: what a crafted file would have Python do.
BURN = f"{IMPORT}limits.tie(); print(1, flush=True); 9**9**9"
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits as the kernel of Linux has them")


def ended(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


@linux
def test_a_process_ends_with_its_killed_parent_in_the_middle_of_a_computation():
    command = [sys.executable, "-c", PARENT, BURN]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert not ended(child, 0.3)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    try:
        assert ended(child, 10)
    finally:
        if not ended(child, 0):
            os.kill(child, signal.SIGKILL)


def limited(code: str, cpu: int, memory: int) -> subprocess.CompletedProcess:
    code = f"{IMPORT}limits.limit({cpu}, {memory}); {code}"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )


@linux
def test_memory_and_time_are_limited():
    assert "MemoryError" in limited("bytearray(3 << 30)", 60, 1 << 30).stderr
    assert limited("bytearray(3 << 20)", 60, 1 << 30).returncode == 0
    assert limited("9**9**9", 1, 1 << 30).returncode in (-signal.SIGXCPU, -signal.SIGKILL)


@linux
def test_a_file_that_does_not_answer_is_given_up(tmp_path):
    code = tmp_path / "format.py"
    code.write_text("def load(folder, structure, threads):\n    print('x' * 10**6)\n    return 9**9**9\n")
    fake = SimpleNamespace(__file__=str(code), STANDALONE=True)
    start = time.monotonic()
    with pytest.raises(ExportError, match="has not answered in a fresh process for 3 s"):
        ask("odd", fake, tmp_path, FileCalls("", [], []), tmp_path, seconds=3)
    assert time.monotonic() - start < 30


@linux
def test_pipes_and_devices_are_no_files_of_an_export(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device", "missing"):
        with pytest.raises(OSError):
            FileRecord.of(tmp_path / name)
