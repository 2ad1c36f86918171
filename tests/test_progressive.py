"""Rungs: little effort for many candidates, more for those that earn it; results only from the top."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import netcarve
import numpy as np
import pytest
import torch
from netcarve.engine import Interrupted
from netcarve.evaluators.base import Measured
from netcarve.evaluators.quality import Quality, pack
from netcarve.results import Fidelity, Proposal
from netcarve.results.fidelity import parse_rungs, proposals
from netcarve.results.objective import Objective
from netcarve.results.trial import Trial
from netcarve.search import searcher as searcher_by_name
from netcarve.search.progressive import Progressive, disagreements, mcnemar
from netcarve.search.registry import guard
from netcarve.spaces import Candidate, ModelSide, Space
from netcarve.testing import OBJECTIVES, SearcherConformance, facts, toy_scores, toy_space
from scipy.stats import binomtest
from torch import nn
from torch.utils.data import TensorDataset

THREE = (Fidelity("full"), Fidelity("half", samples=0.5), Fidelity("quick", samples=0.25))


class TestProgressive(SearcherConformance):
    searcher = Progressive


class TestProgressiveOnRungs(SearcherConformance):
    @staticmethod
    def searcher(space, objectives, *, seed):  # type: ignore[override]
        return Progressive(space, objectives, seed=seed, rungs=THREE)

    def test_neither_workers_nor_interruptions_matter(self, tmp_path: Path) -> None:
        """A budget that is spent promotes some more: a killed session is what must not matter, see below."""


def _scores(asked: Proposal) -> dict[str, float]:
    """On lower rungs quality is known with an error."""
    samples = next(rung.samples for rung in THREE if rung.name == asked.fidelity)
    base = toy_scores(asked.candidate)
    error = 0.02 * (1 - samples) * np.sin(37.0 * sum(asked.candidate.indices))
    return {"quality": base["quality"] + error, "cost": base["cost"]}


def _drive(searcher: netcarve.Searcher, n: int, scores: Any = _scores) -> list[Trial]:
    trials: list[Trial] = []
    while len(trials) < n and (asked := proposals(searcher.ask(4), searcher.rungs)):
        told = [
            Trial(len(trials) + i, one.candidate, scores(one), fidelity=one.fidelity)
            for i, one in enumerate(asked)
        ]
        trials += told
        searcher.tell(told)
    return trials


def _on(trials: list[Trial], fidelity: str) -> list[tuple[int, ...]]:
    return [t.candidate.indices for t in trials if t.fidelity == fidelity]


def test_one_of_so_many_goes_up_and_only_by_steps() -> None:
    searcher = Progressive(toy_space(5), OBJECTIVES, rungs=THREE, reduction=3, inner="random")
    trials = _drive(searcher, 120)
    on = [_on(trials, rung.name) for rung in THREE]
    assert set(on[0]) < set(on[1]) < set(on[2])
    for above, below in itertools.pairwise(on):
        assert len(below) // 3 - 1 <= len(above) <= -(-len(below) // 3)
    assert len({t.proposal for t in trials}) == 120


def test_who_goes_up_is_on_the_first_fronts() -> None:
    trials = _drive(Progressive(toy_space(5), OBJECTIVES, rungs=THREE[::2], inner="random"), 80)
    low = [t for t in trials if t.fidelity == "quick"]
    up = set(_on(trials, "full"))

    def beaten_by(trial: Trial) -> int:
        return sum(
            o.scores["quality"] > trial.scores["quality"] and o.scores["cost"] < trial.scores["cost"]
            for o in low
        )

    stay = [beaten_by(t) for t in low if t.candidate.indices not in up]
    gone = [beaten_by(t) for t in low if t.candidate.indices in up]
    assert np.mean(gone) < 0.3 * np.mean(stay)


def test_a_tiny_space_ends_with_its_best_on_top() -> None:
    searcher = Progressive(toy_space(2, 3), OBJECTIVES, rungs=THREE, reduction=2, inner="grid")
    trials = _drive(searcher, 100)
    assert searcher.finished
    assert [len(_on(trials, name)) for name in ("quick", "half", "full")] == [9, 5, 3]


def test_a_limit_that_only_the_top_keeps_stops_nobody() -> None:
    """Lower rungs see half of the quality: all break the limit there, and the best go up all the same."""
    searcher = guard(
        Progressive(toy_space(5), OBJECTIVES, rungs=THREE[::2], inner="random"), ["quality>=0.8"]
    )

    def score(asked: Proposal) -> dict[str, float]:
        scores = _scores(asked)
        return scores | {"quality": scores["quality"] / (2 if asked.fidelity == "quick" else 1)}

    trials = _drive(searcher, 120, score)
    top = [t.scores["quality"] for t in trials if t.fidelity == "full"]
    low = [2 * t.scores["quality"] for t in trials if t.fidelity == "quick"]
    assert len(top) >= len(low) // 3 - 1
    assert np.mean(np.array(top) >= 0.8) > 2 * np.mean(np.array(low) >= 0.8)


def test_it_has_not_finished_while_somebody_may_still_go_up() -> None:
    searcher = Progressive(toy_space(1, 4), OBJECTIVES, rungs=THREE[::2], reduction=2, inner="grid")
    waiting, done = list(searcher.ask(8)), 0
    while waiting:
        assert not searcher.finished
        (one,) = proposals([waiting.pop(0)], searcher.rungs)
        searcher.tell([Trial(done, one.candidate, _scores(one), fidelity=one.fidelity)])
        waiting += searcher.ask(8)
        done += 1
    assert searcher.finished
    assert done == 6


def test_the_paired_test_is_the_exact_binomial_one() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 7, 200):
        a, b = rng.random((2, n)) < 0.7
        wins, losses = disagreements(pack(a.tolist()), pack(b.tolist()))
        assert (wins, losses) == (int((a & ~b).sum()), int((b & ~a).sum()))
        expected = binomtest(wins, wins + losses, alternative="greater").pvalue if wins + losses else 1.0
        assert mcnemar(wins, losses) == pytest.approx(expected)


class _Costs(ModelSide):
    """MACs are known: each option takes a tenth."""

    def cost_arrays(self, choices: Any, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"macs": 10.0 - indices[:, 0].astype(float)}

    def build(self, candidate: Candidate, *, repair: object = None) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(("hits", "goes"), [(60, False), (94, True)])
def test_a_candidate_that_is_certainly_dominated_is_stopped(hits: int, goes: bool) -> None:
    """The cheapest is right on 95 of 100; a dearer one may go up if its lag can be chance."""
    space = Space(toy_space(1, 3).choices, model=_Costs())
    goals = [Objective("accuracy"), Objective("macs")]
    searcher = Progressive(space, goals, rungs=THREE[::2], reduction=2, inner="grid")
    asked: list[Proposal] = []
    right = {0: 96, 1: hits, 2: 95}
    while new := proposals(searcher.ask(4), searcher.rungs):
        asked += new
        for one in new:
            (index,) = one.candidate.indices
            n = right[index]
            bits = [i < n for i in range(100)]
            scores = {"accuracy": n / 100, "macs": 10.0 - index}
            detail = {"right": pack(bits)}
            searcher.tell([Trial(len(asked), one.candidate, scores, detail=detail, fidelity=one.fidelity)])
    on_top = {one.candidate.indices[0] for one in asked if one.fidelity == "full"}
    assert 2 in on_top
    assert goes or 1 not in on_top
    low = [s.trial for s in searcher._results[1].values()]
    assert [t.candidate.indices for t in low if searcher._is_beaten(t, low)] == ([] if goes else [(1,)])


# On a model.


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU())
        self.head = nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def _task() -> netcarve.Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 8, generator=generator)
    y = (x[:, :3] + 0.3 * x[:, 3:6] ** 2).argmax(1)
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[:400]), y[:400]).backward()
        optimizer.step()
    return netcarve.Task(net, x[:2], (x[400:], y[400:]), train=TensorDataset(x[:400], y[:400]), name="toy")


@pytest.fixture(scope="module")
def task() -> netcarve.Task:
    return _task()


def _space(task: netcarve.Task) -> Space:
    return netcarve.trace(task.model, task.example).space(ratios=4, calibration=task.calibration_batches)


@pytest.mark.slow
@pytest.mark.parametrize("trials", [2, 8, 14, 30])
def test_few_trials_end_with_networks_on_top(trials: int, tmp_path: Path, caplog: Any) -> None:
    def sweep(folder: str, trials: int, resume: bool = False) -> list[tuple[Any, ...]]:
        run = netcarve.sweep(
            None,
            toy_space(5),
            "progressive",
            OBJECTIVES,
            rungs=THREE,
            trials=trials,
            workers=0,
            out=tmp_path / folder,
            resume=resume,
            evaluators=[lambda task, model, candidate: toy_scores(candidate)],
        )
        return facts(run.trials)

    first = sweep("run", trials)
    assert "few for the rungs quick, half, full" in caplog.text
    top = [number for number, *_, fidelity in first if fidelity == "full" and number]
    assert len(top) >= 1
    assert trials <= len(first) <= trials + 3
    assert sweep("run", trials, resume=True) == first
    longer = sweep("run", trials + 25, resume=True)
    assert longer[: len(first)] == first
    assert len(longer) > len(first)
    assert sweep("run", trials + 25, resume=True) == longer


def test_a_sweep_adds_rungs_and_its_front_is_of_the_top(task: netcarve.Task, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"searcher": "progressive", "trials": 24, "workers": 0, "window": 4}
    run = netcarve.sweep(task, _space(task), out=tmp_path / "run", **arguments)
    assert [rung.name for rung in run.rungs] == ["full", "quick"]
    assert {t.fidelity for t in run.trials} == set(run.table["fidelity"]) == {"full", "quick"}
    assert {t.fidelity for t in [*run.front, *run.uniform]} == {"full"}
    assert len(run.front) >= 2
    for trial in run.trials:
        full = trial.fidelity == "full"
        assert trial.detail["right"][0] == (200 if full else 50)
        # The score is that of the network that is given out, on the whole data only on top.
        if full:
            scores = Quality()(task, run.model(trial.number), trial.candidate)
            assert scores["accuracy"] == trial.scores["accuracy"]

    class Stops(Quality):
        def __call__(self, *a: Any) -> dict[str, float]:
            stops.append(1)
            if len(stops) == 6:
                raise KeyboardInterrupt
            return super().__call__(*a)

    stops: list[int] = []
    with pytest.raises(Interrupted):
        netcarve.sweep(task, _space(task), out=tmp_path / "cut", evaluators=[Stops(each=True)], **arguments)
    again = netcarve.sweep(task, _space(task), out=tmp_path / "cut", resume=True, **arguments)

    def found(r: netcarve.Run) -> list[tuple[Proposal, float | None, Any]]:
        return [(t.proposal, t.scores.get("accuracy"), t.detail["right"]) for t in r.trials]

    assert found(again) == found(run)


def test_the_top_may_fine_tune(task: netcarve.Task, tmp_path: Path) -> None:
    space = _space(task)
    options: dict[str, Any] = {"trials": 16, "workers": 0, "out": tmp_path / "run", "seed": 1, "window": 4}
    run = netcarve.sweep(task, space, "progressive", rungs=("quick", "tuned"), **options)
    tuned = [t for t in run.trials[1:] if t.fidelity == "tuned"]
    assert tuned
    assert all(not t.failed for t in run.trials)
    best = tuned[0]
    plain = space.build(best.candidate)
    given = netcarve.load(tmp_path / "run", task).model(best.number)
    assert not given.training
    assert any(not torch.equal(a, b) for a, b in zip(plain.parameters(), given.parameters(), strict=True))
    assert Quality()(task, given, best.candidate)["accuracy"] == best.scores["accuracy"]
    # The unchanged model is never trained.
    assert (
        run.trials[0].scores["accuracy"]
        == task.measure(task.model(*a) for a, _, _ in task.batches)["accuracy"]
    )


def test_fine_tuning_needs_training_data(tmp_path: Path) -> None:
    made = _task()
    made.train = None
    with pytest.raises(ValueError, match="needs training data"):
        netcarve.sweep(
            made, _space(made), "progressive", workers=0, out=tmp_path / "run", rungs=("tuned", "quick")
        )
    assert not (tmp_path / "run").exists()


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two of them"):
        parse_rungs(THREE[:1])
    with pytest.raises(ValueError, match="distinct names"):
        parse_rungs([*THREE, "full"])
    for name, value in (
        ("samples", 0.0),
        ("samples", "all"),
        ("epochs", -1),
        ("epochs", True),
        ("repair", 2),
    ):
        with pytest.raises(ValueError, match=name):
            Fidelity("none", **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the name of a fidelity"):
        Fidelity("")
    with pytest.raises(ValueError, match="unknown rung"):
        parse_rungs(["full", "fast"])
    with pytest.raises(ValueError, match="takes no rungs; progressive does"):
        searcher_by_name("nsga2", toy_space(), OBJECTIVES, rungs=THREE)
    with pytest.raises(ValueError, match="none of this search's: full"):
        proposals([Proposal(toy_space().baseline, "quick")])
    with pytest.raises(ValueError, match="reduction"):
        Progressive(toy_space(), OBJECTIVES, reduction=1)


def test_what_cannot_be_kept_fails_the_candidate_and_not_the_sweep(tmp_path: Path) -> None:
    def scorer(task: Any, model: Any, candidate: Candidate) -> dict[str, float]:
        return Measured(toy_scores(candidate), detail={"bad": object() if any(candidate.indices) else 1})

    run = netcarve.sweep(
        None,
        toy_space(),
        "random",
        OBJECTIVES,
        trials=3,
        workers=0,
        out=tmp_path / "run",
        evaluators=[scorer],
    )
    assert [t.failed for t in run.trials] == [False, True, True]
    assert "plain JSON" in run.trials[1].reason


TASK_FILE = """
import netcarve, torch
from torch import nn

def task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(64, 4)
    data = (x, (x[:, 0] > 0).long())
    return netcarve.Task(model, example=x[:1], validation=data, train=data, metric="accuracy")
"""


def test_other_rungs_are_refused_before_the_model_is_traced(tmp_path: Path, call: Any) -> None:
    (tmp_path / "small.py").write_text(TASK_FILE)
    folder = str(tmp_path / "run")
    command = ("sweep", f"{tmp_path / 'small.py'}:task", "--searcher", "progressive", "--workers", "0")
    asked = (*command, "--trials", "3", "--objective", "accuracy", "--objective", "macs", "--out", folder)
    assert call(*asked).code == 0
    done = call(*asked, "--resume", "--rungs", "quick,full,tuned")
    assert done.code == 2
    assert "rungs was ['full', 'quick'], is now ['tuned', 'full', 'quick']" in done.err
    assert "tracing" not in done.err
    assert "tracing" in call(*asked, "--resume").err
