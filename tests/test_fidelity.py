"""Fidelity beside the candidate: proposals, wrappers, pools, the ledger, and what results are read from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import netcarve
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from netcarve.engine.budget import Budget
from netcarve.engine.known import SAME, Driver, Known
from netcarve.engine.progress import Silent
from netcarve.evaluators import Job
from netcarve.report.document import report_document
from netcarve.results import Fidelity, Front, FrontTracker, Ledger, Proposal, in_full
from netcarve.results.fidelity import FULL, proposals
from netcarve.results.trial import Trial, comparable
from netcarve.search.progressive import Progressive
from netcarve.search.registry import guard
from netcarve.search.wrappers import Distinct, Feasible
from netcarve.spaces import Candidate, ModelSide, Space
from netcarve.testing import OBJECTIVES, AnyOrder, ToyScorer, drive, facts, toy_space, toy_sweep
from torch import nn

THREE = (Fidelity("full"), Fidelity("half", samples=0.5), Fidelity("quick", samples=0.25))


def test_what_is_asked_for_plainly_is_judged_in_full() -> None:
    space = toy_space(1)
    asked = proposals([space.baseline, Proposal(space.candidate([1]), "half")], THREE)
    assert [(one.candidate.indices, one.fidelity) for one in asked] == [((0,), "full"), ((1,), "half")]


class _Costs(ModelSide):
    """MACs are known: each option takes a tenth."""

    def cost_arrays(self, choices: Any, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"macs": 10.0 - indices[:, 0].astype(float)}

    def build(self, candidate: Candidate, *, repair: object = None) -> Any:
        raise NotImplementedError


class _Several(netcarve.Searcher):
    """A third party's: candidates at random, each on every rung, and again."""

    rungs = THREE

    def ask(self, n: int) -> list[Proposal]:
        (candidate,) = self.space.sample(self.rng, 1)
        return [Proposal(candidate, rung.name) for rung in (*self.rungs, self.rungs[0])][:n]


def test_wrappers_tell_one_fidelity_from_another() -> None:
    made = _Several(toy_space(2, 3), OBJECTIVES)
    trials = drive(guard(made), 27)
    assert len({t.proposal for t in trials}) == len(trials) > 18
    assert {t.fidelity for t in trials} == {"full", "half", "quick"}
    assert isinstance(guard(made), Distinct)
    space = Space(toy_space(1, 3).choices, model=_Costs())
    kept = Feasible(_Several(space, OBJECTIVES, seed=2), ["macs<=9"]).ask(3)
    assert [one.fidelity for one in proposals(kept, THREE)] == ["full", "half", "quick"]
    assert all(one.candidate.indices[0] >= 1 for one in proposals(kept, THREE))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_front_never_mixes_fidelities(data: st.DataObject) -> None:
    number = st.integers(0, 4).map(float)
    drawn = data.draw(st.lists(st.tuples(st.sampled_from(THREE), number, number), min_size=1, max_size=20))
    space = toy_space(1)
    trials = [
        Trial(i, space.baseline, {"accuracy": a, "macs": m}, fidelity=rung.name)
        for i, (rung, a, m) in enumerate(drawn)
    ]
    shuffled = data.draw(st.permutations(trials))
    front, top = Front(shuffled, ["accuracy", "macs"]), trials[0].fidelity
    assert {t.fidelity for t in front} == {top}
    alone = Front([t for t in trials if t.fidelity == top], ["accuracy", "macs"])
    assert [t.number for t in front] == [t.number for t in alone]
    assert front.hypervolume() == alone.hypervolume()
    tracker = FrontTracker(["accuracy", "macs"])
    for trial in trials:
        tracker.add(trial)
    assert tracker.size == len(front)
    assert tracker.hypervolume() == pytest.approx(front.hypervolume())
    assert [t.fidelity for t in in_full(shuffled)] == [top] * len(in_full(trials))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 5])
def test_neither_workers_nor_a_killed_session_change_the_trials(workers: int, tmp_path: Path) -> None:
    """As of a process that is killed between two commits: the ledger is reopened, and replayed."""
    space = toy_space(4)
    job = Job(None, space, [ToyScorer()], rungs=THREE)

    class Killed(AnyOrder):
        left = 60

        def finished(self, timeout: float | None = None) -> list[Any]:
            done = super().finished(timeout)
            self.left -= len(done)
            if self.left <= 0:
                raise KeyboardInterrupt
            return done

    def run(name: str, kind: type[AnyOrder], workers: int) -> list[Any]:
        made = guard(Progressive(space, OBJECTIVES, seed=1, rungs=THREE))
        with Ledger(tmp_path / name, write=True) as ledger:
            pool = kind(job, workers, seed=workers)
            Driver(made, pool, ledger, budget=Budget(100), progress=Silent(), window=6).run()
            return facts(ledger.trials(space))

    alone = run("alone", AnyOrder, 1)
    with pytest.raises(KeyboardInterrupt):
        run("cut", Killed, workers)
    assert len(Ledger(tmp_path / "cut").trials(space)) < 60
    assert run("cut", AnyOrder, workers) == alone
    assert {fidelity for *_, fidelity in alone} == {"full", "half", "quick"}


def test_a_network_is_known_on_its_fidelity_alone() -> None:
    class Model(ModelSide):
        def network_key(self, candidate: Candidate) -> bytes:
            return bytes(candidate.indices)

    class Alone(ToyScorer):
        of_network = True

    space = toy_space()
    known = Known(Space(space.choices, model=Model()), [Alone()])
    outcome = Job(None, space, [ToyScorer()], rungs=THREE).evaluate(3, space.baseline, "quick")
    known.learn(Proposal(space.baseline, "quick"), outcome)
    again = known.outcome(4, Proposal(space.baseline, "quick"))
    assert again is not None
    assert again.detail[SAME] == 3
    assert known.outcome(5, Proposal(space.baseline)) is None


def test_a_job_judges_on_the_share_of_data_of_its_fidelity() -> None:
    seen: list[int] = []

    def count(task: Any, model: Any, candidate: Candidate) -> dict[str, float]:
        seen.append(sum(len(targets) for _, _, targets in task.batches))
        return {"samples": float(seen[-1])}

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(200, 4)
    task = netcarve.Task(net, x[:2], (x, net(x).argmax(1)), confirm=False)
    space = netcarve.trace(task.model, task.example).space(ratios=2)
    job = Job(task, space, (count,), rungs=THREE)
    candidate = space.candidate([1] * len(space))
    scores = [job.evaluate(1, candidate, name).scores for name in ("full", "half", "quick", None)]
    assert scores == [{"samples": n} for n in (200.0, 100.0, 50.0, 200.0)]
    assert "unknown fidelity 'tuned'" in (job.evaluate(1, candidate, "tuned").error or "")


def test_a_ledger_keeps_a_candidate_on_each_fidelity(tmp_path: Path) -> None:
    space = toy_space()
    settings = {"choices": [[c.name, list(c.options)] for c in space.choices]}
    trials = [
        Trial(i, space.baseline, {"quality": 0.1 * i}, fidelity=rung.name) for i, rung in enumerate(THREE)
    ]
    with Ledger(tmp_path / "ledger", write=True) as ledger:
        ledger.save_settings(settings)
        ledger.propose([(t.number, t.proposal) for t in trials])
        ledger.record(trials)
        with pytest.raises(netcarve.results.LedgerError, match="another candidate"):
            ledger.propose([(1, Proposal(space.baseline, "quick"))])
    with Ledger(tmp_path / "ledger") as reader:
        assert reader.trials() == trials
        assert [one.fidelity for one in reader.proposals().values()] == ["full", "half", "quick"]


def test_what_people_read_is_of_the_top(tmp_path: Path) -> None:
    run = toy_sweep(tmp_path / "run", searcher="progressive", trials=30, rungs=THREE)
    assert {t.fidelity for t in run.front} == {FULL.name}
    low = next(t for t in run.trials if t.fidelity == "quick")
    assert "fidelity quick: 25 % of the validation data" in run.show(low.number)
    top = next(t for t in run.trials if t.fidelity == FULL.name and t.number)
    assert comparable(top, run.baseline) == run[0].scores
    assert comparable(low, run.baseline) == {}
    (shown,) = report_document([run])["runs"]
    assert any("Not shown: trials judged on lower rungs" in text for text in shown["notes"])
    assert shown["numbers"] == [t.number for t in run.trials if t.fidelity == FULL.name]
