"""Runs that netcarve 0.1 has written still open: looked at, built, exported, resumed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from netcarve import load
from netcarve.engine import RunError, sweep
from netcarve.engine.rebuild import rebuild
from netcarve.engine.settings import LEDGER
from netcarve.engine.warm_start import warm_start
from netcarve.evaluators import resolve_task
from netcarve.testing import facts

DATA = Path(__file__).parent / "data"
TASK = f"{DATA / 'stored_task.py'}:task"
SPLIT_TRIALS, PROGRESSIVE_TRIALS = 16, 22


@pytest.fixture
def stored(tmp_path):
    """The folder of a copy of a stored run, by name."""

    def stored(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(DATA / "runs-0.1" / f"{name}.sqlite", folder / LEDGER)
        return folder

    return stored


def test_a_split_run_of_0_1(stored, call):
    folder = stored("split")
    run = load(folder, TASK)
    assert (len(run), [t.number for t in run.front], run.info["status"]) == (
        SPLIT_TRIALS,
        [9, 1, 2],
        "finished",
    )
    assert [o.name for o in run.objectives] == ["accuracy", "latency_ms", "traffic_kb"]
    assert [m.text for m in run.limits] == ["macs<=0.95x", "memory_mb:edge<=64"]
    assert [(d.name, d.speed) for d in run.devices] == [("edge", 0.2), ("server", 1.0)]
    assert run.baseline.scores["macs"] == 85664
    assert [t.number for t in run.uniform] == [1, 2]
    assert run.table["front"].sum() == 3
    model = run.model(9)
    assert sum(p.numel() for p in model.parameters()) == run[9].scores["params"]
    assert model(torch.zeros(2, 1, 6, 6)).shape == (2, 4)
    assert "cut:1" in call("show", str(folder), "9").out
    shown = json.loads(call("front", str(folder), "--json").out)
    assert [t["number"] for t in shown["trials"]] == [9, 1, 2]
    with pytest.raises(RunError, match="it was not you, here, who made this run"):
        _ = load(folder).task


def test_resuming_a_split_run_of_0_1_goes_on_with_it(stored):
    folder = stored("split")
    run = load(folder, TASK)
    known, task, space = facts(run.trials), run.task, run.space
    more = sweep(
        *(task, space, "nsga2", run.objectives, ["macs<=0.95x"]),
        **{"trials": SPLIT_TRIALS + 2, "seed": 3, "workers": 0, "out": folder, "resume": True},
    )
    assert len(more) == SPLIT_TRIALS + 2
    assert facts(more.trials)[:SPLIT_TRIALS] == known
    with pytest.raises(RunError, match="seed was 3, is now 4"):
        sweep(task, space, "nsga2", run.objectives, ["macs<=0.95x"], seed=4, out=folder, resume=True)


def test_a_progressive_run_of_0_1(stored, call, tmp_path):
    folder = stored("progressive")
    run = load(folder, TASK)
    assert (len(run), [t.number for t in run.front]) == (PROGRESSIVE_TRIALS, [0, 15])
    assert run[15].scores["params"] == 74
    # The rung was a choice, and named metrics: it is read as the fidelity beside the candidate.
    assert [rung.name for rung in run.rungs] == ["tuned", "full", "quick"]
    assert [run[n].fidelity for n in (0, 6, 15)] == ["tuned", "quick", "tuned"]
    assert {t.fidelity for t in run.front} == {"tuned"}
    assert run[6].scores["accuracy"] == pytest.approx(0.8333, abs=1e-4)
    assert "rung" not in run[6].candidate.values
    assert [t.number for t in run.uniform] == [1, 2, 15, 20, 21]
    assert {t.fidelity for t in run.uniform} == {"tuned"}
    assert set(run.settings.space) == {"kinds", "options", "calibrated"}
    assert sum(p.numel() for p in run.model(15).parameters()) == 74
    assert "tuned" in call("show", str(folder), "15").out
    shown = json.loads(call("front", str(folder), "--json").out)
    assert [t["number"] for t in shown["trials"]] == [0, 15]
    done = call("export", str(folder), "15", "--task", TASK, "--format", "state", "-o", str(tmp_path / "one"))
    assert done.code == 0, done.err
    assert run.report(tmp_path / "report.html").exists()
    again = warm_start([folder], run.space, replace(run.settings, objectives=(), metrics=()))
    assert len(again.scored) == sum(t.fidelity == "tuned" for t in run.trials)


def test_an_export_of_0_1_with_a_rung_is_made_again(stored):
    run = load(stored("progressive"), TASK)
    choices = [*run.settings.to_json()["choices"], ["rung", ["tuned", "full", "quick"]]]
    space = {**run.settings.space, "rungs": [{"name": "tuned"}, {"name": "full"}, {"name": "quick"}]}
    candidate = {**run[15].candidate.values, "rung": "tuned"}
    made = rebuild(spec=run.task, space=space, choices=choices, candidate=candidate)
    assert sum(p.numel() for p in made.parameters()) == 74


def test_resuming_a_progressive_run_of_0_1_goes_on_with_it(stored):
    folder = stored("progressive")
    run = load(folder, TASK)
    known = facts(run.trials)
    longer = {"trials": 24, "workers": 0, "out": folder, "resume": True, "measure": False}
    with pytest.raises(RunError, match="rungs was"):
        sweep(resolve_task(TASK), run.space, "progressive", **longer)
    try:
        more = sweep(resolve_task(TASK), run.space, "progressive", rungs=run.rungs, **longer)
    except RunError as refusal:
        # Another kind of processor rounds otherwise, and a tie of the searcher's model may fall otherwise.
        if "on a processor of the same kind" not in str(refusal):
            raise
        assert facts(load(folder, TASK).trials) == known
        return
    assert len(more) >= 24
    assert facts(more.trials)[:PROGRESSIVE_TRIALS] == known
    assert facts(load(folder, TASK).trials) == facts(more.trials)
