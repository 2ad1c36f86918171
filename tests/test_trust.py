"""A run from elsewhere executes nothing unless the user says so; whatever is in its folder, it is data."""

from __future__ import annotations

import json
import sqlite3
import stat
from pathlib import Path

import pytest
from netcarve.results import LedgerError, trust
from netcarve.results.database import checksum
from netcarve.search import load, sweep
from netcarve.search.settings import RunError
from netcarve.spaces import Choice, Space


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


def test_where_no_key_can_be_kept_all_is_trusted(home, monkeypatch):
    (home / "data").write_text("a file, not a folder")
    assert trust.sign("a.py:f") is None and trust.trusted("a.py:f", None)


def run(out: Path):
    space = Space([Choice("a", (0, 1, 2))])

    def scored(task, model, candidate):
        return {"accuracy": 1.0 - 0.1 * candidate.indices[0], "macs": 3.0 - candidate.indices[0]}

    return sweep(None, space, "grid", ("accuracy", "macs"), trials=3, workers=0, out=out, evaluators=[scored])


def crafted(out: Path, **settings) -> Path:
    """A run whose settings somebody has written, checksums and all."""
    made = run(out)
    text = json.dumps({**made.settings, **settings})
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
        db.execute("DELETE FROM settings")
    db.close()
    with pytest.raises(RunError, match="stopped before it began; remove the folder"):
        load(made.path)


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
    assert "<script>alert(1)" not in page and "<img src=x" not in page
