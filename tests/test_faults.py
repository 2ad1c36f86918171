"""The benchmark of faults, small: what it says is found is found, and what it would miss it does not."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest
from netcarve.results import Ledger

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
driver, fuzzing, workers = (import_module(f"faults_{name}") for name in ("driver", "fuzz", "workers"))


def test_killed_drivers_lose_nothing(tmp_path):
    found = driver.kill_drivers(tmp_path, kills=6, trials=120, seed=1)
    assert found.kills == 6
    assert found.told > 50
    assert (found.missing, found.unreadable, found.same_front) == (0, 0, True)


def test_a_ledger_that_forgets_is_noticed(tmp_path, monkeypatch):
    record = Ledger.record

    def forgetful(self, trials):
        record(self, [t for t in trials if t.number % 10 != 7])

    monkeypatch.setattr(Ledger, "record", forgetful)
    found = driver.kill_drivers(tmp_path, kills=8, trials=60, seed=1)
    assert found.missing > 0


@pytest.mark.slow
def test_readers_refuse_in_words(tmp_path):
    found = fuzzing.fuzz(tmp_path, inputs=1500, seed=5)
    assert sum(r.inputs for r in found) == 1500
    assert {r.reader: dict(r.broke) for r in found if r.broke} == {}
    assert all(r.understood + r.refused == r.inputs for r in found)
    assert sum(r.refused for r in found) > 300  # the mutations bite


def test_a_reader_that_breaks_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzzing, "parse_device", lambda text: {}[text])
    found = {r.reader: r.broke.total() for r in fuzzing.fuzz(tmp_path, inputs=100)}
    assert found["limits, objectives, devices, links"] == 20


def test_faults_are_drawn_by_candidate_and_spare_the_baseline():
    space = workers.SPACE
    assert workers.fault_of(space.baseline, 1.0) == ""
    some = space.sample(__import__("numpy").random.default_rng(0), 400)
    drawn = [workers.fault_of(c, 0.25) for c in some]
    assert drawn == [workers.fault_of(c, 0.25) for c in some]
    assert set(drawn) == {"", *workers.FAULTS}
    assert 60 < sum(map(bool, drawn)) < 140


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_faulty_workers_change_no_result(tmp_path):
    found = workers.fault_workers(tmp_path, trials=24, share=0.3, timeout=2.0)
    assert found.failed == found.asked
    assert found.asked.total() >= 2
    assert (found.spared, found.differing, found.same_front) == (0, 0, True)
