"""The ledger's place: folders that vanish, locks that are late, rights that lack, disks that are full."""

import fcntl
import os
import shutil
import subprocess
import sys

import pytest
from netcarve import Ledger, Trial
from netcarve.results import LedgerError
from netcarve.testing import toy_space

SPACE = toy_space()
SETTINGS = {"seed": 3, "choices": [[c.name, list(c.options)] for c in SPACE.choices]}
TRIALS = [Trial(n, SPACE.candidate([n % 3] * len(SPACE)), {"accuracy": 0.1 * n + 0.2}) for n in range(3)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "ledger.db"


@pytest.fixture
def ledger(path):
    path.parent.mkdir()
    with Ledger(path, write=True) as ledger:
        ledger.save_settings(SETTINGS)
        yield ledger


def fill(ledger, trials=TRIALS):
    ledger.propose([(t.number, t.proposal) for t in trials])
    ledger.record(trials)


def refusal(call, *words):
    with pytest.raises(LedgerError) as caught:
        call()
    assert all(word in str(caught.value) for word in words)
    return str(caught.value)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_disappears_is_noticed_and_everything_saved_beside_it(path, ledger, replaced):
    fill(ledger, TRIALS[:2])
    shutil.rmtree(path.parent)
    if replaced:
        path.parent.mkdir()
        with Ledger(path, write=True) as other:
            other.save_settings({"seed": 99})
    message = refusal(lambda: fill(ledger, TRIALS[2:]), "was removed, moved or replaced", "--resume --out")
    saved = path.parent.with_name(f"{path.parent.name}-saved")
    assert str(saved) in message
    ledger.record(TRIALS)  # told once; from now on it goes on there
    ledger.note("status", "interrupted")
    ledger.close()
    with Ledger(saved / path.name) as reader:
        assert (reader.settings, reader.trials(), reader.info) == (
            SETTINGS,
            TRIALS,
            {"status": "interrupted"},
        )
    assert path.exists() == replaced
    if replaced:
        with Ledger(path) as other:
            assert (other.settings, other.trials()) == ({"seed": 99}, [])


def test_a_lock_of_a_discarded_ledger_is_worth_nothing(path, ledger, monkeypatch):
    """Whoever opened the lock file before the ledger was discarded, and locks it afterwards, looks again."""
    taken = []

    def late(file, flags, flock=fcntl.flock):
        if not taken:  # between opening the file and locking it
            taken.append(file)
            ledger.discard()
            path.parent.mkdir()
        return flock(file, flags)

    monkeypatch.setattr(fcntl, "flock", late)
    refusal(lambda: Ledger(path, write=True, create=False), "there is no ledger")
    assert list(path.parent.iterdir()) == []


def test_a_log_without_its_ledger_is_not_thrown_away(path, ledger):
    fill(ledger)
    for size in (0, None):
        other = path.with_name(f"copy-{size}")
        if size == 0:
            other.touch()
        shutil.copy(f"{path}-wal", f"{other}-wal")
        for write in (False, True):
            words = ("its -wal file is not",) if write or size == 0 else ("there is no ledger",)
            refusal(lambda other=other, write=write: Ledger(other, write=write), *words)
        assert os.path.getsize(f"{other}-wal") == os.path.getsize(f"{path}-wal")


def as_nobody(code, *arguments):
    """Run code without the rights of root, which no permission bit can stop (imports come before)."""
    drop = "import fcntl, os, sys\nif os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
    setup = "from netcarve import Ledger\nfrom netcarve.results import LedgerError\n"
    return subprocess.run(
        [sys.executable, "-c", setup + drop + code, *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip


@pytest.fixture
def readonly(ledger):
    """The closed ledger's path in a folder that nobody may write to."""
    fill(ledger)
    ledger.close()
    (ledger.path.parent / "ledger.db.lock").unlink()
    for parent in ledger.path.parents[1:6]:
        if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    ledger.path.chmod(0o444)
    ledger.path.parent.chmod(0o555)
    yield ledger.path
    ledger.path.parent.chmod(0o755)


def test_a_read_only_folder_can_be_read_not_written(readonly):
    done = as_nobody("print(len(Ledger(sys.argv[1]).trials()))", readonly)
    assert (done.stdout, done.stderr) == ("3\n", "")
    done = as_nobody("Ledger(sys.argv[1], write=True)", readonly)
    assert "LedgerError: cannot write the ledger" in done.stderr
    done = as_nobody("Ledger(sys.argv[1], write=True)", readonly.parent / "new.db")
    assert "LedgerError: cannot write the ledger" in done.stderr


def test_a_full_disk_loses_nothing_recorded(ledger):
    fill(ledger)
    # SQLite's own limit on the pages of the file stands for the disk's.
    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    more = [Trial(n, TRIALS[0].candidate, error="a long story " * 200) for n in range(3, 20)]
    ledger.propose([(t.number, t.proposal) for t in more])
    refusal(lambda: ledger.record(more), "no room on disk", "what was recorded is kept")
    assert ledger.trials() == TRIALS
    ledger._db.execute(f"PRAGMA max_page_count = {pages + 1000}")
    ledger.record(more)
    assert ledger.trials() == TRIALS + more


def test_a_missing_file(tmp_path):
    refusal(lambda: Ledger(tmp_path / "l.db"), "there is no ledger", "l.db")
    refusal(lambda: Ledger(tmp_path / "l.db", write=True, create=False), "there is no ledger")
    refusal(lambda: Ledger(tmp_path), "is a folder")
    assert list(tmp_path.iterdir()) == []  # a refusal leaves nothing behind
    refusal(lambda: Ledger(tmp_path / "no" / "l.db", write=True), "cannot write", "local folder that exists")
