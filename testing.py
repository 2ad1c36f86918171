"""For tests: a toy problem, and what every searcher must do, as a class to inherit::

    from netcarve.testing import SearcherConformance

    class TestMine(SearcherConformance):
        searcher = MySearcher

Runs under pytest, without torch and in seconds.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .engine.budget import Budget
from .engine.known import Driver
from .engine.launch import sweep
from .engine.progress import Silent
from .engine.run import Run
from .evaluators.base import Evaluator
from .evaluators.pool import Job, Outcome, Pool
from .results.fidelity import Proposal, proposals
from .results.hypervolume import nondominated
from .results.ledger import Ledger
from .results.objective import Limit, Objective, total_violation
from .results.trial import Trial
from .search.base import Searcher
from .search.exact.certificate import Certificate
from .search.registry import guard
from .spaces import Candidate, Choice, ModelSide, Space

if TYPE_CHECKING:
    pass

OBJECTIVES = (Objective("quality", "max"), Objective("cost", "min"))


def toy_space(choices: int = 4, options: int = 4) -> Space:
    """A pure space with options 0, 1, 2, ... in every choice."""
    return Space([Choice(f"c{d}", tuple(range(options))) for d in range(choices)])


def toy_scores(candidate: Candidate) -> dict[str, float]:
    """Smooth and conflicting: ``quality`` falls and ``cost`` falls with compression, at rates that differ by
    choice. Both in (0, 1]."""
    x = np.asarray(candidate.indices) / np.maximum([len(c) - 1 for c in candidate.choices], 1)
    weight = 1.0 / (1.0 + np.arange(len(x)))
    return {
        "quality": float(1.0 - (weight * x**2).sum() / (weight.sum() + 1e-9)),
        "cost": float(1.0 - 0.9 * x.mean()),
    }


def drive(
    searcher: Searcher,
    n: int,
    *,
    batch: int = 4,
    fail: Callable[[Candidate], bool] = lambda _: False,
    order: Callable[[Sequence[Trial]], Sequence[Trial]] = lambda trials: trials,
    scores: Callable[[Candidate], dict[str, float]] = toy_scores,
) -> list[Trial]:
    """Ask and tell until ``n`` trials, or until the searcher asks for nothing more; all trials in order."""
    trials: list[Trial] = []
    while len(trials) < n:
        asked = proposals(searcher.ask(min(batch, n - len(trials))), searcher.rungs)
        if not asked:
            break
        told = []
        for number, one in enumerate(asked, start=len(trials)):
            failed = fail(one.candidate)
            found, error = ({}, "on purpose") if failed else (scores(one.candidate), None)
            told.append(Trial(number, one.candidate, found, error, fidelity=one.fidelity))
        trials += told
        searcher.tell(list(order(told)))
    return trials


def every(space: Space) -> list[Candidate]:
    """All candidates of a small space."""
    return [Candidate(row, space.choices) for row in itertools.product(*map(range, space.counts.tolist()))]


def true_front(
    space: Space,
    objectives: Sequence[Objective],
    limits: Sequence[Limit] = (),
    scores: Callable[[Candidate], Mapping[str, float]] = lambda _: {},
) -> np.ndarray:
    """The distinct non-dominated vectors of objectives, by brute force; float64 [n, objectives], minimised.

    Args:
        scores: what is measured, beside what the space computes.
    """
    everything = every(space)
    costs = space.cost_arrays(everything)
    found = [{m: float(v[i]) for m, v in costs.items()} | dict(scores(c)) for i, c in enumerate(everything)]
    kept = [f for f in found if total_violation(limits, f, found[0]) == 0]  # the first is the unchanged model
    points = np.array([[o.sign * f[o.name] for o in objectives] for f in kept]).reshape(-1, len(objectives))
    points = np.unique(points, axis=0)
    return points[nondominated(points)] if len(points) else points


def claimed(certificate: Certificate, objectives: Sequence[Objective]) -> np.ndarray:
    """The distinct vectors of a certificate's front, as :func:`true_front` gives them."""
    points = [[o.sign * entry["scores"][o.name] for o in objectives] for entry in certificate.front]
    return np.unique(np.array(points).reshape(-1, len(objectives)), axis=0)


class ToyScorer(Evaluator):
    """Gives :func:`toy_scores`, fails where told, keeps the candidates it was called for."""

    name = "toy"
    metrics = ("quality", "cost")

    def __init__(self, fail: Callable[[Candidate], bool] = lambda _: False) -> None:
        self.fail = fail
        self.calls: list[Candidate] = []

    def __call__(self, task: Any, model: Any, candidate: Candidate) -> dict[str, float]:
        self.calls.append(candidate)
        if self.fail(candidate):
            raise ValueError("bad candidate")
        return toy_scores(candidate)


def toy_sweep(
    out: Path | None,
    *,
    space: Space | None = None,
    searcher: str | Searcher = "nsga2",
    trials: int | None = 40,
    toy: ToyScorer | None = None,
    **options: Any,
) -> Run:
    """A sweep over a pure space in this process."""
    scorers, goals = [toy or ToyScorer()], ("quality:max", "cost:min")
    space = space or toy_space()
    return sweep(
        None, space, searcher, goals, trials=trials, workers=0, out=out, evaluators=scorers, **options
    )


class AnyOrder(Pool):
    """A pool of several workers that finish in random order and in bunches."""

    def __init__(self, job: Job, workers: int, seed: int = 0) -> None:
        self.job, self.workers = job, workers
        self.rng = np.random.default_rng(seed)
        self.queue: list[tuple[int, Proposal]] = []

    def room(self) -> int:
        return max(0, self.workers - len(self.queue))

    def submit(self, jobs: Sequence[tuple[int, Proposal]]) -> None:
        self.queue += jobs

    def finished(self, timeout: float | None = None) -> list[Outcome]:
        order = self.rng.permutation(len(self.queue)).tolist()
        n = int(self.rng.integers(1, len(order) + 1)) if order else 0
        done = [self.queue[i] for i in order[:n]]
        self.queue = [self.queue[i] for i in order[n:]]
        return [self.job.evaluate(number, one.candidate, one.fidelity) for number, one in done]

    def close(self) -> None:
        self.queue = []


def facts(trials: Sequence[Trial]) -> list[tuple[int, tuple[int, ...], dict[str, float], str, str]]:
    """All of a trial but times and workers: number, indices, scores, reason of failure, fidelity."""
    return [(t.number, t.candidate.indices, dict(t.scores), t.reason, t.fidelity) for t in trials]


def _scored(number: int, asked: Proposal) -> Trial:
    return Trial(number, asked.candidate, toy_scores(asked.candidate), fidelity=asked.fidelity)


class _Cost(ModelSide):
    """A model side whose cost falls linearly from 1 to 0.1."""

    def cost_arrays(self, choices: tuple[Choice, ...], indices: np.ndarray) -> dict[str, np.ndarray]:
        most = np.array([len(c) - 1 for c in choices])
        return {"cost": 1.0 - 0.9 * (indices / most).mean(axis=1)}

    def build(self, candidate: Candidate, *, repair: object = None) -> Any:
        raise NotImplementedError


class SearcherConformance:
    """Inherit, and set ``searcher`` to the class (or to a function of space, objectives, seed)."""

    searcher: ClassVar[Callable[..., Searcher]]
    random: ClassVar[bool] = True  # False: the same whatever the seed
    learns: ClassVar[bool] = True  # False: goes its way whatever earlier runs found

    def make(self, space: Space, objectives: Sequence[Objective] = OBJECTIVES, seed: int = 0) -> Searcher:
        return type(self).searcher(space, objectives, seed=seed)

    def proposals(self, space: Space, n: int = 40, *, seed: int = 0, **options: Any) -> list[tuple[int, ...]]:
        return [t.candidate.indices for t in drive(self.make(space, seed=seed), n, **options)]

    def test_proposes_candidates_of_the_space(self) -> None:
        space = Space([Choice("a", (1.0, 0.5)), Choice("b", ("x",)), Choice("c", tuple(range(9)))])
        found = self.proposals(space)
        assert found
        for indices in found:
            assert space.candidate(indices).choices == space.choices
            assert all(type(i) is int for i in indices)

    def test_proposes_at_most_what_is_asked_for(self) -> None:
        searcher = self.make(toy_space())
        for n in (1, 3, 1, 16, 2):
            asked = proposals(searcher.ask(n), searcher.rungs)
            assert len(asked) <= n
            searcher.tell([_scored(i, one) for i, one in enumerate(asked)])

    def test_stays_within_its_fidelities(self) -> None:
        searcher = guard(self.make(toy_space()))
        names = {rung.name for rung in searcher.rungs}
        assert {one.fidelity for one in proposals(searcher.ask(4), searcher.rungs)} <= names
        assert {t.fidelity for t in drive(searcher, 40)} <= names

    def test_same_seed_same_proposals(self) -> None:
        assert self.proposals(toy_space(), seed=3) == self.proposals(toy_space(), seed=3)

    def test_other_seed_other_proposals(self) -> None:
        if self.random:
            assert self.proposals(toy_space(8), seed=3) != self.proposals(toy_space(8), seed=4)

    def test_global_random_state_does_not_matter(self) -> None:
        np.random.seed(1)
        first = self.proposals(toy_space())
        np.random.seed(2)
        random.seed(2)
        state = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
        assert self.proposals(toy_space()) == first
        assert (random.getstate(), np.random.get_state()[1].tolist()) == state  # type: ignore[index]

    def test_order_within_a_batch_does_not_matter(self) -> None:
        in_order = self.proposals(toy_space(6), batch=6)
        assert self.proposals(toy_space(6), batch=6, order=lambda trials: trials[::-1]) == in_order

    def test_survives_failures(self) -> None:
        assert self.proposals(toy_space(), fail=lambda c: sum(c.indices) % 2 == 1)
        searcher = guard(self.make(toy_space()))
        assert len(drive(searcher, 40, fail=lambda _: True)) == 40 or searcher.finished

    def test_survives_scores_of_any_size(self) -> None:
        sizes: tuple[Callable[[float], float], ...] = (
            lambda v: 1e-300 * v,
            lambda v: 1.7e308 if v > 0.5 else -1.7e308,
            lambda v: 1.7e308 if v > 0.8 else v,
            lambda v: -1.7e308 if v < 0.3 else 1e-300 * v,
            lambda v: 0.5,
        )
        for size in sizes:
            scores = lambda c, size=size: {name: size(v) for name, v in toy_scores(c).items()}  # noqa: E731
            searcher = guard(self.make(toy_space()))
            assert len(drive(searcher, 16, scores=scores)) == 16 or searcher.finished

    def test_survives_trials_without_an_objective(self) -> None:
        drive(self.make(toy_space()), 40, scores=lambda c: {"quality": 1.0})

    def test_accepts_trials_that_it_never_asked_for(self) -> None:
        space = toy_space()
        searcher = self.make(space)
        strangers = space.sample(np.random.default_rng(0), 6)
        searcher.tell([Trial(i, c, toy_scores(c)) for i, c in enumerate([space.baseline, *strangers])])
        searcher.tell([Trial(-1, space.candidate([3, 3, 3, 3]), error="refused")])
        assert drive(searcher, 20)

    def test_earlier_trials_are_used_and_not_spent_again(self) -> None:
        space = toy_space(5)
        earlier = [space.baseline, *space.sample(np.random.default_rng(0), 36)]
        found = []
        for sign in (1.0, -1.0):  # the same candidates, with the best and the worst exchanged
            searcher = guard(self.make(space))
            for i, c in enumerate(earlier):
                scores = toy_scores(c)
                scores["quality"] *= sign
                searcher.tell([Trial(i, c, scores, fidelity=searcher.rungs[0].name)])
            found.append([t.candidate for t in drive(searcher, 24)])
            assert found[-1]
            assert not set(found[-1]) & set(earlier)
        if self.learns:
            assert found[0] != found[1]

    def test_neither_workers_nor_interruptions_matter(self, tmp_path: Path) -> None:
        """A run of one worker, and one of seven that finish in any order, stopped half-way and resumed."""
        space = Space(toy_space(5).choices, model=_Cost())
        rungs = self.make(space).rungs
        job = Job(None, Space(space.choices), [ToyScorer(fail=lambda c: c.indices[0] == 2)], rungs=rungs)

        def run(name: str, workers: int, trials: int) -> list[Trial]:
            searcher = guard(self.make(space, seed=1), ["cost<=0.9x", "quality>=0.2x"])
            with Ledger(tmp_path / name, write=True) as ledger:
                pool = AnyOrder(job, workers, seed=trials)
                Driver(searcher, pool, ledger, budget=Budget(trials), progress=Silent(), window=8).run()
                return ledger.trials(space)

        alone = run("alone", 1, 24)
        half = run("resumed", 7, 12)
        assert len(alone) > 4
        assert facts(half) == facts(alone[:12])
        assert facts(run("resumed", 7, 24)) == facts(alone)

    def test_late_trials(self) -> None:
        """With a window of candidates under way, told one by one, it neither stops nor repeats itself."""
        searcher = guard(self.make(toy_space()))
        waiting: list[Proposal] = []
        told: list[Proposal] = []
        while len(told) < 30:
            waiting += proposals(searcher.ask(8 - len(waiting)), searcher.rungs)
            if not waiting:
                break
            told.append(waiting.pop(0))
            searcher.tell([_scored(len(told) - 1, told[-1])])
        assert len(told) == len(set(told))
        assert len(told) == 30 or searcher.finished

    def test_exhausts_a_tiny_space_without_repeats(self) -> None:
        space = toy_space(2, 3)
        searcher = guard(self.make(space))
        trials = drive(searcher, 50)
        assert len({t.proposal for t in trials}) == len(trials) <= space.size * len(searcher.rungs)
        assert searcher.finished
        assert searcher.ask(1) == []

    def test_one_choice_and_one_candidate(self) -> None:
        assert drive(guard(self.make(toy_space(1, 5))), 20)
        assert {t.candidate.indices for t in drive(guard(self.make(toy_space(1, 1))), 20)} == {(0,)}

    def test_one_objective(self) -> None:
        searcher = guard(self.make(toy_space(), objectives=OBJECTIVES[1:]))
        assert drive(searcher, 30)

    def test_three_objectives(self) -> None:
        objectives = (*OBJECTIVES, Objective("third", "max"))
        searcher = guard(self.make(toy_space(), objectives=objectives))
        assert drive(searcher, 30, scores=lambda c: {**toy_scores(c), "third": float(c.indices[0])})

    def test_limits_on_what_is_measured(self) -> None:
        searcher = guard(self.make(toy_space()), ["quality>=0.7x", "third<=2"])
        searcher.tell([Trial(0, toy_space().baseline, {**toy_scores(toy_space().baseline), "third": 0.0})])
        trials = drive(searcher, 40, scores=lambda c: {**toy_scores(c), "third": float(c.indices[0])})
        assert any(t.scores["quality"] >= 0.7 and t.scores["third"] <= 2 for t in trials)

    def test_keeps_limits_from_below(self) -> None:
        space = Space(toy_space(6).choices, model=_Cost())
        trials = drive(guard(self.make(space), ["cost>=0.5x", "cost<=0.8x"]), 30)
        assert trials
        assert all(0.5 - 1e-9 <= t.scores["cost"] <= 0.8 + 1e-9 for t in trials)

    def test_keeps_limits_that_nearly_everything_breaks(self) -> None:
        space = Space(toy_space(6).choices, model=_Cost())
        searcher = guard(self.make(space), ["cost<=0.28x"])  # 1 % of the space
        trials = drive(searcher, 30)
        assert trials
        assert all(t.scores["cost"] <= 0.28 + 1e-9 for t in trials)
