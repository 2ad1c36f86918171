"""The generator adapter, and the wrappers Distinct and Feasible."""

import itertools

import numpy as np
import pytest
from netcarve.results.trial import Trial
from netcarve.search.baselines import Random
from netcarve.search.generator import GeneratorSearcher
from netcarve.search.registry import guard, searcher
from netcarve.search.wrappers import Distinct, Feasible, check_reachable
from netcarve.spaces import ModelSide, Space
from netcarve.testing import OBJECTIVES, drive, toy_scores, toy_space


class Costs(ModelSide):
    """An analytic model side: cost falls linearly from 1 to 0.1."""

    def __init__(self, weights):
        self.weights = np.asarray(weights) / np.sum(weights)

    def cost_arrays(self, choices, indices):
        x = indices / (np.array([len(c) for c in choices]) - 1)
        return {"macs": 1.0 - 0.9 * x @ self.weights}

    def build(self, candidate):
        raise NotImplementedError


def costed_space(choices=6, options=4):
    return Space(toy_space(choices, options).choices, model=Costs(np.arange(1.0, choices + 1)))


def every(space):
    return [space.candidate(i) for i in itertools.product(*(range(n) for n in space.counts.tolist()))]


# generator searcher


class Script(GeneratorSearcher):
    """Yields what it is given, keeps what it is sent."""

    batches: list
    sent: list

    def search(self):
        for batch in self.batches:
            self.sent.append((yield batch))


def script(space, *batches):
    made = Script(space, OBJECTIVES)
    made.batches, made.sent = batches, []
    return made


def test_generator_is_sent_trials_in_the_order_it_asked():
    space = toy_space()
    a, b, c = space.sample(np.random.default_rng(0), 3)
    made = script(space, [a, b, c])
    assert made.ask(2) == [a, b]
    made.tell([Trial(1, b, toy_scores(b))])
    assert made.ask(5) == [c]
    assert made.ask(1) == []
    assert not made.finished
    made.tell([Trial(2, c, error="no"), Trial(0, a, toy_scores(a))])
    assert [t.number for t in made.sent[0]] == [0, 1, 2]
    assert made.finished


def test_generator_gets_each_repeat_within_a_batch_and_empty_batches_at_once():
    space = toy_space()
    a = space.baseline
    made = script(space, [], [a, a], [])
    assert made.ask(5) == [a]
    made.tell([Trial(0, a, toy_scores(a))])
    assert [[t.number for t in trials] for trials in made.sent] == [[], [0, 0], []]
    assert made.finished


def test_generator_does_not_ask_for_what_it_was_told_meanwhile():
    space = toy_space()
    a, b = space.baseline, space.candidate([1, 0, 0, 0])
    made = script(space, [a, b])
    assert made.ask(1) == [a]
    made.tell([Trial(7, b, toy_scores(b))])
    assert made.ask(1) == []
    made.tell([Trial(0, a, toy_scores(a))])
    assert made.finished


# distinct


def test_distinct_answers_duplicates_from_memory():
    space = toy_space()
    a, b = space.baseline, space.candidate([1, 0, 0, 0])
    inner = script(space, [a], [a], [a, b])
    distinct = Distinct(inner)
    assert distinct.ask(3) == [a]
    distinct.tell([Trial(0, a, toy_scores(a))])
    assert distinct.ask(3) == [b]
    assert [[t.number for t in trials] for trials in inner.sent] == [[0], [0]]


def test_distinct_answers_a_duplicate_under_way_when_its_trial_comes():
    space = toy_space()
    a = space.baseline

    class Twice(Random):
        told = ()

        def ask(self, n):
            return [a] * min(n, 2)

        def tell(self, trials):
            self.told = (*self.told, *trials)

    inner = Twice(space, OBJECTIVES)
    distinct = Distinct(inner, patience=1000)
    assert distinct.ask(1) == [a]
    distinct.tell([Trial(0, a, toy_scores(a))])
    assert [t.number for t in inner.told] == [0]


def test_distinct_puts_a_neighbour_in_place_of_endless_duplicates():
    space = toy_space()
    a = space.candidate([2, 2, 2, 2])

    class Stuck(Random):
        def ask(self, n):
            return [a]

    distinct = Distinct(Stuck(space, OBJECTIVES), patience=3)
    first, *others = distinct.ask(6)
    assert first == a
    assert set(others) <= set(space.neighbours(a))
    assert len(set(others)) == 5


def test_distinct_knows_trials_it_never_asked_for():
    space = toy_space(1, 2)
    distinct = Distinct(Random(space, OBJECTIVES))
    distinct.tell([Trial(0, space.baseline, toy_scores(space.baseline))])
    assert distinct.ask(5) == [space.candidate([1])]
    assert distinct.finished


def test_distinct_reaches_every_candidate_of_a_space():
    space = toy_space(3, 3)

    class Stuck(Random):
        def ask(self, n):
            return [space.baseline]

    trials = drive(Distinct(Stuck(space, OBJECTIVES), patience=1), 100)
    assert len(trials) == space.size == len({t.candidate for t in trials})


def test_guarded_search_reaches_every_feasible_candidate():
    space = costed_space(4, 3)
    made = guard(Random(space, OBJECTIVES), ["macs<=0.4x"])
    feasible = {c for c in every(space) if space.cost_arrays([c])["macs"][0] <= 0.4}
    trials = drive(made, 200)
    assert {t.candidate for t in trials} == feasible
    assert made.finished


# feasible


def test_feasible_tells_the_inner_searcher_what_it_refused():
    space = costed_space()
    inner = script(space, [space.baseline, space.candidate(space.counts - 1)])
    made = Feasible(inner, ["macs<=0.5x"])
    repaired, kept = made.ask(2)
    assert space.cost_arrays([repaired])["macs"][0] <= 0.5
    made.tell([Trial(0, repaired, {"quality": 1.0}), Trial(1, kept, {"quality": 1.0})])
    assert [t.failed for t in inner.sent[0]] == [True, False]
    assert "macs<=0.5x" in inner.sent[0][0].reason


def test_repair_stays_near():
    space = costed_space()
    made = Feasible(Random(space, OBJECTIVES), ["macs<=0.5x"])
    for candidate in space.sample(np.random.default_rng(0), 50):
        repaired = made.repair(candidate)
        assert repaired is not None
        assert all(r >= c for r, c in zip(repaired.indices, candidate.indices, strict=True))
        if repaired != candidate:  # one step back breaks the limit, for one choice at least
            backs = [c for c in space.neighbours(repaired) if sum(c.indices) < sum(repaired.indices)]
            assert max(space.cost_arrays(backs)["macs"]) > 0.5


def test_repair_of_lower_limits_goes_back_towards_the_unchanged():
    space = costed_space()
    made = Feasible(Random(space, OBJECTIVES), ["macs>=0.8x"])
    costs = space.cost_arrays(made.ask(30))["macs"]
    assert len(costs) == 30
    assert costs.min() >= 0.8


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("macs<=0.01x", r"macs<=0.01x cannot be met: the smallest candidate has 0.1x"),
        ("macs<=0.05", r"macs<=0.05 cannot be met: the smallest candidate has 0.1;"),
        ("macs>=2x", r"macs>=2x cannot be met: the largest candidate has 1x"),
    ],
)
def test_unreachable_limit_is_refused(limit, message):
    with pytest.raises(ValueError, match=message):
        searcher("random", costed_space(), OBJECTIVES, limits=[limit])


def test_limits_on_measured_metrics_pass_and_reach_the_algorithm():
    space = costed_space()
    made = searcher("nsga2", space, OBJECTIVES, limits=["quality>=0.5x"])
    check_reachable(space, made.limits, made.baseline)
    base = Trial(0, space.baseline, {"quality": 0.8, "cost": 1.0})
    made.tell([base])
    inner = made.inner.inner
    bad = Trial(1, space.candidate([1] * 6), {"quality": 0.2, "cost": 1.0})
    assert inner.violation(base) == 0.0
    assert inner.violation(bad) == pytest.approx(0.5)
    assert inner.violation(Trial(2, bad.candidate, error="x")) == np.inf
