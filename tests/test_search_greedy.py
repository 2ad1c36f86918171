"""Table-based searchers and greedy ones: additive truths, where exhaustive answers are known."""

import itertools

import numpy as np
import pytest
from netcarve.results.hypervolume import hypervolume, nondominated
from netcarve.results.objective import Limit, Objective
from netcarve.results.trial import Trial
from netcarve.search.baselines import Random
from netcarve.search.greedy.additive import Additive
from netcarve.search.greedy.greedy import Greedy
from netcarve.search.greedy.lagrangian import Lagrangian, hull_walk, supported
from netcarve.search.greedy.netadapt import NetAdapt
from netcarve.search.greedy.sensitivity import candidates_of, predict
from netcarve.search.registry import guard
from netcarve.spaces import ModelSide, Space
from netcarve.testing import OBJECTIVES, SearcherConformance, drive, toy_scores, toy_space


class TestAdditive(SearcherConformance):
    searcher = Additive
    random = False


class TestLagrangian(SearcherConformance):
    searcher = Lagrangian
    random = False


class TestNetAdapt(SearcherConformance):
    searcher = NetAdapt
    random = False


class Products(ModelSide):
    """An analytic model side like MACs: sums of products of what neighbouring choices keep."""

    def __init__(self, widths):
        self.widths = np.asarray(widths)

    def cost_arrays(self, choices, indices):
        kept = np.hstack([np.full((len(indices), 1), 4), self.widths - indices])
        return {"cost": (kept[:, 1:] * kept[:, :-1]).sum(axis=1).astype(float)}

    def build(self, candidate):
        raise NotImplementedError


def every(space):
    return candidates_of(space, np.array(list(itertools.product(*(range(n) for n in space.counts.tolist())))))


def front_of(points):
    points = np.asarray(points)
    return np.unique(points[nondominated(points)], axis=0)


def additive_problem(seed, choices=4, options=4):
    """Random damages and savings that add up, rising along the options."""
    rng = np.random.default_rng(seed)
    damage, saving = (rng.random((choices, options)).cumsum(axis=1) for _ in range(2))
    damage, saving = damage - damage[:, :1], saving - saving[:, :1]

    def scores(candidate):
        return {
            "quality": 10.0 - float(predict(damage, candidate.indices)[0]),
            "cost": 20.0 - float(predict(saving, candidate.indices)[0]),
        }

    return toy_space(choices, options), scores, damage, saving


def losses(trials):
    return np.array([(-t.scores["quality"], t.scores["cost"]) for t in trials])


# additive and lagrangian


@pytest.mark.parametrize("seed", range(6))
def test_additive_finds_the_whole_front_of_an_additive_truth(seed):
    """The table is exact, so half of what comes after ladder and table is the front, until it is complete."""
    space, scores, _, _ = additive_problem(seed)
    expected = front_of([(-s["quality"], s["cost"]) for s in map(scores, every(space))])
    trials = drive(Additive(space, OBJECTIVES), 1 + 3 + 12 + 2 * len(expected), scores=scores)
    np.testing.assert_allclose(front_of(losses(trials)), expected, atol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_hull_walk_is_the_convex_hull_of_the_additive_front(seed):
    space, _, damage, saving = additive_problem(seed)
    found = hull_walk(damage, -saving)
    points = np.stack([predict(damage, found), predict(-saving, found)], axis=1)
    rows = np.array([c.indices for c in every(space)])
    front = front_of(np.stack([predict(damage, rows), predict(-saving, rows)], axis=1))
    hull = lower_hull(front)
    np.testing.assert_allclose(np.unique(points.round(9), axis=0), hull.round(9), atol=1e-8)
    also = supported(space, damage, lambda cs: predict(-saving, [c.indices for c in cs]))
    assert [c.indices for c in also] == [tuple(row) for row in found.tolist()]


def lower_hull(front):
    """Points of a front that minimise some x + lambda y, by the definition: no chord passes below."""

    def on(k):
        for i, j in itertools.product(range(k), range(k + 1, len(front))):
            share = (front[k, 0] - front[i, 0]) / (front[j, 0] - front[i, 0])
            if front[k, 1] > front[i, 1] + share * (front[j, 1] - front[i, 1]) + 1e-9:
                return False
        return True

    return np.array([front[k] for k in range(len(front)) if on(k)])


def test_supported_candidates_of_products_lie_on_the_exact_front_mostly():
    shares = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        space = Space(toy_space(5, 4).choices, model=Products(rng.integers(5, 10, 5)))
        damage = rng.random((5, 4)).cumsum(axis=1)
        damage -= damage[:, :1]
        rows = np.array([c.indices for c in every(space)])
        costs = space.cost_arrays(every(space))["cost"]
        best = {
            tuple(p) for p in front_of(np.stack([predict(damage, rows), costs], axis=1)).round(9).tolist()
        }
        found = supported(space, damage, lambda cs, s=space: s.cost_arrays(cs)["cost"])
        got = zip(
            predict(damage, [c.indices for c in found]).round(9),
            space.cost_arrays(found)["cost"],
            strict=True,
        )
        shares.append(np.mean([p in best for p in got]))
    assert np.mean(shares) > 0.7, shares


def interacting(seed):
    """A space of a model whose quality adds up only roughly: what is kept multiplies."""
    rng = np.random.default_rng(seed)
    weight = rng.random(8) * 0.12 + 0.01
    space = Space(toy_space(8, 6).choices, model=Products(rng.integers(8, 14, 8)))

    def scores(candidate):
        x = np.array(candidate.indices) / 5
        quality = float(np.prod(1.0 - weight * x**2) - 0.1 * x[0] * x[1])
        return {"quality": quality, "cost": float(space.cost_arrays([candidate])["cost"][0])}

    return space, scores


@pytest.mark.parametrize("kind", [Additive, Lagrangian])
def test_a_table_that_learns_beats_random_by_far_on_interacting_choices(kind):
    def volume(made, scores, space):
        trials = drive(guard(made), 100, scores=scores)
        base = space.cost_arrays([space.baseline])["cost"][0]
        return hypervolume(losses(trials) / [1.0, base], (0.0, 1.0))

    for seed in range(3):
        space, scores = interacting(seed)
        ours = volume(kind(space, OBJECTIVES), scores, space)
        random = max(volume(Random(space, OBJECTIVES, seed=s), scores, space) for s in range(3))
        assert ours > 1.05 * random, (seed, ours, random)


@pytest.mark.parametrize("kind", [Additive, Lagrangian, NetAdapt])
def test_known_trials_are_not_asked_for_again(kind):
    space, scores, _, _ = additive_problem(0)
    first = drive(kind(space, OBJECTIVES), 30, scores=scores)
    again = kind(space, OBJECTIVES)
    again.tell(first)
    new = drive(again, 20, scores=scores)
    assert not {t.candidate for t in new} & {t.candidate for t in first}


@pytest.mark.parametrize("kind", [Additive, Lagrangian, NetAdapt, Greedy])
def test_refused_candidates_are_few(kind):
    """With a limit that forbids half of the space the guard has next to nothing to repair."""
    rng = np.random.default_rng(0)
    space = Space(toy_space(6, 5).choices, model=Products(rng.integers(6, 12, 6)))
    base = space.cost_arrays([space.baseline])["cost"][0]
    made = kind(space, OBJECTIVES)
    made.limits = (Limit("cost<=0.6x"),)
    trials = drive(
        made, 60, scores=lambda c: {**toy_scores(c), "cost": float(space.cost_arrays([c])["cost"][0])}
    )
    broken = [t for t in trials if t.scores["cost"] > 0.6 * base]
    assert len(broken) <= (1 if kind is not Greedy else 60)
    assert len(trials) > 10


def test_measured_limits_steer_the_predicted_front():
    space, scores, _, _ = additive_problem(1, 6, 5)
    limit = Limit("quality>=0.9x")

    def kept(made):
        made.limits = (limit,)
        trials = drive(made, 70, scores=scores)
        return sum(t.scores["quality"] >= 9.0 for t in trials[25:])

    assert kept(Additive(space, OBJECTIVES, levels=2)) > 1.5 * kept(Random(space, OBJECTIVES))


def test_three_objectives_trade_off_both_costs():
    space, scores, _, _ = additive_problem(2)
    other = np.random.default_rng(9).random((4, 4)).cumsum(axis=1)
    objectives = (*OBJECTIVES, Objective("third", "min"))

    def three(candidate):
        return {**scores(candidate), "third": -float(predict(other, candidate.indices)[0])}

    def points(trials):
        return np.array([(-t.scores["quality"], t.scores["cost"], t.scores["third"]) for t in trials])

    corner = points([Trial(0, c, three(c)) for c in every(space)]).max(axis=0)
    for kind in (Additive, Lagrangian):
        ours = hypervolume(points(drive(guard(kind(space, objectives)), 60, scores=three)), corner)
        random = [
            hypervolume(points(drive(guard(Random(space, objectives, seed=s)), 60, scores=three)), corner)
            for s in range(5)
        ]
        assert ours > np.mean(random)


def test_arguments_are_checked():
    for make, message in (
        (lambda: Additive(toy_space(), OBJECTIVES, levels=0), "levels must be at least 1"),
        (lambda: Lagrangian(toy_space(), OBJECTIVES, batch=0), "batch must be at least 1"),
        (lambda: NetAdapt(toy_space(), OBJECTIVES, step=1.0), r"step must be in \(0, 1\)"),
        (lambda: NetAdapt(toy_space(), OBJECTIVES, decay=0.0), r"decay must be in \(0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


# netadapt


@pytest.mark.parametrize("analytic", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_netadapt_meets_every_budget_it_announces(seed, analytic):
    rng = np.random.default_rng(seed)
    space = Space(toy_space(6, 6).choices, model=Products(rng.integers(8, 14, 6)))
    model = space if analytic else toy_space(6, 6)

    def scores(candidate):
        cost = float(space.cost_arrays([candidate])["cost"][0])
        return {"quality": toy_scores(candidate)["quality"], "cost": cost}

    made = NetAdapt(model, OBJECTIVES)
    trials = {t.candidate: t for t in drive(made, 150, scores=scores)}
    assert len(made.budgets) >= 8
    for budget, candidate in made.budgets:
        assert trials[candidate].scores["cost"] <= budget


def test_netadapt_takes_the_least_damage_of_the_first_round_and_the_smallest_compression():
    """By hand: a budget of 0.9 x 40; choice a meets it with option 2, b with 1; b hurts less."""
    saves = np.array([[0, 2, 5, 9], [0, 4, 6, 12]])
    hurts = np.array([[0, 3, 4, 5], [0, 1, 8, 9]])
    space = toy_space(2, 4)
    space = Space(space.choices, model=Additives(40.0 - 0.0, saves))

    def scores(candidate):
        a, b = candidate.indices
        return {"quality": -float(hurts[0, a] + hurts[1, b]), "cost": 40.0 - float(saves[0, a] + saves[1, b])}

    made = NetAdapt(space, OBJECTIVES, step=0.1)
    trials = drive(made, 3, batch=3, scores=scores)
    assert [t.candidate.indices for t in trials] == [(0, 0), (2, 0), (0, 1)]
    assert made.budgets == [(36.0, space.candidate([0, 1]))]


class Additives(ModelSide):
    def __init__(self, base, saves):
        self.base, self.saves = base, saves

    def cost_arrays(self, choices, indices):
        return {"cost": self.base - predict(self.saves, indices).astype(float)}

    def build(self, candidate):
        raise NotImplementedError


def test_netadapt_by_a_limited_metric_that_is_no_objective():
    space = Space(toy_space(4, 4).choices, model=Products([6, 7, 8, 9]))
    made = NetAdapt(space, OBJECTIVES[:1], metric="cost")
    drive(made, 60, scores=lambda c: toy_scores(c) | {"cost": float(space.cost_arrays([c])["cost"][0])})
    costs = space.cost_arrays([c for _, c in made.budgets])["cost"]
    assert len(costs) > 3
    assert (costs <= [budget for budget, _ in made.budgets]).all()


# greedy removal


@pytest.mark.parametrize("seed", range(5))
def test_searches_start_as_near_to_the_unchanged_model_as_limits_allow(seed):
    """No choice of the first candidate can be compressed one option less."""
    rng = np.random.default_rng(seed)
    space = Space(toy_space(5, 4).choices, model=Products(rng.integers(5, 12, 5)))
    for kind in (Greedy, NetAdapt, Additive):
        made = kind(space, OBJECTIVES)
        made.limits = (Limit("cost<=0.7x"),)
        first = made.ask(1)
        assert made.allowed(first) == first
        less = [c for c in space.neighbours(first[0]) if sum(c.indices) < sum(first[0].indices)]
        assert made.allowed(less) == []
        free = kind(space, OBJECTIVES)
        assert free.ask(1) == [space.baseline]


def test_greedy_goes_again_with_more_steps_side_by_side():
    """Up to plain greedy removal, whose path it then holds."""
    rng = np.random.default_rng(0)
    space = toy_space(5, 4)
    table = rng.random((4,) * 5)
    for axis in range(5):
        table = table.cumsum(axis=axis)  # every step does damage
    scores = lambda c: {"quality": -float(table[c.indices]), "cost": 20.0 - sum(c.indices)}  # noqa: E731
    trials = {t.candidate: t for t in drive(Greedy(space, OBJECTIVES, width=1), 2000, scores=scores)}
    here = space.baseline
    while here.indices != (3,) * 5:
        steps = [c for c in space.neighbours(here) if sum(c.indices) > sum(here.indices)]
        assert set(steps) <= set(trials)
        here = min(steps, key=lambda c: max(0.0, scores(here)["quality"] - scores(c)["quality"]))


def test_greedy_weighs_several_costs():
    """With two costs, saving the one that is nothing for the unchanged model's scale does not win."""
    space = toy_space(2, 2)
    table = {(0, 0): (100.0, 1.0), (1, 0): (99.0, 0.5), (0, 1): (90.0, 1.0), (1, 1): (89.0, 0.5)}
    objectives = (*OBJECTIVES, Objective("third", "min"))

    def scores(c):
        big, small = table[c.indices]
        return {"quality": 1.0 - 0.1 * sum(c.indices), "cost": big, "third": small}

    trials = drive(Greedy(space, objectives), 10, batch=1, scores=scores)
    assert trials[-1].candidate.indices == (1, 1)
    made = Greedy(space, objectives, width=1)
    made.baseline.update(quality=1.0, cost=100.0, third=1.0)
    path = drive(made, 10, batch=1, scores=scores)
    rates = {t.candidate.indices: made._rate(path[0], t)[0] for t in path if sum(t.candidate.indices) == 1}
    assert rates[1, 0] == pytest.approx(0.1 / (0.01 + 0.5))
    assert rates[0, 1] == pytest.approx(0.1 / 0.1)
