"""Resuming: nothing is scored twice, and the run ends as if it had never been interrupted."""

import importlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from netcarve.engine import Interrupted, RunError, load, sweep
from netcarve.engine.settings import LEDGER
from netcarve.results.ledger import Ledger, LedgerError
from netcarve.spaces import Choice, Space
from netcarve.testing import ToyScorer as Toy
from netcarve.testing import facts, toy_space
from netcarve.testing import toy_sweep as run

NAMES = ("quality:max", "cost:min")


def truncated(source, target, keep_outcomes, keep_proposals):
    """A copy of a finished run as an interruption would have left it."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with sqlite3.connect(source / LEDGER) as old, sqlite3.connect(target / LEDGER) as new:
        old.backup(new)
        new.execute("DELETE FROM proposals WHERE number >= ?", (keep_proposals,))
        numbers = [n for (n,) in new.execute("SELECT number FROM outcomes")]
        gone = [(n,) for n in numbers if n not in keep_outcomes]
        new.executemany("DELETE FROM outcomes WHERE number = ?", gone)
        new.executemany("DELETE FROM measurements WHERE number = ?", gone)
    old.close()
    new.close()


@pytest.fixture(scope="module", params=["random", "nsga2", "greedy"])
def finished(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    toy = Toy(lambda c: sum(c.indices) % 7 == 6)
    return request.param, folder, run(folder, searcher=request.param, toy=toy, space=toy_space(6), trials=45)


def resume(finished, folder):
    name, _, whole = finished
    toy = Toy(lambda c: sum(c.indices) % 7 == 6)
    resumed = run(folder, searcher=name, toy=toy, space=toy_space(6), trials=45, resume=True)
    assert facts(resumed.trials) == facts(whole.trials)
    return toy.calls


@pytest.mark.quick("random")
def test_resume_at_every_trial(finished, tmp_path):
    _, source, whole = finished
    for cut in range(len(whole.trials) + 1):
        folder = tmp_path / str(cut)
        truncated(source, folder, set(range(cut)), min(len(whole.trials), cut + 16))
        assert len(resume(finished, folder)) == len(whole.trials) - cut


@pytest.mark.quick("random")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_resume_after_any_interruption(finished, tmp_path, data):
    """Whatever is missing, also out of order, as when several workers were under way: only that is scored."""
    _, source, whole = finished
    n = len(whole.trials)
    proposed = data.draw(st.integers(0, n))
    kept = data.draw(st.sets(st.sampled_from(range(proposed)))) if proposed else set()
    truncated(source, tmp_path / "run", kept, proposed)
    calls = resume(finished, tmp_path / "run")
    assert len(calls) == len(set(calls)) == n - len(kept)
    assert not set(calls) & {whole.trials[k].candidate for k in kept}


def test_ctrl_c_loses_nothing(tmp_path):
    class Interrupting(Toy):
        def __call__(self, *args):
            if len(self.calls) == 23:
                raise KeyboardInterrupt
            return super().__call__(*args)

    toy = Interrupting()
    with pytest.raises(Interrupted, match=r"23 trials are kept in .*run, resume it") as caught:
        run(tmp_path / "run", toy=toy)
    assert caught.value.path == tmp_path / "run"
    assert load(tmp_path / "run").info["status"] == "interrupted"
    assert len(load(tmp_path / "run").trials) == 23
    rest = Toy()
    resumed = run(tmp_path / "run", resume=True, toy=rest)
    assert len(rest.calls) == 17
    assert facts(resumed.trials) == facts(run(tmp_path / "other").trials)


def test_ctrl_c_before_anything_leaves_nothing(tmp_path):
    def interrupt(task, model, candidate):
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="nothing was scored yet"):
        sweep(None, toy_space(), "random", NAMES, workers=0, evaluators=[interrupt], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resume_after_the_driver_is_killed(tmp_path):
    """SIGKILL at a moment nobody chose: nothing kept is scored again, and the run ends as if nothing was."""
    script = tmp_path / "driver.py"
    script.write_text(
        "import sys, time\n"
        "from netcarve.engine import sweep\n"
        "from netcarve.testing import toy_scores, toy_space\n"
        "class Slow:\n"
        "    metrics = ('quality', 'cost')\n"
        "    def __call__(self, task, model, candidate):\n"
        "        time.sleep(0.02)\n"
        "        return toy_scores(candidate)\n"
        "sweep(None, toy_space(), 'nsga2', ('quality:max', 'cost:min'), trials=40, workers=0,\n"
        "      evaluators=[Slow()], out=sys.argv[1])\n"
    )
    folder = tmp_path / "run"
    driver = subprocess.Popen([sys.executable, str(script), str(folder)], cwd=tmp_path)
    end = time.monotonic() + 60
    while time.monotonic() < end and kept_in(folder) < 12:
        time.sleep(0.005)
    driver.kill()
    driver.wait()
    kept = kept_in(folder)
    assert 12 <= kept < 40
    toy = Toy()
    resumed = run(folder, resume=True, toy=toy)
    assert len(toy.calls) == 40 - kept
    assert facts(resumed.trials) == facts(run(tmp_path / "other").trials)


def kept_in(folder):
    try:
        return len(load(folder).trials)
    except (RunError, LedgerError):
        return 0


def test_minutes_stop_asking_but_lose_nothing(tmp_path):
    class Slow(Toy):
        def __call__(self, *args):
            time.sleep(0.01)
            return super().__call__(*args)

    toy = Slow()
    start = time.perf_counter()
    made = run(tmp_path / "run", space=toy_space(8), trials=None, minutes=0.3 / 60, toy=toy)
    assert 0.3 <= time.perf_counter() - start < 3
    assert 16 < len(made.trials) == len(toy.calls) < 60
    assert [t.number for t in made.trials] == list(range(len(made.trials)))


def test_a_longer_run_goes_on_where_minutes_ended(tmp_path):
    class Slow(Toy):
        def __call__(self, *args):
            time.sleep(0.01)
            return super().__call__(*args)

    run(tmp_path / "run", trials=None, minutes=0.2 / 60, toy=Slow())
    resumed = run(tmp_path / "run", trials=60, resume=True)
    assert facts(resumed.trials) == facts(run(tmp_path / "other", trials=60).trials)


@pytest.mark.parametrize("name", ["random", "nsga2", "greedy"])
def test_more_trials_extend_a_run(tmp_path, name):
    run(tmp_path / "run", searcher=name, trials=9)
    resumed = run(tmp_path / "run", searcher=name, trials=50, resume=True)
    assert facts(resumed.trials) == facts(run(tmp_path / "other", searcher=name, trials=50).trials)


def test_fewer_trials_on_resuming_change_nothing(tmp_path):
    first, toy = run(tmp_path / "run", trials=30), Toy()
    again = run(tmp_path / "run", trials=10, resume=True, toy=toy)
    assert facts(again.trials) == facts(first.trials)
    assert toy.calls == []


def test_a_complete_search_is_not_run_again(tmp_path, monkeypatch):
    small = toy_space(2, 3)
    first = run(tmp_path / "run", space=small, searcher="grid", trials=50)
    assert first.info["complete"]
    driver = importlib.import_module("netcarve.engine.launch").Driver
    monkeypatch.setattr(driver, "run", lambda self: pytest.fail("asked again"))
    assert facts(run(tmp_path / "run", space=small, searcher="grid", trials=60, resume=True).trials) == facts(
        first.trials
    )


def test_a_search_that_the_budget_ended_is_not_complete(tmp_path):
    small = toy_space(2, 3)
    assert not run(tmp_path / "run", space=small, searcher="grid", trials=5).info["complete"]
    whole = run(tmp_path / "run", space=small, searcher="grid", trials=50, resume=True)
    assert len(whole) == small.size
    assert whole.info["complete"]


def test_resume_with_other_settings_names_the_difference(tmp_path):
    run(tmp_path / "run", trials=5)
    with pytest.raises(RunError, match=r"seed was 0, is now 3"):
        run(tmp_path / "run", resume=True, seed=3)
    with pytest.raises(RunError, match=r"searcher was 'nsga2', is now 'random'; window was 16, is now 4"):
        run(tmp_path / "run", resume=True, searcher="random", window=4)
    with pytest.raises(RunError, match=r"the space had 4 choices, has now 5"):
        run(tmp_path / "run", resume=True, space=toy_space(5))
    with pytest.raises(RunError, match=r"limits was \[\], is now \['quality>=0.1'\]"):
        run(tmp_path / "run", resume=True, limits=["quality>=0.1"])
    other = Space([*toy_space(3).choices, Choice("c3", (0, 1))])
    with pytest.raises(RunError, match=r"the choice 'c3' of \[0, 1, 2, 3\] is now 'c3' of \[0, 1\]"):
        run(tmp_path / "run", resume=True, space=other)
    assert len(run(tmp_path / "run", resume=True, trials=6).trials) == 6


def test_resume_notices_a_search_that_proposes_otherwise(tmp_path):
    run(tmp_path / "run", trials=20)
    with sqlite3.connect(tmp_path / "run" / LEDGER) as db:
        third = "SELECT candidate FROM proposals WHERE number = 3"
        db.execute(f"UPDATE proposals SET candidate = ({third}), crc = NULL WHERE number = 5")
    db.close()
    with pytest.raises(RunError, match="cannot resume: trial 5 was"):
        run(tmp_path / "run", resume=True, trials=20)


def blank(folder):
    """What is left of a run that was killed after it made its ledger, and before it kept its settings."""
    folder.mkdir()
    Ledger(folder / LEDGER, write=True).close()


def test_a_run_killed_before_it_began_is_begun_anew_and_not_resumed(tmp_path):
    for name in ("blank", "empty"):
        folder = tmp_path / name
        blank(folder)
        if name == "empty":
            (folder / LEDGER).write_bytes(b"")
        with pytest.raises(RunError, match=r"nothing to resume: .* stopped before it began; leave out"):
            run(folder, resume=True)
        assert len(run(folder).trials) == 40
        with pytest.raises(RunError, match="holds another run; resume it"):
            run(folder)
    blank(tmp_path / "held")
    with Ledger(tmp_path / "held" / LEDGER, write=True):
        for resume in (False, True):
            with pytest.raises(LedgerError, match="is writing the ledger"):
                run(tmp_path / "held", resume=resume)


def test_a_beginning_with_known_trials_is_kept_whole_or_not_at_all(tmp_path, monkeypatch):
    first = run(tmp_path / "first", trials=20)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "record", lambda self, trials: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", trials=10, seed_from=[first])
    assert Ledger(tmp_path / "run" / LEDGER).blank
    assert len(run(tmp_path / "run", trials=10, seed_from=[first]).trials) == 30


def test_lost_settings_come_back_with_the_command_of_the_run(tmp_path):
    whole = run(tmp_path / "run", trials=40)
    with sqlite3.connect(tmp_path / "run" / LEDGER) as db:
        db.execute("DELETE FROM settings")
    db.close()
    with pytest.raises(RunError, match=r"settings of the run .* are lost; .* --resume --out"):
        load(tmp_path / "run")
    with pytest.raises(LedgerError, match="another space"):
        run(tmp_path / "run", space=toy_space(6), resume=True)
    with pytest.raises(RunError, match=r"cannot resume: trial \d was"):
        run(tmp_path / "run", seed=7, trials=41, resume=True)
    toy = Toy()
    resumed = run(tmp_path / "run", trials=45, toy=toy, resume=True)
    assert len(toy.calls) == 5
    assert facts(resumed.trials)[:40] == facts(whole.trials)


class At(Toy):
    """Does something at its 23rd call."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def __call__(self, *args):
        if len(self.calls) == 23:
            self.what()
        return super().__call__(*args)


def test_a_folder_removed_in_mid_sweep_loses_nothing(tmp_path):
    with pytest.raises(LedgerError, match=r"was removed, moved or replaced .* --resume --out \S*run-saved"):
        run(tmp_path / "run", toy=At(lambda: shutil.rmtree(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
    kept = load(tmp_path / "run-saved")
    assert (len(kept.trials), kept.info["status"]) == (24, "interrupted")  # with the one under way
    resumed = run(tmp_path / "run-saved", resume=True)
    assert facts(resumed.trials) == facts(run(tmp_path / "other").trials)


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [False, True])
def test_a_folder_removed_during_a_long_trial_is_noticed_within_seconds(tmp_path, ignored):
    def slow():
        if ignored:
            os.kill(os.getpid(), signal.SIGINT)  # stops nothing, watched or not
        shutil.rmtree(tmp_path / "run")
        time.sleep(60)

    start, kept = time.monotonic(), signal.getsignal(signal.SIGINT)
    if ignored:  # as a shell's `&` in a script does
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(
            LedgerError, match=r"was removed, moved or replaced .* --resume --out \S*run-saved"
        ):
            run(tmp_path / "run", toy=At(slow))
        assert signal.getsignal(signal.SIGINT) == (signal.SIG_IGN if ignored else kept)
    finally:
        signal.signal(signal.SIGINT, kept)
    assert time.monotonic() - start < 30
    saved = load(tmp_path / "run-saved")
    assert (len(saved.trials), saved.info["status"]) == (23, "interrupted")  # without the one under way


SLOW = """
import time, torch
from netcarve import Task
def task():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    data = (torch.randn(16, 4), torch.arange(16) % 3)
    return Task(model, data[0][:1], data, metric=slow, name="slow")
def slow(outputs, targets):
    time.sleep(0.5)
    return float((outputs.argmax(1) == targets).float().mean())
"""
SWEEP = "tasks.py:task --searcher random --trials 6 --workers 0 --objective slow:max --no-measure --out run"


@pytest.mark.skipif(sys.platform == "win32", reason="signals as Unix has them")
@pytest.mark.parametrize("number", ["SIGTERM", pytest.param("SIGHUP", marks=pytest.mark.slow)])
def test_signals_that_end_a_sweep_end_it_as_ctrl_c_does(tmp_path, number):
    (tmp_path / "tasks.py").write_text(SLOW)
    command = [sys.executable, "-m", "netcarve", "sweep", *SWEEP.split()]
    driver = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while time.monotonic() < end and driver.poll() is None and not kept_in(tmp_path / "run"):
        time.sleep(0.02)
    driver.send_signal(getattr(signal, number))
    out, err = driver.communicate(timeout=30)
    assert (driver.returncode, out) == (130, ""), err
    assert "kept in run, resume it to go on" in err
    assert "Go on: the same command with --resume --out run" in err
    assert "Traceback" not in err
    stopped = load(tmp_path / "run").info
    assert (stopped["status"], 0 < kept_in(tmp_path / "run") < 6) == ("interrupted", True)


FULL = """
import resource, signal, sys
from netcarve.engine import sweep
from netcarve.testing import ToyScorer, toy_space
class Filling(ToyScorer):
    def __call__(self, *args):
        if len(self.calls) == 23:  # no file may grow any more, as where the disk is full
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        return super().__call__(*args)
sweep(None, toy_space(), "nsga2", ("quality:max", "cost:min"), trials=40, workers=0,
      evaluators=[Filling()], out=sys.argv[1])
"""


def test_a_full_disk_ends_a_run_in_words(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "run"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "LedgerError: " in done.stderr.splitlines()[-1]
    assert "During handling" not in done.stderr
    kept = load(tmp_path / "run")
    assert (len(kept.trials), kept.info["status"]) == (23, "interrupted")
    resumed = run(tmp_path / "run", resume=True)
    assert resumed.info["status"] == "finished"
    assert facts(resumed.trials) == facts(run(tmp_path / "other").trials)
