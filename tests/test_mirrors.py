"""Runs mirrored to other tools: what those tools read back is what the ledger holds."""

from __future__ import annotations

import logging
import socket
import struct
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
from netcarve.engine import sweep
from netcarve.engine.mirrors import MIRRORS, Mirror, mirror
from netcarve.engine.trackers import TensorBoard
from netcarve.results import Objective
from netcarve.spaces import Choice, Space

SPACE = Space(
    [Choice(f"prune:{name}", (0.0, 0.25, 0.5)) for name in "ab"] + [Choice("drop:c", (False, True))]
)
GOALS = (Objective("accuracy"), Objective("macs"))


def scored(task, model, candidate) -> dict[str, float]:
    a, b, c = candidate.indices
    if candidate.indices == (2, 2, 1):
        raise ArithmeticError("this one fails")
    return {"accuracy": 1 - 0.1 * a - 0.05 * b**2 - 0.2 * c, "macs": 10.0 - 2 * a - b - 3 * c}


def run(out: Path, *mirrors: Mirror | str, trials: int = 18, resume: bool = False):
    return sweep(
        None, SPACE, "grid", GOALS, trials=trials, workers=0, out=out, resume=resume,
        evaluators=[scored], mirrors=mirrors,
    )  # fmt: skip


def events(folder: Path) -> dict[tuple[str, int], float]:
    """Scalars of the last event file, by tag and step, read as TFRecords."""
    from tensorboardX.proto.event_pb2 import Event

    raw = max(folder.glob("events.*"), key=lambda p: p.stat().st_mtime_ns).read_bytes()
    found, at = {}, 0
    while at < len(raw):
        (length,) = struct.unpack_from("<Q", raw, at)
        event = Event.FromString(raw[at + 12 : at + 12 + length])
        at += 16 + length
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found[value.tag, event.step] = value.simple_value
    return found


def test_optuna_reads_the_same_front(tmp_path):
    made = run(tmp_path / "r", f"optuna:sqlite:///{tmp_path}/o.db")
    study = optuna.load_study(study_name="r", storage=f"sqlite:///{tmp_path}/o.db")
    assert len(study.trials) == len(made.trials) == 18
    best = {t.user_attrs["netcarve_number"]: (t.params, t.values) for t in study.best_trials}
    on_front = {t.number: (t.candidate.values, [t.scores["accuracy"], t.scores["macs"]]) for t in made.front}
    assert {n: best[n] for n in on_front} == on_front
    values = [tuple(v) for _, v in best.values()]
    assert set(values) == {tuple(v) for _, v in on_front.values()}  # equal points may be there twice
    (failed,) = [t for t in study.trials if t.state == optuna.trial.TrialState.FAIL]
    assert failed.user_attrs["error"] == "ArithmeticError: this one fails"


def test_tensorboard_has_every_score_and_the_hypervolume(tmp_path):
    made = run(tmp_path / "r", "tensorboard")
    found = events(tmp_path / "r" / "tensorboard")
    for t in made.trials:
        for name, value in t.scores.items():
            assert found[f"metrics/{name}", t.number] == pytest.approx(value, rel=1e-6)
    assert found["front/hypervolume", 17] == pytest.approx(made.front.hypervolume(), rel=1e-6)
    assert found["front/size", 17] == len({tuple(p) for p in made.front.points})
    assert run(tmp_path / "s", f"tensorboard:{tmp_path}/boards")
    assert events(tmp_path / "boards" / "s") == pytest.approx(
        {k: v for k, v in found.items() if k[0] != "seconds"} | {
            k: v for k, v in events(tmp_path / "boards" / "s").items() if k[0] == "seconds"
        }
    )  # fmt: skip


@pytest.mark.slow
def test_mlflow_has_a_run_for_each_trial(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/m.db"
    made = run(tmp_path / "r", f"mlflow:{uri}", trials=10)
    client = mlflow.tracking.MlflowClient(uri)
    home = client.get_experiment_by_name("netcarve").experiment_id
    runs = client.search_runs([home])
    (parent,) = [r for r in runs if r.info.run_name == "r"]
    assert parent.info.status == "FINISHED"
    assert parent.data.params["searcher"] == "grid"
    volumes = {m.step: m.value for m in client.get_metric_history(parent.info.run_id, "hypervolume")}
    assert volumes[9] == pytest.approx(made.front.hypervolume())
    children = {r.info.run_name: r for r in runs if r is not parent}
    assert set(children) == {f"trial {n}" for n in range(10)}
    for t in made.trials:
        child = children[f"trial {t.number}"]
        assert {k: child.data.metrics[k] for k in t.scores} == pytest.approx(dict(t.scores))
        assert child.data.params["prune/a"] == str(t.candidate["prune:a"])

    run(tmp_path / "r", f"mlflow:{uri}", trials=18, resume=True)  # goes on in the same parent
    runs = client.search_runs([home])
    assert sorted(r.info.run_name for r in runs) == sorted(["r", *(f"trial {n}" for n in range(18))])
    assert [r.info.run_name for r in runs if r.info.status == "FAILED"] == [
        f"trial {t.number}" for t in run(tmp_path / "again").trials if t.failed
    ]


@pytest.mark.quick("tensorboard")
@pytest.mark.parametrize("name", ["optuna", "tensorboard"])
def test_a_resumed_run_is_not_there_twice(tmp_path, name):
    run(tmp_path / "r", name, trials=7)
    made = run(tmp_path / "r", name, trials=18, resume=True)
    if name == "optuna":
        study = optuna.load_study(study_name="r", storage=f"sqlite:///{tmp_path}/r/optuna.db")
        assert [t.user_attrs["netcarve_number"] for t in study.trials] == list(range(18))
    else:
        steps = {step for tag, step in events(tmp_path / "r" / "tensorboard") if tag == "front/size"}
        assert steps == {t.number for t in made.trials}


class Broken(TensorBoard):
    def write(self, trial, *, front, volume):
        if trial.number == 3:
            raise OSError("the server is gone")
        super().write(trial, front=front, volume=volume)


def test_a_mirror_that_fails_never_costs_the_sweep(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="netcarve"):
        made = run(tmp_path / "r", Broken(), "optuna")
    assert len(made.trials) == 18
    assert "Broken cannot write (OSError: the server is gone)" in caplog.text
    study = optuna.load_study(study_name="r", storage=f"sqlite:///{tmp_path}/r/optuna.db")
    assert len(study.trials) == 18  # the other one goes on


def test_another_run_of_the_same_name_is_not_mixed_in(tmp_path, caplog):
    where = f"optuna:sqlite:///{tmp_path}/o.db"
    run(tmp_path / "a" / "r", where, trials=5)
    other = Space([Choice("x", (0, 1, 2))])
    sweep(
        None, other, "random", ("accuracy", "macs"), trials=3, workers=0, out=tmp_path / "b" / "r",
        evaluators=[lambda t, m, c: {"accuracy": 1.0 - c.indices[0], "macs": float(c.indices[0])}],
        mirrors=[where],
    )  # fmt: skip
    assert "of another run" in caplog.text
    assert len(optuna.load_study(study_name="r", storage=f"sqlite:///{tmp_path}/o.db").trials) == 5


def test_bad_names_are_refused_before_any_work(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown mirror 'wandb'; known are mlflow, optuna, tensorboard"):
        run(tmp_path / "r", "wandb")
    assert not (tmp_path / "r").exists()
    monkeypatch.setattr("netcarve.engine.mirrors.find_spec", lambda name: None)
    for name in MIRRORS:
        with pytest.raises(ValueError, match="is not installed: pip install"):
            mirror(name)


def test_scores_survive_the_way(tmp_path):
    """Numbers are copied, not rounded: Optuna keeps doubles."""
    made = run(tmp_path / "r", "optuna")
    study = optuna.load_study(study_name="r", storage=f"sqlite:///{tmp_path}/r/optuna.db")
    ours = np.array([t.scores["accuracy"] for t in made.trials if not t.failed])
    theirs = np.array([t.values[0] for t in study.trials if t.values])
    assert (ours == theirs).all()


@pytest.mark.slow
def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    from netcarve.__main__ import run as netcarve

    monkeypatch.chdir(tmp_path)
    task = f"{Path(__file__).parent / 'data' / 'cli_tasks.py'}:task"
    sweep = ["sweep", task, "--searcher=random", "--trials=4", "--workers=0", "--out=r"]
    assert netcarve([*sweep, "--mirror=wandb"]) == 2
    assert "unknown mirror 'wandb'; known are" in capsys.readouterr().err
    assert not Path("r").exists()
    assert netcarve([*sweep, "--mirror=tensorboard", "--mirror=optuna:sqlite:///o.db"]) == 0
    assert len(optuna.load_study(study_name="r", storage="sqlite:///o.db").trials) == 4
    assert {step for tag, step in events(Path("r/tensorboard")) if tag == "front/size"} == set(range(4))


class Slow(Mirror):
    def open(self, folder, settings):
        self.written = []
        return set()

    def write(self, trial, *, front, volume):
        time.sleep(0.1)
        self.written.append(trial.number)

    def close(self, *, finished):
        self.finished = finished


def test_latency_is_measured_when_the_mirrors_are_at_rest(tmp_path, monkeypatch):
    """They write in this process: their work would be in the measured times."""
    from netcarve.evaluators import resolve_task
    from netcarve.spaces import trace

    task = resolve_task(f"{Path(__file__).parent / 'data' / 'cli_tasks.py'}:task")
    slow, seen = Slow(), []
    engine = sys.modules["netcarve.engine.launch"]  # the function of that name hides it
    monkeypatch.setattr(engine, "measure_front", lambda *_, **__: seen.extend(slow.written))
    space = trace(task.model, task.example).space("prune", importance="l1")
    sweep(task, space, "random", trials=6, workers=0, out=tmp_path / "r", mirrors=[slow])
    assert seen == list(range(6))
    assert slow.finished


def test_mirrors_that_never_catch_up_are_left(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("netcarve.engine.mirrors.PATIENCE", 0.15)
    slow = Slow()
    with caplog.at_level(logging.WARNING, logger="netcarve"):
        assert len(run(tmp_path / "r", slow).trials) == 18
    assert caplog.text.count("behind and were left so") == 1
    assert len(slow.written) < 18


class Stuck(Slow):
    def write(self, trial, *, front, volume):
        time.sleep(5)


def test_a_server_that_does_not_answer_is_not_waited_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("netcarve.engine.mirrors.STALL", 0.2)
    start = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="netcarve"):
        assert len(run(tmp_path / "r", Stuck()).trials) == 18
    assert time.monotonic() - start < 4
    assert caplog.text.count("behind and were left so") == 1


@pytest.mark.slow
def test_a_dead_mlflow_is_left_after_seconds(tmp_path, caplog):
    pytest.importorskip("mlflow")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with caplog.at_level(logging.WARNING, logger="netcarve"):
            start = time.monotonic()
            run(tmp_path / "r", f"mlflow:http://127.0.0.1:{unused.getsockname()[1]}", trials=3)
    assert time.monotonic() - start < 25
    assert caplog.text.count("MLflow cannot open") == 1
