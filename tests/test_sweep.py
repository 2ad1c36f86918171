"""The sweep: the same trials however they are scored, and a clear error before any work."""

import os

import numpy as np
import pytest
from netcarve.engine import RunError, load, sweep
from netcarve.engine.budget import Budget
from netcarve.engine.known import Driver
from netcarve.engine.lane_pool import LanePool
from netcarve.engine.progress import Silent
from netcarve.evaluators.pool import InProcessPool, Job, Outcome
from netcarve.results import Proposal
from netcarve.results.ledger import Ledger
from netcarve.search.greedy.greedy import Greedy
from netcarve.search.registry import searcher as make_searcher
from netcarve.spaces import ModelSide, Space
from netcarve.testing import OBJECTIVES, AnyOrder, facts, toy_scores, toy_space
from netcarve.testing import ToyScorer as Toy
from netcarve.testing import toy_sweep as run

NAMES = ("quality:max", "cost:min")


class Costs(ModelSide):
    """A model side with analytic costs, and itself for a model."""

    def cost_arrays(self, choices, indices):
        return {"macs": 100.0 - indices.sum(axis=1)}

    def build(self, candidate, *, repair=None):
        return self

    def eval(self):
        return self


# what it does


def test_runs_and_keeps_everything(tmp_path):
    toy = Toy()
    made = run(tmp_path / "run", toy=toy)
    assert [t.number for t in made.trials] == list(range(40))
    assert made.trials[0].candidate == toy_space().baseline
    assert len({t.candidate for t in made.trials}) == 40 == len(toy.calls)
    assert dict(made.trials[7].scores) == toy_scores(made.trials[7].candidate)
    assert made.info["status"] == "finished"
    assert made.info["seconds"] > 0
    assert facts(load(tmp_path / "run").trials) == facts(made.trials)


def test_a_third_of_failures_is_recorded_and_survived(tmp_path):
    made = run(tmp_path / "run", toy=Toy(lambda c: sum(c.indices) % 3 == 2))
    failed = [t for t in made.trials if t.failed]
    assert len(made.trials) == 40
    assert failed
    assert {t.reason for t in failed} == {"ValueError: bad candidate"}
    assert not {t.number for t in failed} & {t.number for t in made.front}
    assert (made.table["error"] != "").sum() == len(failed)


def test_refused_candidates_never_reach_a_worker(tmp_path):
    space, toy = Space(toy_space(5).choices, model=Costs()), Toy()
    made = run(tmp_path / "run", space=space, limits=["macs<=0.9x"], toy=toy)
    baseline, *others = toy.calls
    assert baseline == space.baseline
    assert all(sum(c.indices) >= 10 for c in others)
    assert made.trials[3].scores["macs"] == 100.0 - sum(made.trials[3].candidate.indices)
    assert 0 not in {t.number for t in made.front}


def test_a_tiny_space_ends_the_sweep(tmp_path):
    made = run(tmp_path / "run", space=toy_space(2, 3), searcher="random", trials=1000)
    assert len(made.trials) == 9


def test_greedy_ends_the_sweep(tmp_path):
    made = run(tmp_path / "run", searcher="greedy", trials=1000)
    assert made.trials[-1].number < 60
    assert toy_space().candidate([3] * 4) in {t.candidate for t in made.trials}


def test_takes_an_instance(tmp_path):
    made = sweep(
        None,
        toy_space(),
        Greedy(toy_space(), OBJECTIVES),
        trials=10,
        workers=0,
        evaluators=[Toy()],
        out=tmp_path / "a",
    )
    named = run(tmp_path / "b", searcher="greedy", trials=10)
    assert facts(made.trials) == facts(named.trials)
    assert made.settings.searcher == "greedy"


# determinism


def drive(out, name, pool, *, trials=60, space=None, window=16, limits=()):
    space = space or toy_space(6)
    search = make_searcher(name, space, OBJECTIVES, seed=5, limits=limits)
    with Ledger(out, write=True) as ledger:
        Driver(search, pool, ledger, budget=Budget(trials), progress=Silent(), window=window).run()
        return ledger.trials(space)


@pytest.mark.parametrize("name", ["random", "nsga2", "greedy"])
@pytest.mark.parametrize("fail", [False, True])
def test_workers_and_their_order_do_not_matter(tmp_path, name, fail):
    space = Space(toy_space(6).choices, model=Costs())
    job = Job(None, space, [Toy(lambda c: fail and sum(c.indices) % 5 == 3)])
    limits = ["macs<=0.95x"]
    one = drive(tmp_path / "one", name, InProcessPool(job), space=space, limits=limits)
    assert len(one) > 10
    for workers in (1, 2, 7, 40):
        pool = AnyOrder(job, workers, seed=workers)
        assert facts(drive(tmp_path / str(workers), name, pool, space=space, limits=limits)) == facts(one)


def test_seeds_differ(tmp_path):
    a, b = run(tmp_path / "a", seed=1), run(tmp_path / "b", seed=2)
    assert facts(a.trials) != facts(b.trials)


class Deadly(Toy):
    """Takes the whole process with it on one candidate in nine; with ``mild`` it only raises."""

    def __init__(self, mild):
        super().__init__(lambda c: sum(c.indices) % 9 == 5)
        self.mild = mild

    def __call__(self, task, model, candidate):
        if self.fail(candidate) and not self.mild:
            os._exit(1)
        return super().__call__(task, model, candidate)


@pytest.mark.slow
def test_ray_workers_that_die_do_not_change_the_search(tmp_path):
    def go(name, workers):
        out, deadly = tmp_path / name, Deadly(mild=workers == 0)
        return sweep(
            None, toy_space(), "nsga2", NAMES, trials=24, workers=workers, evaluators=[deadly], out=out
        )

    here, there = go("here", 0).trials, go("there", 2).trials
    assert any(t.failed for t in there)
    assert all("worker died" in t.reason for t in there if t.failed)
    assert [f[:3] for f in facts(there)] == [f[:3] for f in facts(here)]


# bad input


def test_bad_input_is_refused_before_work(tmp_path):
    toy = Toy()
    cases = {
        "nothing measures the objective 'latency_ms'; this sweep knows quality, cost": {
            "objectives": ["latency"]
        },
        "nothing measures the limit on 'macs'": {"limits": ["macs<=0.5x"]},
        "unknown searcher 'none'": {"searcher": "none"},
        "cannot read the limit": {"limits": ["macs=3"]},
        "trials must be at least 1, got 0": {"trials": 0},
        "minutes must be more than 0": {"minutes": -1.0},
        "workers must be at least 0": {"workers": -1},
        "trial_timeout needs workers": {"trial_timeout": 3.0},
        "window must be at least 1": {"window": 0},
        "seed must be at least 0": {"seed": -1},
        "unknown metric 'shine'": {"objectives": ["shine"]},
    }
    for message, options in cases.items():
        given = {
            "searcher": "random",
            "objectives": NAMES,
            "workers": 0,
            "evaluators": [toy],
            "out": tmp_path / "run",
        }
        with pytest.raises(ValueError, match=message):
            sweep(None, toy_space(), **{**given, **options})
    with pytest.raises(ValueError, match=r"needs evaluators="):
        sweep(None, toy_space(), "random", NAMES)
    with pytest.raises(TypeError, match=r"task must be a netcarve.Task, got int"):
        sweep(3, toy_space(), "random", NAMES)
    with pytest.raises(TypeError, match=r"space must be a netcarve.Space, got Costs"):
        sweep(None, Costs(), "random", NAMES)
    with pytest.raises(ValueError, match="give the objectives once"):
        run(tmp_path / "run", searcher=Greedy(toy_space(), OBJECTIVES[:1]))
    assert toy.calls == []
    assert not (tmp_path / "run").exists()


def test_a_baseline_that_fails_ends_it_at_once(tmp_path):
    with pytest.raises(
        RunError, match="the unchanged model cannot be scored: ValueError: bad candidate"
    ) as caught:
        run(tmp_path / "run", toy=Toy(lambda c: True))
    assert caught.value.detail == ""  # it was raised by code of ours, which says nothing to them

    def theirs(task, model, candidate):
        raise ValueError("no data")

    with pytest.raises(RunError, match="cannot be scored: ValueError: no data") as caught:
        sweep(None, toy_space(), "random", NAMES, workers=0, evaluators=[theirs], out=tmp_path / "run")
    assert caught.value.detail.count("File ") == 1
    assert "in theirs" in caught.value.detail
    assert not (tmp_path / "run").exists()


def test_a_plain_function_that_lacks_an_objective(tmp_path):
    def only_quality(task, model, candidate):
        return {"quality": 1.0}

    with pytest.raises(RunError, match=r"nothing measures the objective 'cost'; .* gave quality"):
        sweep(None, toy_space(), "random", NAMES, workers=0, evaluators=[only_quality], out=tmp_path / "run")


# latency lane


class Alone:
    name, metrics, lane = "alone", ("latency_ms",), True

    def __init__(self, pool=None):
        self.seen = []

    def __call__(self, task, model, candidate):
        self.seen.append(candidate)
        if candidate.indices[0] == 2:
            raise RuntimeError("not on this device")
        return {"latency_ms": 1.0 + sum(candidate.indices)}


def test_lane_sees_only_what_the_pool_has_scored(tmp_path):
    alone, toy = Alone(), Toy(lambda c: c.indices[1] == 3)
    goals, out = ("quality:max", "latency"), tmp_path / "run"
    made = sweep(None, toy_space(), "random", goals, trials=30, workers=0, evaluators=[alone, toy], out=out)
    assert len(made.trials) == 30
    for trial in made.trials:
        first, second = trial.candidate.indices[:2]
        expected = "bad candidate" if second == 3 else "not on this device" if first == 2 else ""
        assert expected in trial.reason
        assert trial.failed == bool(expected)
        assert trial.failed or trial.scores["latency_ms"] == 1.0 + sum(trial.candidate.indices)
        assert (trial.candidate in alone.seen) == (second != 3)


def test_lane_waits_until_the_pool_is_idle():
    space = toy_space()
    pool = AnyOrder(Job(None, space, [Toy()]), workers=5)
    busy = []

    class Lane:
        def evaluate(self, number, candidate):
            busy.append(len(pool.queue))
            return Outcome(number, {"latency_ms": 1.0}, detail={"device": "toy"})

    lane_pool = LanePool(pool, Lane())
    lane_pool.submit(list(enumerate(map(Proposal, space.sample(np.random.default_rng(0), 5)))))
    outcomes = lane_pool.finished()
    assert [o.number for o in outcomes] == [0, 1, 2, 3, 4]
    assert all(o.scores["latency_ms"] == 1.0 and "quality" in o.scores for o in outcomes)
    assert busy == [0] * 5
    assert lane_pool.finished() == []


def test_latencies_are_shares_of_one_time_of_the_unchanged_model():
    """The machine slows down by half from one candidate to the next; what is told does not show it."""

    class Slowing:
        def __init__(self):
            self.slower = 1.0

        def evaluate(self, number, candidate):
            self.slower *= 1.5
            share = 1.0 / (1 + number)
            clock = {"latency_ms": 2.0 * share * self.slower}
            return Outcome(number, clock, detail={"ratio": share, "baseline_ms": 2.0 * self.slower})

    space = toy_space()
    candidates = list(enumerate(map(Proposal, space.sample(np.random.default_rng(0), 4))))
    for reference, first in ((None, 3.0), (1.0, 1.0)):  # a new run, one that is resumed
        lane_pool = LanePool(InProcessPool(Job(None, space, [Toy()])), Slowing(), reference_ms=reference)
        told = []
        for job in candidates:
            lane_pool.submit([job])
            told += [o.scores["latency_ms"] for o in lane_pool.finished()]
        assert told == pytest.approx([first, first / 2, first / 3, first / 4])
