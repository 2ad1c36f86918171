"""`netcarve list`, `netcarve salvage` and tables as files, as a user types them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from netcarve.__main__ import run as netcarve
from netcarve.engine import load, sweep
from netcarve.spaces import Choice, Space

SPACE = Space([Choice(name, (0.0, 0.25, 0.5, 0.75)) for name in ("a", "b", "c")])


def scored(task, model, candidate) -> dict[str, float]:
    if candidate.indices == (0, 0, 1):
        raise ArithmeticError("not this one")
    macs = float(np.prod(4 - np.array(candidate.indices)))
    return {"accuracy": 1.0 - 0.01 * sum(candidate.indices) ** 2, "macs": macs}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, trials in (("9", 12), ("10", 64)):
        out = f"runs/space-grid-{number}"
        sweep(
            None, SPACE, "grid", ("accuracy", "macs"), trials=trials, workers=0, out=out, evaluators=[scored]
        )
    return tmp_path / "runs"


def test_list(runs, capsys):
    assert netcarve(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["runs"]
    assert [r["path"] for r in listed] == ["runs/space-grid-9", "runs/space-grid-10"]  # as people count
    for r in listed:
        made = load(r["path"])
        assert (r["trials"], r["front"], r["failed"]) == (
            len(made),
            len(made.front),
            sum(t.failed for t in made.trials),
        )
        assert r["hypervolume"] == made.front.hypervolume()
        assert r["status"] == "finished"
    assert listed[1]["failed"] == 1
    assert netcarve(["list"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out if "grid" in line] == ["runs/space-grid-9", "runs/space-grid-10"]


def test_a_damaged_run_is_listed_with_its_reason_and_salvaged(runs, capsys):
    ledger = runs / "space-grid-10" / "ledger.sqlite"
    data = bytearray(ledger.read_bytes())
    data[:64] = bytes(64)
    ledger.write_bytes(data)
    whole = load("runs/space-grid-9")
    assert netcarve(["list"]) == 0
    shown = capsys.readouterr()
    assert "space-grid-9" in shown.out
    assert "space-grid-10" not in shown.out
    assert "runs/space-grid-10" in shown.err
    assert len(shown.err.splitlines()) == 1

    assert netcarve(["front", "runs/space-grid-10"]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert netcarve(["salvage", "runs/space-grid-10"]) == 0
    assert "Saved 64 trials of 64 candidates" in capsys.readouterr().out
    saved = load("runs/space-grid-10-salvaged")
    assert saved.trials[:12] == [t for t in saved.trials if t.number < 12]
    assert [t.scores for t in saved.trials[:12]] == [t.scores for t in whole.trials]
    assert netcarve(["front", "runs/space-grid-10-salvaged", "--json"]) == 0
    capsys.readouterr()
    assert netcarve(["salvage", "runs/space-grid-10"]) == 1
    assert "exists already" in capsys.readouterr().err


def test_what_cannot_be_salvaged_leaves_nothing(runs, capsys):
    ledger = runs / "space-grid-9" / "ledger.sqlite"
    ledger.write_bytes(b"x" * 5000)
    assert netcarve(["salvage", "runs/space-grid-9"]) == 1
    assert "settings" in capsys.readouterr().err
    assert not (runs / "space-grid-9-salvaged").exists()


def test_a_disk_that_fills_while_salvaging_leaves_nothing(runs, capsys, monkeypatch):
    from netcarve.results import Ledger, LedgerError

    def full(self, rows):
        raise LedgerError("no room on disk")

    monkeypatch.setattr(Ledger, "restore", full)
    assert netcarve(["salvage", "runs/space-grid-9"]) == 1
    assert "no room on disk" in capsys.readouterr().err
    assert not (runs / "space-grid-9-salvaged").exists()


def test_tables_as_files(runs, capsys):
    assert netcarve(["front", "runs/space-grid-10", "--csv", "f.csv", "--parquet", "f.parquet"]) == 0
    front = load("runs/space-grid-10").front.table
    pd.testing.assert_frame_equal(pd.read_parquet("f.parquet"), front)
    pd.testing.assert_frame_equal(pd.read_csv("f.csv", index_col="trial"), front)
    trials = load("runs/space-grid-10").table
    assert trials["front"].dtype == bool
    assert trials["seconds"].dtype == float
    assert trials["accuracy"].dtype == float
    assert trials["accuracy"].isna().sum() == 1


def test_a_run_that_goes_on_and_one_that_was_killed(runs, capsys):
    from netcarve.results import Ledger

    with Ledger(runs / "space-grid-9" / "ledger.sqlite", write=True) as ledger:
        ledger.note("status", "running")
        assert netcarve(["list"]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "grid-9" in line]
        assert line.split()[-1] == "running"
    assert netcarve(["list"]) == 0  # the kernel lets go of a dead writer's lock
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "grid-9" in line]
    assert line.split()[-1] == "killed"
    (runs / "space-grid-9" / "ledger.sqlite.lock").unlink()  # of a copy
    assert load(runs / "space-grid-9").info["status"] == "killed"


def test_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert netcarve(["list"]) == 2
    assert "there is no folder runs" in capsys.readouterr().err
    (tmp_path / "runs").mkdir()
    assert netcarve(["list"]) == 0
    assert capsys.readouterr().out == "No runs in runs\n"
