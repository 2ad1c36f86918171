"""What is intact in a damaged ledger is saved, and nothing that was changed."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netcarve import Choice, Ledger, Space, Trial
from netcarve.results import LedgerError
from netcarve.results.database import SCHEMA_VERSION
from netcarve.results.salvage import salvage

SPACE = Space([Choice(f"c{i}", tuple(range(4))) for i in range(12)])
SETTINGS = {"seed": 3, "choices": [[c.name, list(c.options)] for c in SPACE.choices], "note": "x" * 9000}
ERROR = "Traceback (most recent call last):\n" + "  File 'a', line 1\n" * 300 + "ValueError: no"


def trials(n: int) -> list[Trial]:
    rng = np.random.default_rng(0)
    made = []
    for number, candidate in enumerate(SPACE.sample(rng, n)):
        failed = number % 17 == 5
        scores = {} if failed else {"accuracy": float(rng.random()), "macs": float(rng.integers(10**9))}
        made.append(Trial(number, candidate, scores, ERROR if failed else None, float(number), "host:1"))
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A ledger of 300 trials, closed, and one whose last rows are in its write-ahead log alone."""
    folder = tmp_path_factory.mktemp("ledgers")
    made = trials(300)
    with Ledger(folder / "l.db", write=True) as ledger:
        ledger.save_settings(SETTINGS)
        ledger.propose([(t.number, t.proposal) for t in made])
        ledger.record(made[:200])
        ledger.measure(3, {"latency_ms": 2.0}, {"device": "cpu"})
        shutil.copy(folder / "l.db", folder / "logged.db")
        shutil.copy(folder / "l.db-wal", folder / "logged.db-wal")
    return folder, made


def test_nothing_is_lost_from_a_sound_one(whole, tmp_path):
    folder, made = whole
    for name in ("l.db", "logged.db"):
        done = salvage(folder / name, tmp_path / name)
        assert (done.outcomes, done.proposals, done.measurements) == (200, 300, 1)
        assert (done.lost, done.unscored) == ((), tuple(range(200, 300)))
        with Ledger(tmp_path / name) as saved, Ledger(folder / name) as was:
            assert saved.settings == SETTINGS
            assert saved.trials() == was.trials()
            assert saved.trials(measured=False) == made[:200]
            assert saved.proposals() == was.proposals()


def check_subset(path, made) -> int:
    """Whatever is there is as it was written; how many outcomes that are."""
    with Ledger(path) as saved:
        found = saved.trials(SPACE, measured=False)
    known = {t.number: t for t in made}
    assert all(known[t.number] == t for t in found)
    return len(found)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_file_that_was_cut_off(whole, tmp_path, share):
    folder, made = whole
    data = (folder / "l.db").read_bytes()
    (tmp_path / "l.db").write_bytes(data[: int(share * len(data))])
    with pytest.raises(LedgerError, match="netcarve salvage"), Ledger(tmp_path / "l.db") as cut:
        cut.trials()
    done = salvage(tmp_path / "l.db", tmp_path / "new.db")
    assert check_subset(tmp_path / "new.db", made) == done.outcomes
    assert set(done.lost) | set(done.unscored) >= set(range(200, 300)) - set(range(done.proposals, 300))
    if share == 0.9:
        assert done.outcomes > 100


def test_a_broken_header_and_root_pages(whole, tmp_path):
    """No tree can be entered; the rows lie there still."""
    folder, made = whole
    data = bytearray((folder / "l.db").read_bytes())
    data[:100] = bytes(100)
    for page in range(1, len(data) // 4096):
        if data[page * 4096] == 0x05:  # interior pages of tables
            data[page * 4096 : page * 4096 + 64] = bytes(64)
    (tmp_path / "l.db").write_bytes(data)
    done = salvage(tmp_path / "l.db", tmp_path / "new.db")
    assert (done.outcomes, done.proposals) == (200, 300)
    assert check_subset(tmp_path / "new.db", made) == 200


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A closed ledger of 40 trials, two of them with long tracebacks, and notes."""
    path = tmp_path_factory.mktemp("small") / "l.db"
    made = trials(40)
    with Ledger(path, write=True) as ledger:
        ledger.save_settings(SETTINGS)
        ledger.propose([(t.number, t.proposal) for t in made])
        for trial in made:
            ledger.record([trial])
            ledger.note("seconds", trial.number)
    return path, made


@pytest.mark.quick("60")
@pytest.mark.parametrize("bits", [60, 300])
def test_a_turned_bit_costs_at_most_its_row(small, tmp_path, bits):
    """Anywhere: in headers, pointers, rows, long rows, either copy of the settings."""
    path, made = small
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    lost = 0
    for i, at in enumerate(rng.choice(len(data), bits, replace=False).tolist()):
        changed = bytearray(data)
        changed[at] ^= 1 << rng.integers(8)
        (tmp_path / f"{i}.db").write_bytes(changed)
        done = salvage(tmp_path / f"{i}.db", tmp_path / f"new-{i}.db")
        assert done.settings
        assert min(done.proposals, done.outcomes) >= len(made) - 1
        assert check_subset(tmp_path / f"new-{i}.db", made) == done.outcomes
        with Ledger(tmp_path / f"new-{i}.db") as saved:
            assert saved.settings == SETTINGS
            assert saved.info.get("seconds", 39) == 39  # no earlier value of a note
        lost += len(made) - done.outcomes
    assert lost > 0


def test_outcomes_are_saved_without_the_settings(small, tmp_path):
    path, made = small
    data = path.read_bytes().replace(b'"note": "xxx', b'"note": "yyy')
    (tmp_path / "l.db").write_bytes(data)
    done = salvage(tmp_path / "l.db", tmp_path / "new.db")
    assert (done.settings, done.outcomes, done.proposals) == (False, 40, 40)
    assert check_subset(tmp_path / "new.db", made) == 40
    with Ledger(tmp_path / "new.db") as saved:
        assert (saved.settings, saved.blank) == ({}, False)


def test_a_newer_ledger_is_not_read_as_an_older_one(small, tmp_path):
    path, _ = small
    header = bytearray(path.read_bytes())
    header[60:64] = (SCHEMA_VERSION + 4).to_bytes(4, "big")  # SQLite's user_version
    (tmp_path / "l.db").write_bytes(header)
    with pytest.raises(LedgerError, match="newer netcarve"):
        salvage(tmp_path / "l.db", tmp_path / "new.db")
    with Ledger(tmp_path / "noted.db", write=True) as ledger:
        ledger.save_settings(SETTINGS)
        ledger.note("schema", SCHEMA_VERSION + 4)
    with pytest.raises(LedgerError, match="newer netcarve"):
        salvage(tmp_path / "noted.db", tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()


def test_a_copy_without_its_log_says_what_is_missing(whole, tmp_path):
    made = trials(20)
    with Ledger(tmp_path / "l.db", write=True) as ledger:
        ledger.save_settings(SETTINGS)
        ledger.propose([(t.number, t.proposal) for t in made])
        ledger.record(made)
        shutil.copy(tmp_path / "l.db", tmp_path / "alone.db")
        shutil.copy(tmp_path / "l.db-wal", tmp_path / "only.db-wal")
    with pytest.raises(LedgerError, match=r"if it was copied, copy alone\.db-wal too"):
        salvage(tmp_path / "alone.db", tmp_path / "new.db")
    assert salvage(tmp_path / "only.db", tmp_path / "new.db").outcomes == 20  # the log alone holds all


@given(seed=st.integers(0, 2**32 - 1), flips=st.integers(1, 200))
@settings(max_examples=15, deadline=None)
def test_flipped_bits_never_become_results(whole, tmp_path_factory, seed, flips):
    folder, made = whole
    rng = np.random.default_rng(seed)
    data = np.frombuffer((folder / "l.db").read_bytes(), dtype=np.uint8).copy()
    at = rng.integers(0, len(data), flips)
    data[at] ^= np.uint8(1) << rng.integers(0, 8, flips, dtype=np.uint8)
    here = tmp_path_factory.mktemp("flipped")
    (here / "l.db").write_bytes(data.tobytes())
    done = salvage(here / "l.db", here / "new.db")
    assert check_subset(here / "new.db", made) == done.outcomes
    assert done.outcomes >= 200 - flips  # at most a row, or the candidate of one, for each


@given(st.binary(max_size=20000))
@settings(max_examples=100, deadline=None)
def test_any_file_is_refused_in_words(tmp_path_factory, data):
    here = tmp_path_factory.mktemp("noise")
    (here / "l.db").write_bytes(data)
    with pytest.raises(LedgerError, match="nothing can be salvaged"):
        salvage(here / "l.db", here / "new.db")
    assert not (here / "new.db").exists()


def test_where_it_may_not_write(whole, tmp_path):
    folder, _ = whole
    with pytest.raises(LedgerError, match="exists already"):
        salvage(folder / "l.db", folder / "logged.db")
    with pytest.raises(LedgerError, match="no ledger at"):
        salvage(tmp_path / "none.db", tmp_path / "new.db")
