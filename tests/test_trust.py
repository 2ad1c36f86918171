"""A run from elsewhere executes nothing unless the user says so; whatever is in its folder, it is data."""

from __future__ import annotations

import json
import sqlite3
import stat
from pathlib import Path

import pytest
from netcarve.__main__ import run as netcarve
from netcarve.engine import load, sweep
from netcarve.engine.settings import RunError
from netcarve.results import LedgerError, trust
from netcarve.results.database import checksum
from netcarve.spaces import Choice, Space

TASK = """
import netcarve, torch
from torch import nn

def task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(20, 4)
    return netcarve.Task(model, example=x[:1], validation=(x, (x[:, 0] > 0).long()), metric="accuracy")
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path


def test_only_what_this_user_signed_is_trusted(home, monkeypatch):
    signature = trust.sign("task.py:task")
    assert trust.trusted("task.py:task", signature)
    assert not trust.trusted("task.py:other", signature)
    for other in (None, "", "0" * 64, 7, signature.upper(), signature + "0", "\ud800"):
        assert not trust.trusted("task.py:task", other)
    key = home / "data" / "netcarve" / "key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "somebody else"))
    assert not trust.trusted("task.py:task", signature)


def test_where_no_key_can_be_kept_only_what_is_installed_is_trusted(home, monkeypatch):
    (home / "data").write_text("a file, not a folder")
    assert trust.sign("a.py:f") is None
    assert not trust.trusted("a.py:f", None)
    assert trust.trusted("digits")


def test_a_module_is_trusted_in_the_folder_where_it_was_found_alone(home, monkeypatch):
    monkeypatch.chdir(home)
    module, file = trust.sign("my_task:task"), trust.sign("/a/my_task.py:task")
    assert trust.trusted("my_task:task", module)
    (home / "unpacked").mkdir()
    monkeypatch.chdir(home / "unpacked")  # with a my_task.py of somebody else
    assert not trust.trusted("my_task:task", module)
    assert trust.trusted("/a/my_task.py:task", file)


def run(out: Path):
    space = Space([Choice("a", (0, 1, 2))])

    def scored(task, model, candidate):
        return {"accuracy": 1.0 - 0.1 * candidate.indices[0], "macs": 3.0 - candidate.indices[0]}

    return sweep(None, space, "grid", ("accuracy", "macs"), trials=3, workers=0, out=out, evaluators=[scored])


def crafted(out: Path, **settings) -> Path:
    """A run whose settings somebody has written, checksums and all."""
    made = run(out)
    text = json.dumps({**made.settings.to_json(), **settings})
    with sqlite3.connect(out / "ledger.sqlite") as db:
        db.execute("UPDATE settings SET value = ?, crc = ?", (text, checksum("settings", text)))
    db.close()
    return out


def test_a_task_named_by_a_stranger_is_not_executed(home):
    out = home / "r"
    evil = out / "evil.py"
    path = crafted(out, spec=f"{evil}:task", fingerprint="0" * 64)
    evil.write_text(
        f"from pathlib import Path\nPath({str(home / 'executed')!r}).touch()\n\ndef task(): ...\n"
    )
    for use in (lambda r: r.task, lambda r: r.model(1), lambda r: r.export(1, home / "e")):
        with pytest.raises(RunError, match="it was not you, here, who made this run"):
            use(load(path))
    assert not (home / "executed").exists()


@pytest.mark.slow
def test_who_names_the_task_may_use_the_run_of_somebody_else(home, capsys, monkeypatch):
    """And is asked for it before: every command that needs the task says how."""
    (home / "mine.py").write_text(TASK)
    spec = f"{home / 'mine.py'}:task"
    assert netcarve(["sweep", spec, "--trials=2", "--workers=0", "--objective=macs", "--searcher=random",
                     f"--out={home / 'r'}"]) == 0  # fmt: skip
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "somebody else"))
    page = ["--out", str(home / "e.html"), "--only=cka"]
    for command, *more in (["export", "--format=pt2"], ["explain", *page], ["serve", "--inputs=1"]):
        capsys.readouterr()
        assert netcarve([command, str(home / "r"), "1", *more]) == 2
        assert f"--task '{spec}'" in capsys.readouterr().err
        assert netcarve([command, str(home / "r"), "1", "--task", spec, *more]) == 0
    assert (home / "r" / "export-1" / "model.pt2").is_file()
    assert (home / "e.html").is_file()
    (home / "other.py").write_text(TASK.replace("manual_seed(0)", "manual_seed(1)"))
    assert netcarve(["export", str(home / "r"), "1", "--overwrite", "--task", f"{home}/other.py:task"]) == 2
    assert "is not the one of" in capsys.readouterr().err
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    (home / "mine.py").rename(home / "moved.py")
    assert netcarve(["export", str(home / "r"), "1", "--format=pt2", "--overwrite"]) == 2
    assert "if it lies elsewhere now, name it: --task" in capsys.readouterr().err
    # The state format is rebuilt from the task that was named, not from the one that the run names.
    (home / "mine.py").write_text(f"open({str(home / 'executed')!r}, 'w')\n{TASK}")
    assert netcarve(["export", str(home / "r"), "1", "--format=state", "--overwrite",
                     "--task", f"{home}/moved.py:task"]) == 0  # fmt: skip
    assert not (home / "executed").exists()
    description = json.loads((home / "r" / "export-1" / "description.json").read_text())
    assert description["rebuild"]["arguments"]["spec"] == f"{home}/moved.py:task"


BAD = [
    {"objectives": [{"name": "accuracy", "goal": "max", "unit": "", "evil": 1}]},
    {"objectives": "accuracy"},
    {"objectives": [{"name": ["x"], "goal": "max", "unit": ""}]},
    {"limits": ["__import__('os')"]},
    {"limits": [7]},
    {"choices": []},
    {"choices": [["a", [0, 1, 2]], ["a", [0, 1]]]},
    {"choices": [["a", [[0], [1]]]]},
    {"choices": [["a" * 5000, [0, 1, 2]]]},
    {"choices": {"a": [0, 1, 2]}},
    {"kept": {"a": [1]}},
    {"kept": {"../../x": [1, 2, 3]}},
    {"kept": [1]},
    {"seed": "0"},
    {"searcher": 5},
    {"task": {"a": 1}},
    {"spec": ["os:abort"]},
]


@pytest.mark.parametrize("change", BAD, ids=[f"{next(iter(b))}-{i}" for i, b in enumerate(BAD)])
def test_settings_that_make_no_sense_are_refused_in_words(home, change):
    with pytest.raises((RunError, LedgerError)) as caught:
        load(crafted(home / "r", **change))
    assert len(str(caught.value).splitlines()) == 1


def test_a_run_that_never_began(home):
    made = run(home / "r")
    with sqlite3.connect(made.path / "ledger.sqlite") as db:
        for table in ("settings", "proposals", "outcomes"):
            db.execute(f"DELETE FROM {table}")
    db.close()
    with pytest.raises(RunError, match="stopped before it began, or it was copied"):
        load(made.path)


def rewritten(path: Path, sql: str, *values) -> None:
    with sqlite3.connect(path / "ledger.sqlite") as db:
        db.execute(sql, values)
    db.close()


@pytest.mark.parametrize("score", ["1" + "0" * 400, "-1e999", "NaN", '"x"', "null", "[]"])
def test_scores_that_are_no_numbers_are_refused_in_words(home, score):
    path = run(home / "r").path
    text = f'{{"accuracy": 1.0, "macs": {score}}}'
    kept = load(path).trials[1]
    crc = checksum("outcomes", 1, text, None, kept.seconds, kept.worker)
    rewritten(path, "UPDATE outcomes SET scores = ?, crc = ? WHERE number = 1", text, crc)
    with pytest.raises(LedgerError, match="scores that are not finite numbers"):
        load(path)


@pytest.mark.parametrize("detail", ['{"exits": 5}', '{"measured": {"stages": 3}}', '{"measured": [1]}', "5"])
def test_details_that_make_no_sense_are_left_out_or_refused(home, detail):
    path = run(home / "r").path
    row = (1, "{}", detail)
    rewritten(path, "INSERT INTO measurements (number, scores, detail, crc) VALUES (?, ?, ?, ?)",
              *row, checksum("measurements", *row))  # fmt: skip
    if detail == "5":
        with pytest.raises(LedgerError, match="a detail that is no object"):
            load(path)
    else:
        assert "choice" in load(path).show(1)


@pytest.mark.parametrize("note", ["status", "seconds"])
@pytest.mark.parametrize("value", ["5", "[1]", '"x"', "{}", "-1", "1" + "0" * 400])
def test_notes_that_make_no_sense_break_no_list(home, capsys, note, value):
    path = run(home / "r").path
    rewritten(path, "INSERT OR REPLACE INTO info (key, value) VALUES (?, ?)", note, value)
    assert netcarve(["list", str(home)]) == 0
    assert "grid" in capsys.readouterr().out
    assert netcarve(["list", str(home), "--json"]) == 0


@pytest.mark.parametrize("name", ["[/nope]", "[bold]x[/bold]", "a\x1b]0;title\x07b", "\ud800"])
def test_names_are_no_commands_to_the_terminal(home, capsys, name):
    """Neither rich's markup nor escape sequences."""
    path = crafted(home / "r", task=name, choices=[["a", [0, 1, 2]]], spec=name, fingerprint="0")
    for command in (["list", str(home)], ["front", str(path)], ["compare", str(path), str(path)]):
        assert netcarve(command) == 0
        said = capsys.readouterr().out
        assert "\x1b" not in said
        assert command[0] != "list" or name.translate(dict.fromkeys((0x1B, 0x07, 0xD800), "\ufffd")) in said
    assert netcarve(["export", str(path), "1"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_names_with_markup_are_text_on_the_page(home):
    """Also tested in a browser; here: no tag of theirs is in the page."""
    mark = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    path = crafted(
        home / "r", task=mark, searcher=mark[:40], choices=[[mark, [0, 1, 2]]], kept={mark: [3, 2, 1]}
    )
    with sqlite3.connect(path / "ledger.sqlite") as db:
        for table in ("proposals",):
            for number, text in db.execute(f"SELECT number, candidate FROM {table}").fetchall():
                (value,) = json.loads(text).values()
                new = json.dumps({mark: value})
                row = (new, checksum(table, number, new), number)
                db.execute(f"UPDATE {table} SET candidate = ?, crc = ? WHERE number = ?", row)
    db.close()
    made = load(path)
    assert mark in made.show(1)
    page = made.report(home / "r.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    assert "<img src=x" not in page
