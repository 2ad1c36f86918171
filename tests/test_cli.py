"""The command line through its real entry point: what it prints, where, and its exit code."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from netcarve.engine.run import NAMED

TASKS = Path(__file__).parent / "data" / "cli_tasks.py"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, netcarve) -> Path:
    """A folder with task files and one small run, ``runs/a``."""
    folder = tmp_path_factory.mktemp("cli")
    shutil.copy(TASKS, folder / "mine.py")
    (folder / "broken.py").write_text("import torch\n\nimport no_such_package\n")
    (folder / "typo.py").write_text("def task(:\n")
    done = netcarve(
        "sweep", "mine.py:task", "--trials", "12", "--workers", "0", "--out", "runs/a", cwd=folder
    )
    assert done.code == 0, done.err
    return folder


@pytest.fixture(autouse=True)
def _inside(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


@pytest.fixture
def refused(call):
    """Runs a command that must fail in one or two lines that hold all of ``texts``."""

    def refused(arguments: str, code: int, *texts: str):
        done = call(*arguments.split())
        said = done.err[done.err.index("error: ") :]
        assert done.code == code, done.err
        assert done.out == ""
        assert len(said.strip().splitlines()) <= 2, said
        assert "Traceback" not in said
        for text in texts:
            assert text in said
        return done

    return refused


# -- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        ("swoop digits", ["swoop"]),
        ("sweep", ["TASK"]),
        ("sweep digits --trails 5", ["--trails"]),
        ("sweep digits --trials none", ["--trials"]),
        ("sweep digits --trials 0", ["trials must be at least 1, got 0"]),
        ("sweep digits --trials 5 --minutes 1", ["--trials", "--minutes"]),
        ("sweep digits --minutes 0 --out runs/x", ["minutes", "0"]),
        ("sweep digits --space unheard", ["unheard", "unknown", "prune"]),
        ("sweep digits --space prune,colours", ["colours", "prune"]),
        ("sweep digits --space ,", ["--space", "prune"]),
        ("sweep digits --searcher newton", ["newton", "known are additive, "]),
        ("sweep digits --objective beauty", ["beauty", "accuracy", "beauty:max"]),
        ("sweep digits --objective macs:sideways", ["macs", "sideways"]),
        ("sweep digits --limit macs<half", ["macs<half", "macs<=0.5x"]),
        ("sweep mnist", ["mnist", "digits", "file.py:function"]),
        ("sweep nowhere.py:task", ["nowhere.py"]),
        ("sweep no.such.module:task", ["'no'"]),
        ("sweep mine.py:tsak", ["tsak", "task"]),
        ("sweep mine.py", ["which function", "mine.py:function"]),
        ("sweep mine.py:slow", ["'pause'", "your own", "pause:max"]),
        ("sweep mine.py:number", ["number", "netcarve.Task", "int"]),
        ("sweep mine.py:empty", ["validation", "no"]),
        ("sweep mine.py:misshapen", ["validation", "5"]),
        ("sweep mine.py:wrong_example", ["example"]),
        ("sweep mine.py:nan", ["finite"]),
        ("sweep mine.py:task --objective beauty:max", ["beauty", "accuracy"]),
        ("sweep mine.py:task --limit macs<=0.0001x", ["macs<=0.0001x", "smallest", "x"]),
        ("sweep mine.py:task --limit beauty<=0.5", ["beauty", "accuracy"]),
        ("sweep mine.py:task --out runs/a", ["runs/a", "another run", "resume"]),
        ("sweep mine.py:task --resume --out runs/none", ["nothing to resume", "runs/none"]),
        ("sweep mine.py:task --resume --out runs/a --seed 5", ["seed was 0, is now 5"]),
        ("sweep mine.py:task --resume --out runs/a --searcher random", ["searcher was 'auto'"]),
        ("sweep mine.py:other --resume --out runs/a", ["the model's weights"]),
        ("sweep mine.py:task --trial-timeout 5 --workers 0", ["timeout", "workers"]),
        # Before the task is read.
        ("sweep mine.py:unread --limit accuracy>=95", ["accuracy>=95%", "0.95"]),
        ("sweep mine.py:unread --limit latency<=5MB", ["latency_ms may be in", "ms"]),
        ("sweep mine.py:unread --out mine.py", ["mine.py is a file", "choose another"]),
        ("sweep mine.py:unread --out runs/a", ["runs/a", "another run"]),
        ("sweep mine.py:unread --resume --out runs/none", ["nothing to resume"]),
        ("sweep mine.py:unread --resume --out runs/a --seed 5", ["seed was 0, is now 5"]),
        ("sweep mine.py:unread --resume --out runs/a --limit macs<=0.5x", ["limits was [], is now ['macs<"]),
        # Before the model is traced.
        ("sweep mine.py:untraceable --limit acuracy>=0.9", ["'acuracy'", "did you mean 'accuracy'?"]),
        ("sweep mine.py:untraceable --objective traffic", ["networks that are split", "prune,splits"]),
        ("sweep mine.py:untraceable --importance l3", ["unknown importance 'l3'", "l2"]),
        ("sweep mine.py:untraceable --searcher progressive --rungs quick,tuned", ["train="]),
        ("sweep mine.py:untraceable --resume --out runs/a", ["task was 'tiny', is now 'untraceable'"]),
        ("sweep mine.py:on_meta", ["on the meta device", "load the weights"]),
        ("inspect mnist", ["mnist", "digits"]),
        ("inspect mine.py:unread --sparsities 0,0.5", ["'mask'", "--space KINDS"]),
        ("front runs/none", ["runs/none", "runs/a"]),
        ("front runs/a --objective beauty", ["beauty"]),
        ("front runs/a --objective beauty:max", ["beauty", "known are", "accuracy"]),
        ("front runs/a --plot front.gif", ["front.gif", ".png"]),
        ("show runs/a 99", ["99"]),
        ("show runs/a first", ["first", "best, knee, smallest"]),
        ("export runs/a 99", ["99"]),
        ("export runs/a 3 --format gguf", ["gguf", "pt2, onnx, state"]),
        ("compare runs/a runs/none", ["runs/none"]),
    ],
)
def test_a_mistake_in_the_input_is_told_in_two_lines(refused, arguments: str, texts: list[str]) -> None:
    refused(arguments, 2, *texts)
    assert not Path("runs/x").exists()


def test_their_traceback_is_shown_and_ours_hidden(refused) -> None:
    done = refused("sweep broken.py:task", 2, "broken.py", "no_such_package")
    assert 'broken.py", line 3, in <module>' in done.err
    assert "ModuleNotFoundError" in done.err
    assert "resolve.py" not in done.err
    done = refused("sweep typo.py:task", 2, "typo.py", "SyntaxError")
    assert 'typo.py", line 1' in done.err
    assert "resolve.py" not in done.err
    done = refused("sweep mine.py:other_needs", 2, "other_needs()", "missing 1 required")
    assert "Traceback" not in done.err
    done = refused("sweep mine.py:crash", 2, "crash()", "cannot find my weights")
    assert "in crash" in done.err
    assert "resolve.py" not in done.err


def test_what_stands_in_the_way_is_a_failure(refused, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("runs/damaged").mkdir()
    Path("runs/damaged/ledger.sqlite").write_bytes(b"not a database at all" * 100)
    refused("front runs/damaged", 1, "runs/damaged", "ledger")
    refused("sweep mine.py:task --resume --out runs/damaged", 1, "runs/damaged")
    Path("file").write_text("")
    refused("sweep mine.py:task --out file/run", 2, "file/run")
    refused("front runs/a --csv no/such/folder.csv", 1, "no/such/folder.csv", "No such file")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1, used=1, free=1000))
    refused("sweep mine.py:task --out runs/full", 1, "no room on disk", "free")
    assert not list(Path("runs").glob("full/*"))


def test_a_defect_of_ours_keeps_its_traceback(call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netcarve.engine.load", lambda path: [][0])
    with pytest.raises(IndexError):
        call("front", "runs/a")


@pytest.mark.slow
def test_mistakes_in_a_process_of_their_own(netcarve) -> None:
    done = netcarve("sweep", "mnist")
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1].startswith("error: unknown task 'mnist'")
    assert "Traceback" not in done.err
    assert netcarve().out.startswith("Usage: netcarve")


# -- commands ----------------------------------------------------------------------------------------------


def test_sweep_ends_with_the_front_and_what_to_type_next(call) -> None:
    done = call("sweep", "mine.py:task", "--trials", "8", "--workers", "0", "--searcher", "random")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert "their own words" in done.err
    assert "unchanged" in done.out
    assert "latency" in done.out
    place = next(line for line in lines if line.startswith("The run is in ")).split()[-1]
    assert place == "runs/tiny-random-1"
    commands = [line.split()[-1 * len(line.split()) :] for line in lines[lines.index("Next:") + 1 :]]
    wanted = [f"front {place} --plot front.png", f"show {place}", f"export {place}"]
    assert len(commands) == 3
    for command, start in zip(commands, wanted, strict=True):
        at = next(i for i, word in enumerate(command) if word in ("front", "show", "export"))
        assert " ".join(command[at:]).startswith(start)
    knee = commands[1][-1]
    shown = call("show", place, knee)
    assert shown.code == 0
    assert f"trial {knee} of {place}" in shown.out


def test_json_is_alone_on_stdout(call) -> None:
    done = call("sweep", "mine.py:task", "--trials", "6", "--workers", "0", "--out", "runs/j", "--json")
    assert done.code == 0, done.err
    swept = json.loads(done.out)
    front = json.loads(call("front", "runs/j", "--json").out)
    extra = ["out", "evaluated", "failed", "seconds", "hypervolume"]
    assert list(front) == ["task", "searcher", "seed", "objectives", "baseline", "trials"]
    assert list(swept) == [*front, *extra]
    assert {key: swept[key] for key in front} == front
    assert (swept["task"], swept["searcher"], swept["seed"], swept["evaluated"]) == ("tiny", "auto", 0, 6)
    assert [o["name"] for o in front["objectives"]] == ["accuracy", "macs"]
    assert {"accuracy", "macs", "params", "latency_ms"} <= set(front["baseline"])
    assert all(set(trial) == {"number", "candidate", "scores"} for trial in front["trials"])


def test_objectives_and_limits_reach_the_search(call) -> None:
    arguments = "sweep mine.py:task --trials 8 --workers 0 --out runs/o --json --seed 3"
    goals = ["--objective", "loss", "--objective", "params", "--limit", "macs<=0.6x"]
    swept = json.loads(call(*arguments.split(), *goals).out)
    assert [(o["name"], o["goal"]) for o in swept["objectives"]] == [("loss", "min"), ("params", "min")]
    assert swept["seed"] == 3
    assert all(t["scores"]["macs"] <= 0.6 * swept["baseline"]["macs"] for t in swept["trials"])


def test_front_as_table_csv_and_picture(call, tmp_path: Path) -> None:
    csv, png = tmp_path / "front.csv", tmp_path / "front.png"
    done = call("front", "runs/a", "--csv", str(csv), "--plot", str(png))
    assert done.code == 0, done.err
    assert "accuracy" in done.out
    document = json.loads(call("front", "runs/a", "--json").out)
    rows = csv.read_text().splitlines()
    assert rows[0].startswith("trial,accuracy,macs")
    assert [int(row.split(",")[0]) for row in rows[1:]] == [t["number"] for t in document["trials"]]
    assert png.read_bytes().startswith(b"\x89PNG")
    other = json.loads(call("front", "runs/a", "--objective", "loss", "--objective", "params", "--json").out)
    assert [o["name"] for o in other["objectives"]] == ["loss", "params"]


def test_show_as_json(call) -> None:
    shown = json.loads(call("show", "runs/a", "0", "--json").out)
    assert shown["candidate"] == shown["unchanged"]
    assert shown["scores"] == shown["baseline"]
    assert shown["error"] is None
    assert shown["kept"] == {choice: [8, 8] for choice in shown["candidate"]}
    assert "8 of 8" in call("show", "runs/a", "0").out


def test_inspect(call) -> None:
    found = json.loads(call("inspect", "mine.py:task", "--json").out)
    assert [group["units"] for group in found["groups"]] == [8, 8]
    assert found["groups"][0]["modules"] == ["0", "1", "3"]
    assert {group["kind"] for group in found["groups"]} == {"channels"}
    conv = 8 * 8 * 9 * (3 * 8 + 8 * 8)
    assert found["macs"] == sum(layer["macs"] for layer in found["layers"]) == conv + 8 * 4
    assert found["params"] == sum(layer["params"] for layer in found["layers"])
    table = call("inspect", "mine.py:task").out
    assert "Conv2d" in table
    assert "made and read by" in table
    assert "channels" in table.split()
    shares = ("--space", "mask", "--sparsities", "0,0.5", "--json")
    masks = json.loads(call("inspect", "mine.py:task", *shares).out)["choices"]
    assert {tuple(choice["options"]) for choice in masks} == {(0.0, 0.5)}


def test_trials_have_names(call) -> None:
    front = json.loads(call("front", "runs/a", "--json").out)["trials"]
    numbers = {name: json.loads(call("show", "runs/a", name, "--json").out)["number"] for name in NAMED}
    others = [t for t in front if t["number"]]
    assert numbers["best"] == others[0]["number"]
    assert numbers["smallest"] == min(others, key=lambda t: t["scores"]["params"])["number"]
    shown = call("show", "runs/a", "smallest").out
    assert f"trial {numbers['smallest']} of runs/a" in shown
    assert "layer" in shown
    assert shown.splitlines()[-3].startswith("Next:")


def test_compare(call) -> None:
    call(
        "sweep", "mine.py:task", "--trials", "4", "--workers", "0", "--searcher", "random", "--out", "runs/b"
    )
    found = json.loads(call("compare", "runs/a", "runs/b", "--json").out)
    volumes = [row["hypervolume"] for row in found["runs"]]
    assert {row["run"] for row in found["runs"]} == {"runs/a", "runs/b"}
    assert volumes == sorted(volumes, reverse=True)
    table = call("compare", "runs/a", "runs/b").out
    assert "within a budget of macs" in table


@pytest.mark.slow
def test_export(call, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    done = call("export", "runs/a", "3", "--format", "pt2,state", "-o", str(folder), "--json")
    assert done.code == 0, done.err
    receipt = json.loads(done.out)
    assert set(receipt["formats"]) == {"pt2", "state"}
    assert receipt["describe"]["run"] == "a"  # wherever it was
    assert all(record["max_relative_difference"] < 1e-4 for record in receipt["formats"].values())
    assert all((folder / name).is_file() for name in [*receipt["files"], "receipt.json"])
    again = call("export", "runs/a", "3", "--format", "state", "-o", str(folder))
    assert (again.code, again.out) == (1, "")
    assert "holds an earlier export; choose another folder, or replace it: --overwrite" in again.err
    assert "reading the task" not in again.err
    again = call("export", "runs/a", "3", "--format", "state", "-o", str(folder), "--overwrite")
    assert again.code == 0, again.err
    assert not (folder / "model.pt2").exists()


def test_export_of_one_format(call, tmp_path: Path) -> None:
    done = call("export", "runs/a", "3", "--format", "state", "-o", str(tmp_path / "out"), "--json")
    assert done.code == 0, done.err
    receipt = json.loads(done.out)
    assert receipt["formats"]["state"]["max_relative_difference"] < 1e-4
    assert {f.name for f in (tmp_path / "out").iterdir()} == {*receipt["files"], "receipt.json"}


# -- interruption and the main job ---------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_keeps_the_run_and_says_how_to_go_on(home: Path, netcarve) -> None:
    arguments = ["sweep", "mine.py:slow", "--trials", "30", "--workers", "0", "--objective", "pause:max"]
    arguments += ["--objective", "macs"]
    stopped = subprocess.Popen(
        [sys.executable, "-m", "netcarve", *arguments, "--out", "runs/s"],
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and _recorded(home / "runs/s") < 5:
        time.sleep(0.05)
    stopped.send_signal(signal.SIGINT)
    out, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert "--resume --out runs/s" in err
    assert 5 <= _recorded(home / "runs/s") < 30
    resumed = netcarve(*arguments, "--out", "runs/s", "--resume", "--json", cwd=home)
    whole = netcarve(*arguments, "--out", "runs/w", "--json", cwd=home)
    a, b = (json.loads(done.out) for done in (resumed, whole))
    for document in (a, b):
        for key in ("out", "seconds"):
            del document[key]
        for scores in (document["baseline"], *(t["scores"] for t in document["trials"])):
            scores.pop("latency_ms", None)
    assert a == b


def _recorded(folder: Path) -> int:
    from netcarve.results import Ledger
    from netcarve.results.ledger import LedgerError

    try:
        with Ledger(folder / "ledger.sqlite", create=False) as ledger:
            return len(ledger.trials())
    except LedgerError:
        return 0


@pytest.mark.ray
def test_the_main_job_with_real_workers(tmp_path: Path, netcarve) -> None:
    """What a newcomer does: sweep the bundled task on Ray, look at the front."""
    done = netcarve("sweep", "digits", "--trials", "8", "--workers", "2", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "runs/digits-auto-1" in done.out
    assert "knee" in done.out
    for noise in ("Warning", "warning", "dashboard", "usage", "Traceback", "ray"):
        assert noise not in done.err
    front = netcarve("front", "runs/digits-auto-1", "--json", cwd=tmp_path)
    document = json.loads(front.out)
    assert document["baseline"]["accuracy"] > 0.98
    assert len(document["trials"]) > 2


def test_a_closed_pipe_is_no_traceback(home: Path) -> None:
    command = f"{sys.executable} -m netcarve front runs/a --json | head -c 1"
    done = subprocess.run(
        ["bash", "-c", command], cwd=home, capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.stderr == ""


def test_what_a_forward_prints_does_not_mix_with_results(call) -> None:
    arguments = ("--trials", "3", "--workers", "0", "--seed", "1", "--json", "--no-measure")
    done = call("sweep", "mine.py:talkative", "--out", "runs/talkative", *arguments)
    assert done.code == 0, done.err
    assert json.loads(done.out)["evaluated"] == 3
    printed = [line for line in done.err.splitlines() if line.startswith("forward of")]
    assert "forward of (48, 3, 8, 8)" in printed
    assert len(printed) <= 2 * len(set(printed))  # once while the model is proven, once while it is searched


def test_a_limit_that_the_unchanged_model_breaks_is_told_of(call) -> None:
    arguments = ("--trials", "2", "--workers", "0", "--limit", "accuracy>=100%", "--no-measure")
    done = call("sweep", "mine.py:task", "--out", "runs/strict", *arguments)
    assert "the unchanged model itself does not keep accuracy>=100%: its accuracy is" in done.err
