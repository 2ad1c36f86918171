"""The ledger keeps what it was given: across kills, damage, other writers and other versions."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest
from netcarve import Choice, Ledger, Space, Trial
from netcarve.results import LedgerError, Proposal
from netcarve.results.database import COLUMNS, SCHEMA_VERSION

SPACE = Space(
    [Choice("width", (1.0, 0.75, 0.5)), Choice("kind", ("conv", "separable")), Choice("on", (True, False))]
)
SETTINGS = {"seed": 3, "choices": [[c.name, list(c.options)] for c in SPACE.choices]}


def trial(number, error=None, **scores):
    rng = np.random.default_rng(number)
    return Trial(number, SPACE.sample(rng, 1)[0], scores, error=error, seconds=0.1 + number, worker="w1")


TRIALS = [
    trial(0, accuracy=0.1 + 0.2, macs=1e6),
    trial(1, error="Traceback\nValueError: no"),
    trial(2, accuracy=0.5),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a run, 100%?" / "ledger.db"  # a name that must be quoted in a URI


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
    """The message of the LedgerError that ``call`` raises: short, in one line, with the words."""
    with pytest.raises(LedgerError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message
    return message


def test_what_is_written_is_read(path, ledger):
    ledger.propose([(t.number, t.proposal) for t in TRIALS])
    ledger.propose([(7, Proposal(SPACE.baseline))])
    ledger.record(TRIALS[2:])
    ledger.record(TRIALS[:2])
    ledger.note("seconds", 1.5)
    ledger.note("seconds", 2.5)
    for reader in (ledger, Ledger(path)):
        assert reader.settings == SETTINGS
        assert reader.info == {"seconds": 2.5}
        assert reader.trials(SPACE) == reader.trials() == TRIALS
        assert reader.trials()[0].candidate.values == TRIALS[0].candidate.values
        assert reader.proposals(SPACE) == reader.proposals()
        assert list(reader.proposals()) == [0, 1, 2, 7]
    reader.close()


def test_a_new_ledger_is_empty(tmp_path):
    with Ledger(tmp_path / "l.db", write=True) as ledger:
        assert (ledger.settings, ledger.info, ledger.trials(), ledger.proposals()) == ({}, {}, [], {})
        fill(ledger)
        refusal(ledger.trials, "do not tell the choices", "give the space")
        assert ledger.trials(SPACE) == TRIALS


def test_measurements_come_later(ledger):
    fill(ledger)
    ledger.measure(2, {"latency_ms": 2.0, "accuracy": 0.6}, {"q25": 1.9, "device": "a cpu"})
    ledger.measure(2, {"latency_ms": 1.0})
    assert ledger.trials()[2].scores == {"accuracy": 0.6, "latency_ms": 1.0}
    assert ledger.trials(measured=False) == TRIALS  # what a searcher was told
    first, second = ledger.measurements(2)
    assert (first.scores, first.detail) == (
        {"latency_ms": 2.0, "accuracy": 0.6},
        {"q25": 1.9, "device": "a cpu"},
    )
    assert (second.number, second.scores, second.detail) == (2, {"latency_ms": 1.0}, {})
    assert ledger.measurements(0) == []
    refusal(lambda: ledger.measure(1, {"latency_ms": 1.0}), "trial 1", "failed")
    refusal(lambda: ledger.measure(9, {"latency_ms": 1.0}), "trial 9", "not recorded")


def test_the_same_again_is_ignored_and_anything_else_refused(ledger):
    fill(ledger)
    fill(ledger)
    ledger.save_settings(SETTINGS)
    other = Trial(2, TRIALS[2].candidate, {"accuracy": 0.7}, seconds=TRIALS[2].seconds, worker="w1")
    refusal(lambda: ledger.record([other]), "trial 2", "another outcome")
    moved = Trial(2, SPACE.candidate([2, 1, 1]), {"accuracy": 0.5})
    refusal(lambda: ledger.record([moved]), "trial 2", "another candidate")
    refusal(lambda: ledger.propose([(2, moved.proposal)]), "trial 2", "another candidate")
    refusal(lambda: ledger.record([trial(8, accuracy=1.0)]), "trial 8", "never proposed")
    refusal(lambda: ledger.save_settings({"seed": 4}), "other settings")
    assert ledger.trials() == TRIALS


def test_a_resumed_writer_knows_earlier_proposals(path, ledger):
    ledger.propose([(t.number, t.proposal) for t in TRIALS])
    ledger.close()
    with Ledger(path, write=True, create=False) as again:
        again.record(TRIALS)
        assert again.trials() == TRIALS


def test_a_transaction_is_whole_or_not_at_all(ledger):
    ledger.propose([(t.number, t.proposal) for t in TRIALS])
    refusal(lambda: ledger.record([*TRIALS, trial(8, accuracy=1.0)]), "never proposed")
    assert ledger.trials() == []
    ledger.record(TRIALS)
    assert ledger.trials() == TRIALS


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (trial(0, accuracy=float("nan")), "not finite"),
        (trial(0, accuracy=float("inf"), macs=1.0), "not finite"),
        (trial(0), "no scores"),
        (trial(0, error="x", accuracy=1.0), "both scores and an error"),
        (Trial(0, SPACE.baseline, {"macs": 1.0}, seconds=float("nan")), "finite"),
    ],
)
def test_bad_trials_are_refused(ledger, bad, match):
    ledger.propose([(0, bad.proposal)])
    with pytest.raises(ValueError, match=match):
        ledger.record([bad])
    assert ledger.trials() == []


def test_values_that_json_lacks_are_refused(ledger):
    fill(ledger)
    for call in (
        lambda: ledger.note("hypervolume", float("nan")),
        lambda: ledger.measure(0, {"latency_ms": float("inf")}),
        lambda: ledger.measure(0, {}),
    ):
        with pytest.raises(ValueError):
            call()


def test_numpy_numbers_and_odd_texts_survive(ledger):
    odd = Trial(
        np.int64(0), SPACE.baseline, {"accuracy": np.float32(0.5)}, seconds=np.float64(1), worker="é\n'"
    )
    failed = Trial(1, SPACE.baseline, error="cannot read \udcff\x00 ∞", worker="w")
    fill(ledger, [odd, failed])
    ledger.record([odd, failed])
    kept = ledger.trials()
    assert kept[0] == odd
    assert kept[1].error == "cannot read \\udcff\x00 ∞"


def test_candidates_of_another_space(ledger):
    fill(ledger)
    refusal(lambda: ledger.trials(Space([Choice("depth", (1, 2))])), "another space", "depth")


def test_readers_look_while_the_writer_works(path, ledger):
    with Ledger(path) as reader:
        for t in TRIALS:
            fill(ledger, [t])
            assert reader.trials()[-1] == t
        refusal(lambda: reader.note("a", 1), "not open for writing", "write=True")


def test_a_second_writer_is_refused(path, ledger):
    fill(ledger)
    refusal(lambda: Ledger(path, write=True), f"({os.getpid()})", "is writing", "wait until")
    code = "import sys; from netcarve import Ledger; Ledger(sys.argv[1], write=True)"
    other = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert "LedgerError: another process" in other.stderr
    ledger.close()
    ledger.close()  # twice does no harm
    Ledger(path, write=True).close()


WRITER = """
import sys
from netcarve import Choice, Ledger, Space, Trial
from netcarve.results import Proposal
space = Space([Choice("a", tuple(range(1000)))])
with Ledger(sys.argv[1], write=True) as ledger:
    ledger.save_settings({"choices": [["a", list(range(1000))]]})
    for n in range(100_000):
        candidate = space.candidate([n % 1000])
        ledger.propose([(n, Proposal(candidate))])
        ledger.record([Trial(n, candidate, {"accuracy": n / 7})])
        print(n, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 1500])  # 1500: beyond a checkpoint of the write-ahead log
def test_everything_recorded_survives_sigkill(tmp_path, lines):
    path = tmp_path / "ledger.db"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True)
    told = [int(next(writer.stdout)) for _ in range(lines)]
    writer.send_signal(signal.SIGKILL)
    told += [int(line) for line in writer.stdout if line.endswith("\n")]  # in the pipe when it died
    writer.wait()
    writer.stdout.close()
    with Ledger(path) as reader:  # a reader can look at what the dead left
        assert [t.number for t in reader.trials()][: len(told)] == told
    with Ledger(path, write=True, create=False) as again:  # and a writer go on, at once
        kept = again.trials()
        assert len(kept) - len(told) in (0, 1)
        assert all(
            t.scores == {"accuracy": t.number / 7} and t.candidate["a"] == t.number % 1000 for t in kept
        )
        assert len(again.proposals()) - len(kept) in (0, 1)
        again.measure(told[-1], {"latency_ms": 1.0})


def damaged_copy(ledger, change):
    """Close the ledger after a few hundred trials and change its bytes."""
    fill(ledger, [trial(n, error="a long story " * 20) for n in range(300)])
    ledger.close()
    data = bytearray(ledger.path.read_bytes())
    assert len(data) > 20_000
    ledger.path.write_bytes(change(data))


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda d: d[: len(d) // 2], ["damaged", "restore it from a copy"], id="half"),
        pytest.param(lambda d: d[:50], ["LEDGER"], id="fifty bytes"),
        pytest.param(lambda d: d[:0], ["is empty", "without its -wal file", "start the run"], id="nothing"),
        pytest.param(lambda d: d[:8192] + b"\xff" * 4096 + d[12288:], ["damaged"], id="a page of ones"),
        pytest.param(
            lambda d: b"number,accuracy\n" * 500, ["not a netcarve ledger", "netcarve salvage"], id="text"
        ),
        pytest.param(lambda d: b"\x00" * 100 + d[100:], ["not a netcarve ledger"], id="no header"),
    ],
)
def test_damage_is_told_at_once(ledger, write, change, words):
    damaged_copy(ledger, change)
    words = [str(ledger.path) if word == "LEDGER" else word for word in words]
    refusal(lambda: Ledger(ledger.path, write=write, create=False), *words)


def change_inside(path, *statements):
    with sqlite3.connect(path) as db:
        for statement in statements:
            db.execute(statement)
    db.close()


def test_an_unreadable_entry_is_damage(ledger):
    fill(ledger)
    ledger.close()
    change_inside(
        ledger.path, "UPDATE outcomes SET scores = '{\"accuracy\": 0.', crc = NULL WHERE number = 2"
    )
    with Ledger(ledger.path) as reader:
        refusal(reader.trials, "damaged", "unreadable entry")


@pytest.mark.parametrize("text", ['{"accuracy": NaN}', '{"accuracy": 1e400}', '{"accuracy": "high"}', "[1]"])
def test_scores_that_are_not_finite_numbers_are_damage(ledger, text):
    fill(ledger)
    ledger.close()
    change_inside(ledger.path, f"UPDATE outcomes SET scores = '{text}', crc = NULL WHERE number = 2")
    with Ledger(ledger.path) as reader:
        refusal(reader.trials, "damaged", "not finite numbers")


def test_settings_that_are_no_object_are_damage(ledger):
    fill(ledger)
    ledger.close()
    change_inside(ledger.path, "UPDATE settings SET value = '[]', crc = NULL")
    with Ledger(ledger.path) as reader:
        refusal(lambda: reader.settings, "damaged", "unreadable settings")


def test_a_changed_number_is_damage(ledger):
    fill(ledger)
    ledger.close()
    change_inside(ledger.path, "UPDATE outcomes SET scores = '{\"accuracy\": 0.6}' WHERE number = 2")
    with Ledger(ledger.path) as reader:
        refusal(reader.trials, "damaged", "a row of outcomes has changed", "netcarve salvage")


def test_a_ledger_without_checksums_is_read_and_goes_on(ledger):
    fill(ledger, TRIALS[:2])  # as schema 1 wrote it
    ledger.close()
    drops = [f"ALTER TABLE {table} DROP COLUMN crc" for table in COLUMNS]
    change_inside(ledger.path, *drops, *AS_BEFORE_3, "PRAGMA user_version = 1")
    with Ledger(ledger.path) as reader:
        assert (reader.settings, reader.trials()) == (SETTINGS, TRIALS[:2])
    with Ledger(ledger.path, write=True) as writer:
        fill(writer)
        assert writer.trials() == TRIALS


AS_BEFORE_3 = ("DROP TABLE spare", "DELETE FROM info WHERE key = 'schema'")


def test_a_ledger_of_schema_2_is_read_and_goes_on(ledger):
    fill(ledger, TRIALS[:2])
    ledger.note("seconds", 1.5)
    ledger.close()
    change_inside(ledger.path, "ALTER TABLE info DROP COLUMN crc", *AS_BEFORE_3, "PRAGMA user_version = 2")
    with Ledger(ledger.path) as reader:
        assert (reader.settings, reader.info, reader.trials()) == (SETTINGS, {"seconds": 1.5}, TRIALS[:2])
    with Ledger(ledger.path, write=True) as writer:
        fill(writer)
        writer.note("status", "finished")
    with Ledger(ledger.path) as reader:
        assert (reader.info, reader.trials()) == ({"seconds": 1.5, "status": "finished"}, TRIALS)
    with sqlite3.connect(ledger.path) as db:  # upgraded: the settings stand in two places
        assert db.execute("SELECT * FROM spare").fetchall() == db.execute("SELECT * FROM settings").fetchall()
    db.close()


def test_a_changed_note_is_damage(ledger):
    ledger.note("seconds", 1.5)
    ledger.close()
    change_inside(ledger.path, "UPDATE info SET value = '2.5' WHERE key = 'seconds'")
    with Ledger(ledger.path) as reader:
        refusal(lambda: reader.info, "damaged", "a row of info has changed")


def test_a_turned_bit_in_the_header_is_damage_not_another_version(ledger):
    ledger.close()
    for pragma in (f"user_version = {SCHEMA_VERSION ^ 8}", "application_id = 1"):
        change_inside(ledger.path, f"PRAGMA {pragma}")
        refusal(lambda: Ledger(ledger.path), "damaged", "netcarve salvage")


def test_what_is_written_together_is_kept_together(ledger):
    def half():
        with ledger.transaction():
            ledger.propose([(t.number, t.proposal) for t in TRIALS])
            ledger.record([trial(0)])

    with pytest.raises(ValueError, match="no scores"):
        half()
    assert ledger.proposals() == {}
    assert not ledger.blank
    with ledger.transaction():
        fill(ledger)
    assert ledger.trials() == TRIALS


def test_a_newer_schema_is_refused(ledger):
    ledger.close()
    change_inside(ledger.path, f"PRAGMA user_version = {SCHEMA_VERSION + 4}")
    refusal(
        lambda: Ledger(ledger.path), "newer netcarve", f"schema {SCHEMA_VERSION + 4}", "pip install --upgrade"
    )


def test_the_database_of_another_program_is_left_alone(tmp_path):
    change_inside(tmp_path / "other.db", "CREATE TABLE t (x)")
    before = (tmp_path / "other.db").read_bytes()
    for write in (False, True):
        refusal(lambda write=write: Ledger(tmp_path / "other.db", write=write), "another program")
    assert (tmp_path / "other.db").read_bytes() == before


def test_a_closed_ledger_says_so(ledger):
    ledger.close()
    refusal(ledger.trials, "closed")
    refusal(lambda: ledger.note("a", 1), "not open for writing")


def test_appending_is_cheap(ledger):
    trials = [trial(n, accuracy=0.5, macs=1e6, params=1e4, loss=0.1) for n in range(2000)]
    start = time.process_time()
    for t in trials:
        ledger.propose([(t.number, t.proposal)])
        ledger.record([t])
    assert (time.process_time() - start) / len(trials) < 0.5e-3  # ten times what it takes, for busy machines
