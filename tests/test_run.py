"""A run on disk: its folder, what it shows, and the progress of one that is going on."""

import io
import shutil
import time

import pytest
from netcarve.engine import Run, RunError, load, sweep
from netcarve.engine import settings as run_settings
from netcarve.engine.budget import Budget
from netcarve.engine.opening import runs_in
from netcarve.engine.progress import Lines, RichProgress, Silent
from netcarve.engine.settings import LEDGER
from netcarve.report import write_report
from netcarve.results.ledger import Ledger, LedgerError
from netcarve.results.objective import Objective
from netcarve.testing import ToyScorer as Toy
from netcarve.testing import toy_space
from netcarve.testing import toy_sweep as run

# folders


def test_a_folder_holds_one_run(tmp_path):
    run(tmp_path / "run", trials=3)
    with pytest.raises(RunError, match="holds another run; resume it, or choose another folder"):
        run(tmp_path / "run", trials=3)


def test_nothing_to_resume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="nothing to resume: there is no run in"):
        run(tmp_path / "run", resume=True)
    with pytest.raises(RunError, match=r"nothing to resume: there is no runs/space-nsga2-\*"):
        run(None, resume=True)
    assert not (tmp_path / "run").exists()


def test_default_folders_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [str(run(None, trials=3).path) for _ in range(11)]
    assert paths[:2] == ["runs/space-nsga2-1", "runs/space-nsga2-2"]
    assert str(run(None, trials=4, resume=True).path) == "runs/space-nsga2-11"
    assert str(run(None, trials=3, searcher="random").path) == "runs/space-random-1"


def test_no_room_on_disk(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(run_settings.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(LedgerError, match=r"no room on disk .* 1.0 MB free, 16 MB needed"):
        run(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot make the run's folder"):
        run(tmp_path / "file" / "run")


def test_one_driver_at_a_time(tmp_path):
    run(tmp_path / "run", trials=3)
    with Ledger(tmp_path / "run" / LEDGER, write=True), pytest.raises(LedgerError, match="another process"):
        run(tmp_path / "run", resume=True)


# looking at a run


def test_show_and_table(tmp_path):
    made = run(tmp_path / "run", toy=Toy(lambda c: c.indices == (3, 3, 3, 3)))
    text = made.show(made.front.trials[1].number)
    assert "quality" in text
    assert "unchanged" in text
    assert "c3" in text
    failed = next(t for t in made.trials if t.failed)
    assert "ValueError: bad candidate" in made.show(failed.number)
    assert set(made.table.columns) == {"quality", "cost", "front", "fidelity", "seconds", "error"}
    assert made.table["front"].sum() == len(made.front)
    with pytest.raises(RunError, match="there is no trial 4000 in"):
        made.show(4000)
    assert isinstance(load(made.path / LEDGER), Run)


def test_load_of_nothing_lists_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(None, trials=3)
    with pytest.raises(RunError, match="there is no run in nowhere; runs here: runs/space-nsga2-1"):
        load("nowhere")


def test_progress_line(tmp_path):
    from rich.console import Console

    stream = io.StringIO()
    progress = RichProgress(Console(file=stream, force_terminal=True, width=160))
    run(tmp_path / "run", toy=Toy(lambda c: c.indices == (3, 3, 3, 3)), progress=progress)
    for part in ("40 trials", "/s", "front ", "hypervolume 0.", "1 failed"):
        assert part in progress.facts()
    assert "40 trials" in stream.getvalue()
    assert "left" not in progress.facts()  # it is over


def test_progress_in_a_log_is_a_line_at_each_phase_and_then_now_and_then():
    written = []
    lines = Lines(written.append, seconds=0.2)
    lines.say("tracing the model")
    for done in range(3):
        lines.say(f"proving: {done} of 3")
    assert [text[9:] for text in written] == ["tracing the model", "proving: 0 of 3"]
    deadline = time.monotonic() + 10
    while len(written) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    lines.close()
    assert {text[9:] for text in written[2:]} == {"proving: 2 of 3"}
    count = len(written)
    assert count >= 4
    lines.close()
    time.sleep(0.5)
    assert len(written) == count


def test_progress_where_lines_stay(tmp_path):
    from rich.console import Console

    stream = io.StringIO()
    run(tmp_path / "run", progress=RichProgress(Console(file=stream, width=80)))
    text = stream.getvalue().splitlines()
    assert "starting to score: 40 trials" in text[0]
    assert "searching: 1/40 trials" in text[1]
    assert "searched: 40 trials" in text[-1]
    assert all(len(line) < 200 and "best quality" in line for line in text[1:])


def test_the_front_so_far_is_shown_on_a_terminal_only(tmp_path, monkeypatch):
    from rich.console import Console

    monkeypatch.setattr("netcarve.engine.progress.REDRAW", 0.0)
    shown = {}
    for terminal in (True, False):
        stream = io.StringIO()
        progress = RichProgress(Console(file=stream, force_terminal=terminal, width=120))
        made = run(tmp_path / f"run-{terminal}", progress=progress)
        shown[terminal] = stream.getvalue()
    assert "unchanged" in shown[True]
    assert "unchanged" not in shown[False]
    assert [t.number for t in progress._tracker.trials] == [t.number for t in made.front]


def test_progress_after_resuming_counts_only_new_trials_in_the_rate(tmp_path):
    run(tmp_path / "run", trials=30)

    class Watch(Silent):
        def __init__(self):
            self.seen = []

        def told(self, trial, *, replayed):
            self.seen.append(replayed)

    watch = Watch()
    run(tmp_path / "run", trials=40, resume=True, progress=watch)
    assert watch.seen == [True] * 30 + [False] * 10


def test_budget():
    budget = Budget(trials=10, minutes=1.0, spent=59.0)
    assert budget.allows(3) == 10
    assert budget.allows(12) == 12
    assert budget.left(5, 1.0) == pytest.approx(1.0, abs=0.1)
    assert Budget(trials=10, minutes=1.0, spent=61.0).allows(3) == 3
    assert Budget().left(3, 1.0) is None


def test_objective_instances_and_units_are_kept(tmp_path):
    goals = (Objective("quality", "max", "points"), Objective("cost", "min"))
    made = sweep(
        None, toy_space(), "random", goals, trials=3, workers=0, evaluators=[Toy()], out=tmp_path / "run"
    )
    assert made.objectives == goals


ODD_RECIPES = [{"devices": 7}, {"devices": [{}]}, {"devices": ["edge"]}, {"devices": [None], "links": {}}]


@pytest.mark.parametrize("options", ODD_RECIPES)
def test_odd_settings_are_refused_in_words_when_the_run_is_opened(tmp_path, options):
    path = run(tmp_path / "run", trials=3).path
    with Ledger(path / LEDGER, write=True) as ledger:
        recipe = {"kinds": ["prune", "splits"], "options": options}
        ledger.save_settings({**ledger.settings, "space": recipe}, replace=True)
    with pytest.raises(RunError, match="holds no run that this netcarve can read: of its settings, "):
        load(path)
    (listed,) = runs_in(tmp_path)
    assert "holds no run" in listed.error


@pytest.mark.parametrize(
    "odd", [5, [1], [{}], [{"name": None, "width": 3, "fixed": 1, "units": {}, "drops": []}]]
)
def test_odd_layers_and_notes_are_left_out(tmp_path, odd):
    path = run(tmp_path / "run", trials=3).path
    with Ledger(path / LEDGER, write=True) as ledger:
        ledger.save_settings({**ledger.settings, "layers": odd, "split": odd}, replace=True)
        ledger.note("certificate", odd)
    opened = load(path)
    assert opened.certificate is None
    assert "outputs" not in opened.show(1)
    write_report([opened], tmp_path / "page.html")
