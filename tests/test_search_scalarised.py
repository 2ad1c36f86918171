"""Scalarisation: what weighted sums miss and Chebyshev norms find, over any single-objective searcher."""

import itertools

import numpy as np
import pytest
from netcarve.results.objective import Objective
from netcarve.results.trial import Trial
from netcarve.search.baselines import Random
from netcarve.search.bayesian.optuna_samplers import TPE
from netcarve.search.evolutionary import ranking
from netcarve.search.evolutionary.evolution import Ageing, first_population
from netcarve.search.evolutionary.particle_swarm import ParticleSwarm
from netcarve.search.registry import guard
from netcarve.search.scalarised import Chebyshev, WeightedSum
from netcarve.spaces import Choice, Space
from netcarve.testing import OBJECTIVES, SearcherConformance, drive, toy_scores, toy_space

COSTS = (Objective("a", "min"), Objective("b", "min"))


class TestWeightedSum(SearcherConformance):
    searcher = WeightedSum


class TestChebyshev(SearcherConformance):
    searcher = Chebyshev


class TestChebyshevOfAgeing(SearcherConformance):
    @staticmethod
    def searcher(space, objectives, *, seed=0):
        return Chebyshev(space, objectives, seed=seed, inner=Ageing, directions=3)


# A front that is concave everywhere: a quarter circle, reached where the other three choices are right.

STEPS = 12
TARGET = (3, 1, 4)


def concave_space():
    return Space([Choice("x", tuple(range(STEPS + 1))), *toy_space(3, 6).choices])


def concave(candidate):
    first, *others = candidate.indices
    x, off = first / STEPS, np.abs(np.subtract(others, TARGET)).sum()
    return {"a": float(x + 0.3 * off), "b": float(np.sqrt(1.0 - x**2) + 0.3 * off)}


def test_minima_of_weighted_sums_are_the_ends_of_a_concave_front():
    space = concave_space()
    candidates = [space.candidate(i) for i in itertools.product(*(range(n) for n in space.counts.tolist()))]
    points = np.array([list(concave(c).values()) for c in candidates])
    weights = ranking.simplex(200, 2)[:, None]

    def minima(norm):
        return {candidates[i].indices for i in norm(points, weights).argmin(axis=1)}

    assert minima(ranking.weighted_sum) == {(0, *TARGET), (STEPS, *TARGET)}
    assert minima(ranking.chebyshev) == {(x, *TARGET) for x in range(STEPS + 1)}


@pytest.mark.slow
def test_chebyshev_ends_on_the_middle_of_a_concave_front_where_weighted_sums_do_not():
    """Of 2,808 candidates 250 are scored; where do the searches of 13 directions end?"""

    def ends(kind, seed):
        searcher = kind(concave_space(), COSTS, seed=seed, directions=13)
        trials = drive(guard(searcher), 250, scores=concave)
        points = np.array([list(concave(t.candidate).values()) for t in trials])
        best = {trials[kind.norm(points, w).argmin()].candidate.indices for w in searcher.weights}
        return {first for first, *others in best if tuple(others) == TARGET}  # Pareto points among them

    for seed in range(2):
        assert ends(WeightedSum, seed) == {0, STEPS}
        assert len(ends(Chebyshev, seed) & {*range(2, STEPS - 1)}) >= 4


@pytest.mark.parametrize("inner", [Random, Ageing, ParticleSwarm, TPE], ids=lambda kind: kind.__name__)
def test_any_single_objective_searcher_will_do(inner):
    space = toy_space(6, 4)
    searcher = Chebyshev(space, OBJECTIVES, inner=inner, directions=3, seed=5)
    trials = drive(guard(searcher, ["quality>=0.5"]), 40)
    assert len({t.candidate for t in trials}) == 40
    assert len(searcher._inner) == 3
    assert all(type(s) is inner and len(s.objectives) == 1 for s in searcher._inner)
    assert all([m.text for m in s.limits] == ["quality>=0.5"] for s in searcher._inner)


def test_normalisation_makes_units_irrelevant():
    """Costs in thousands instead of units: the same proposals."""
    space = toy_space(6, 5)

    def thousandfold(candidate):
        scores = toy_scores(candidate)
        return {**scores, "cost": 1024.0 * scores["cost"]}

    for kind in (WeightedSum, Chebyshev):
        plain = drive(kind(space, OBJECTIVES, seed=1), 60)
        scaled = drive(kind(space, OBJECTIVES, seed=1), 60, scores=thousandfold)
        assert [t.candidate for t in plain] == [t.candidate for t in scaled]


def test_a_wider_range_starts_the_inner_searches_again():
    """A far better trial from elsewhere changes ideal and nadir; what was known is known to the new ones."""
    space = toy_space(6, 5)
    searcher = Chebyshev(space, COSTS, directions=2)
    flat = {"a": 1.0, "b": 2.0}
    drive(
        searcher, 30, scores=lambda c: {"a": flat["a"] + sum(c.indices) / 24, "b": 2.0 - sum(c.indices) / 24}
    )
    before = list(searcher._inner)
    searcher.tell([Trial(99, space.candidate([4, 0, 4, 0, 4, 0]), {"a": -10.0, "b": 9.0})])
    assert not {*map(id, before)} & {*map(id, searcher._inner)}
    assert np.allclose(searcher._ideal, [-10.0, 1.0])
    assert np.allclose(searcher._ideal + searcher._span, [2.0, 9.0])
    assert all(len(inner._told) == len(searcher._trials) for inner in searcher._inner)


def test_starts_from_the_first_population():
    space = toy_space(6, 5)
    asked = WeightedSum(space, OBJECTIVES, seed=4).ask(64)
    assert asked == first_population(space, np.random.default_rng(4), 16)


def test_earlier_trials_take_the_place_of_the_first_population_of_the_inner_searches():
    """Each inner searcher begins with children of what is known, not with a population of its own."""
    space = toy_space(8, 8)
    searcher = Chebyshev(space, OBJECTIVES, seed=0)
    trials = drive(searcher, 16)
    children = [t.candidate for t in drive(searcher, 10)]
    known = np.array([t.candidate.indices for t in trials])
    for child in children:
        assert (np.asarray(child.indices) == known).mean(axis=1).max() >= 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [[1.0, 0.0, 0.0]]}, "weights must be rows of 2 numbers"),
        ({"weights": [[0.0, 0.0]]}, "not all 0"),
        ({"weights": [[-1.0, 2.0]]}, "not negative"),
        ({"directions": 0}, "directions must be at least 1"),
        ({"population": 2}, "population at least 4"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Chebyshev(toy_space(), OBJECTIVES, **options)
