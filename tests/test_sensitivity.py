"""Sensitivity tables: brute force is the oracle."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netcarve.results.hypervolume import hypervolume, nondominated
from netcarve.results.trial import Trial
from netcarve.search.bayesian.acquisition import area_gains, most_gaining
from netcarve.search.greedy.additive import model
from netcarve.search.greedy.sensitivity import (
    additive_front,
    candidates_of,
    combinations,
    cost_table,
    damage_table,
    fill,
    fit,
    predict,
    probes,
)
from netcarve.spaces import Choice, Space
from netcarve.testing import toy_space


def every(counts):
    return np.array(list(itertools.product(*(range(n) for n in counts))))


def ragged(counts):
    return Space([Choice(f"c{d}", tuple(range(n))) for d, n in enumerate(counts)])


def random_tables(rng, counts, *, integer=False):
    shape = (len(counts), max(counts))
    tables = []
    for _ in range(2):
        table = rng.integers(0, 6, shape).astype(float) if integer else rng.normal(size=shape)
        table[np.arange(shape[1]) >= np.array(counts)[:, None]] = np.inf
        tables.append(table)
    return tables


def front_of(points):
    return np.unique(points[nondominated(points)], axis=0)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 2**32 - 1), st.booleans())
def test_dynamic_programme_equals_brute_force(counts, seed, integer):
    """On whole numbers, with many ties, the sums are exact, so equality is too."""
    damage, cost = random_tables(np.random.default_rng(seed), counts, integer=integer)
    everything = every(counts)
    expected = front_of(np.stack([predict(cost, everything), predict(damage, everything)], axis=1))
    front = additive_front(damage, cost)
    assert front.slack == 0
    np.testing.assert_allclose(np.stack([front.cost, front.damage], axis=1), expected, atol=1e-12)
    np.testing.assert_allclose(predict(damage, front.indices), front.damage, atol=1e-12)
    np.testing.assert_allclose(predict(cost, front.indices), front.cost, atol=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_best_within_a_budget_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    damage, cost = random_tables(rng, [3, 4, 2, 4])
    front, everything = additive_front(damage, cost), every([3, 4, 2, 4])
    costs, damages = predict(cost, everything), predict(damage, everything)
    for budget in rng.uniform(costs.min(), costs.max(), 20):
        row = front.within(budget)
        assert front.damage[row] == pytest.approx(damages[costs <= budget].min())
    assert front.within(costs.min() - 1) is None


def test_failed_options_are_never_taken():
    damage, cost = random_tables(np.random.default_rng(0), [3, 3, 3])
    damage[1, 2] = np.inf
    assert (additive_front(damage, cost).indices[:, 1] != 2).all()
    damage[1] = np.inf
    with pytest.raises(ValueError, match="choice 1 has no option"):
        additive_front(damage, cost)
    damage[1, 0] = np.nan
    with pytest.raises(ValueError, match="no NaN"):
        additive_front(damage, cost)


@pytest.mark.parametrize("states", [2, 6, 20])
def test_thinning_loses_at_most_its_slack(states):
    rng = np.random.default_rng(1)
    damage, cost = random_tables(rng, [6] * 7)
    exact, thin = additive_front(damage, cost, states=None), additive_front(damage, cost, states=states)
    assert thin.slack > 0
    assert thin.cost[0] == exact.cost[0]
    for at, hurt in zip(exact.cost, exact.damage, strict=True):
        row = thin.within(at + thin.slack + 1e-12)
        assert row is not None
        assert thin.damage[row] <= hurt + 1e-12


def trials_of(space, candidates, value, failed=()):
    return [
        Trial(n, c, error="no") if c.indices in failed else Trial(n, c, {"loss": float(value(c))})
        for n, c in enumerate(candidates)
    ]


def loss(trial):
    return trial.scores.get("loss", np.inf)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.data())
def test_probes_are_all_single_changes_each_once(counts, data):
    space = ragged(counts)
    anchor = space.candidate([data.draw(st.integers(0, n - 1)) for n in counts])
    found = probes(space, anchor=anchor)
    changed = [sum(a != b for a, b in zip(c.indices, anchor.indices, strict=True)) for c in found]
    assert changed == [1] * (sum(counts) - len(counts))
    assert len(set(found)) == len(found)
    few = probes(space, levels=1, anchor=anchor)
    assert set(few) <= set(found)
    assert len(few) == sum(n > 1 for n in counts)
    if anchor == space.baseline:  # the most compressed options come first
        assert all(
            max(c.indices) == max(n - 1 for n, i in zip(counts, c.indices, strict=True) if i) for c in few
        )


def test_probes_halve_the_gaps():
    order = [c.indices[0] for c in probes(ragged([9]))]
    assert order == [8, 4, 2, 6, 1, 3, 5, 7]
    with pytest.raises(ValueError, match="levels must be at least 1"):
        probes(toy_space(), levels=0)


def test_table_of_an_additive_truth_is_the_truth():
    rng = np.random.default_rng(2)
    space = ragged([3, 5, 2])
    truth = rng.random((3, 5))
    anchor = space.candidate([1, 4, 0])
    trials = trials_of(space, [anchor, *probes(space, anchor=anchor)], lambda c: predict(truth, c.indices)[0])
    table = damage_table(space, trials, loss, anchor=anchor)
    everything = every([3, 5, 2])
    np.testing.assert_allclose(
        predict(table, everything) + predict(truth, anchor.indices), predict(truth, everything), atol=1e-12
    )
    assert np.isinf(table[0, 3:]).all()


def test_missing_and_failed_entries():
    space = toy_space(3, 5)
    some = [space.candidate(i) for i in ([0, 0, 0], [2, 0, 0], [4, 0, 0], [0, 2, 0], [0, 4, 0], [1, 1, 0])]
    table = damage_table(space, trials_of(space, some, lambda c: sum(c.indices) ** 2, {(0, 4, 0)}), loss)
    assert np.isnan(table[0, [1, 3]]).all()
    assert table[1, 4] == np.inf
    filled = fill(table, space.counts)
    assert filled[0].tolist() == [0, 2, 4, 10, 16]  # linear between the known
    assert filled[1, :3].tolist() == [0, 2, 4]
    assert np.isinf(filled[1, 3:]).all()  # on the way to a failure
    assert filled[2].tolist() == filled[0].tolist()  # unknown: as the others
    assert np.isnan(damage_table(space, [], loss)[0, 1:]).all()
    assert fill(damage_table(space, [], loss), space.counts).tolist() == np.zeros((3, 5)).tolist()


def test_fit_recovers_an_additive_truth_from_random_trials():
    rng = np.random.default_rng(3)
    space = ragged([4, 6, 3, 5])
    truth = rng.random((4, 6)).cumsum(axis=1) - rng.random((4, 1))
    rows = np.array([c.indices for c in space.sample(rng, 300)])
    prior = np.where(np.arange(6) < space.counts[:, None], 0.0, np.inf)
    intercept, table = fit(space, rows, predict(truth, rows) + 7.0, prior, trust=1e-6)
    everything = every([4, 6, 3, 5])
    np.testing.assert_allclose(
        intercept + predict(table, everything), predict(truth, everything) + 7, atol=1e-3
    )
    assert (table[:, 0] == 0).all()
    assert np.isinf(table[0, 4:]).all()


def test_fit_keeps_the_prior_where_there_are_no_trials():
    space = toy_space(2, 3)
    prior = np.array([[0.0, 1.0, 2.0], [0.0, 5.0, 9.0]])
    intercept, table = fit(space, np.array([[0, 0], [2, 0]]), np.array([1.0, 4.0]), prior, trust=1e-6)
    assert intercept == pytest.approx(1.0, abs=1e-4)
    np.testing.assert_allclose(
        table, [[0, 1.5, 3.0], [0, 5, 9]], atol=1e-4
    )  # the rest is shared by the steps


def products(space, seed):
    """Like MACs: products of what neighbouring choices keep."""
    width = np.random.default_rng(seed).integers(4, 9, len(space) + 1)

    def cost(candidates):
        kept = width - np.array([(0, *c.indices) for c in candidates])
        return (kept[:, 1:] * kept[:, :-1]).sum(axis=1).astype(float)

    return cost


def test_cost_table_is_exact_for_single_changes():
    space = ragged([4, 3, 4])
    cost, anchor = products(space, 0), space.candidate([1, 2, 0])
    at, table = cost_table(space, cost, anchor)
    near = probes(space, anchor=anchor)
    np.testing.assert_allclose(at + predict(table, [c.indices for c in near]), cost(near))


@pytest.mark.parametrize("seed", range(5))
def test_combinations_are_exact_for_additive_costs(seed):
    space = toy_space(4, 4)
    damage, prices = random_tables(np.random.default_rng(seed), [4] * 4)
    found, points = combinations(space, damage, lambda cs: predict(prices, [c.indices for c in cs]))
    everything = every([4] * 4)
    expected = front_of(np.stack([predict(damage, everything), predict(prices, everything)], axis=1))
    np.testing.assert_allclose(points, expected, atol=1e-12)
    np.testing.assert_allclose(predict(damage, [c.indices for c in found]), points[:, 0])


def test_combinations_come_near_the_exact_front_of_products():
    shares = []
    for seed in range(10):
        space = toy_space(5, 4)
        damage = np.random.default_rng(seed).random((5, 4)).cumsum(axis=1)
        damage -= damage[:, :1]
        cost = products(space, seed)
        everything = candidates_of(space, every([4] * 5))
        points = np.stack([predict(damage, every([4] * 5)), cost(everything)], axis=1)
        found, got = combinations(space, damage, cost)
        np.testing.assert_allclose(got[:, 1], cost(found))
        best = {tuple(p) for p in front_of(points).round(9).tolist()}
        shares.append(len(best & {tuple(p) for p in got.round(9).tolist()}) / len(best))
    assert np.mean(shares) > 0.8, shares


@pytest.mark.parametrize("seed", range(5))
def test_area_gains_equal_differences_of_hypervolume(seed):
    rng = np.random.default_rng(seed)
    front, points = rng.random((seed * 3, 2)), rng.random((20, 2)) * 1.2
    corner = (1.0, 0.9)
    before = hypervolume(front, corner)
    expected = [hypervolume(np.vstack([front, p[None]]), corner) - before for p in points]
    np.testing.assert_allclose(area_gains(points, front, corner), expected, atol=1e-12)


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_most_gaining_chooses_no_point_that_a_measured_one_beats(objectives):
    rng = np.random.default_rng(0)
    points, measured = rng.random((60, objectives)), rng.random((10, objectives)) + 0.2
    chosen = most_gaining(points, measured, 12)
    assert len(set(chosen)) == len(chosen)
    if objectives > 1:
        assert not any((m <= points[i]).all() for m in measured for i in chosen)
    assert most_gaining(points, measured, 5) == chosen[:5]
    assert most_gaining(points[:0], measured, 5) == []
    assert most_gaining(points, measured[:0], 1)


@pytest.mark.parametrize("power", [1, 2])
def test_the_scale_on_which_damages_add_up_is_found(power):
    """Damage is the sum of its parts, or the square of it; predictions are right on candidates not seen."""
    rng = np.random.default_rng(0)
    space = toy_space(6, 5)
    truth = rng.random((6, 5)).cumsum(axis=1)
    truth = (truth - truth[:, :1]) / 10

    def value(candidate):
        return 3.0 + predict(truth, candidate.indices)[0] ** power

    some = [space.baseline, *probes(space), *space.sample(rng, 120)]
    made = model(space, trials_of(space, some, value), loss, space.baseline)
    assert (made.floor < 0) == (power == 1)
    unseen = space.sample(rng, 200)
    true = np.array([value(c) for c in unseen])
    near = true < np.quantile(true, 0.3)
    error = np.abs(made.predict(np.array([c.indices for c in unseen])) - true)
    assert error[near].mean() < 0.03 * np.ptp(true)
    assert model(space, trials_of(space, some[:4], value), loss, space.baseline, links=1).floor < 0
