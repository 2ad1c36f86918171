"""The default searcher keeps the contract, uses what is known, and falls back where little is."""

import itertools

import numpy as np
import pytest
from netcarve.results.hypervolume import hypervolume
from netcarve.results.objective import Limit
from netcarve.results.trial import Trial
from netcarve.search.baselines import Random
from netcarve.search.bayesian.gp import GP, Auto
from netcarve.search.registry import guard, searcher
from netcarve.spaces import Choice, ModelSide, Space, trace
from netcarve.spaces.testing import KindConformance
from netcarve.testing import OBJECTIVES, SearcherConformance, drive, facts, toy_scores, toy_space, toy_sweep


class TestAuto(SearcherConformance):
    searcher = Auto


class Costs(ModelSide):
    """An analytic cost: multiplied over neighbouring choices, as MACs are."""

    def cost_arrays(self, choices, indices):
        width = 1 - 0.8 * np.asarray(indices) / np.maximum([len(c) - 1 for c in choices], 1)
        return {"cost": (width * np.roll(width, 1, axis=1)).mean(axis=1)}

    def build(self, candidate):
        raise NotImplementedError


def cliff_space(choices=6, options=4):
    return Space([Choice(f"c{d}", tuple(range(options))) for d in range(choices)], model=Costs())


class Cliff:
    """Quality falls with the sum of unequal damages, slowly and then off a cliff, down to chance."""

    def __init__(self, space, seed=0, steep=9.0):
        rng = np.random.default_rng(seed)
        self.space, self.steep = space, steep
        self.weight = rng.dirichlet(np.ones(len(space)))

    def __call__(self, candidate):
        damage = float(self.weight @ self.space.encode(candidate) ** 2)
        cost = Costs().cost_arrays(self.space.choices, np.array([candidate.indices]))["cost"]
        return {"quality": 0.1 + 0.9 / (1 + np.exp(self.steep * damage - 4)), "cost": float(cost[0])}


def area(trials, names=("quality", "cost"), floor=0.8):
    """Hypervolume of what is named, with quality above ``floor``."""
    found = [t for t in trials if not t.failed]
    points = [[-t.scores[n] if n == "quality" else t.scores[n] for n in names] for t in found]
    return hypervolume(points, [-floor if n == "quality" else 1.0 for n in names])


def everything(space, scores):
    every = itertools.product(*(range(n) for n in space.counts))
    return [Trial(i, c, scores(c)) for i, c in enumerate(map(space.candidate, every))]


def late(made, n, scores, window=16):
    """As a sweep does it: the unchanged one first and alone, then ``window`` under way, told one by one."""
    waiting, trials = [made.space.baseline], []
    while len(trials) < n and waiting:
        candidate = waiting.pop(0)
        trials.append(Trial(len(trials), candidate, scores(candidate)))
        made.tell(trials[-1:])
        waiting += made.ask(window - len(waiting))
    return trials


PAIR = ("auto", "lagrangian")

# quality


@pytest.mark.quick("2")
@pytest.mark.parametrize("seed", range(3))
def test_far_ahead_of_random(seed):
    """60 of 4,096 candidates, 16 under way, another landscape for each seed."""
    space = cliff_space()
    scores = Cliff(space, seed)
    truth = area(everything(space, scores))
    assert area(late(guard(Auto(space, OBJECTIVES, seed=seed)), 60, scores)) > 0.985 * truth
    assert area(late(guard(Random(space, OBJECTIVES, seed=seed)), 60, scores)) < 0.95 * truth


class Jagged(Costs):
    """A cost that nobody guesses: up to 40 % off what it would be, without a pattern."""

    def cost_arrays(self, choices, indices):
        smooth = super().cost_arrays(choices, indices)["cost"]
        wild = np.sin(np.asarray(indices) @ np.arange(1.0, 1 + len(choices)) ** 3 * 12.9898) * 43758.5453
        return {"cost": smooth * (1.0 - 0.4 * (wild - np.floor(wild)))}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Auto, GP])
def test_known_costs_help(kind):
    """The same landscape, with the cost's formula hidden in one of two spaces."""
    open_space = Space(cliff_space(6, 5).choices, model=Jagged())
    hidden = Space(open_space.choices)
    cliff = Cliff(open_space, 1)

    def scores(candidate):
        cost = Jagged().cost_arrays(open_space.choices, np.array([candidate.indices]))["cost"]
        return {**cliff(candidate), "cost": float(cost[0])}

    known, guessed = (
        [area(late(guard(kind(space, OBJECTIVES, seed=s)), 45, scores)) for s in range(2)]
        for space in (open_space, hidden)
    )
    assert min(known) > max(guessed) + 0.003


@pytest.mark.quick("Auto")
@pytest.mark.parametrize("kind", [Auto, GP])
def test_without_a_model_it_models_everything(kind):
    space = toy_space(8, 5)
    found = [drive(guard(kind(space, OBJECTIVES, seed=s)), 60) for s in range(2)]
    others = [drive(guard(Random(space, OBJECTIVES, seed=s)), 60) for s in range(2)]
    assert np.mean([area(t, floor=0.0) for t in found]) > np.mean([area(t, floor=0.0) for t in others]) + 0.05


def test_one_objective_is_optimised():
    """Best of 15,625; a random search of 60 has it in 1 run of 260."""
    space = cliff_space(6, 5)
    goal = np.array([3, 1, 4, 0, 2, 3])

    def scores(candidate):
        return {"quality": -float(np.abs(np.array(candidate.indices) - goal).sum())}

    trials = drive(guard(Auto(space, ["quality:max"])), 60, scores=scores)
    assert max(t.scores["quality"] for t in trials) == 0.0


def test_a_known_objective_alone_needs_no_model():
    space = cliff_space(5, 5)
    trials = drive(guard(Auto(space, ["cost:min"])), 30, scores=Cliff(space))
    costs = sorted(
        Costs().cost_arrays(space.choices, np.array(list(itertools.product(range(5), repeat=5))))["cost"]
    )
    assert sorted(t.scores["cost"] for t in trials)[:10] == pytest.approx(costs[:10])


def heavy(space):
    """Three metrics, of which only the cost is known in advance."""

    def scores(candidate):
        return {**Cliff(space, 2)(candidate), "weight": float(1 - 0.9 * space.encode(candidate)[::2].mean())}

    return scores


@pytest.mark.slow
def test_three_objectives_two_of_them_unknown():
    space = cliff_space()
    names = ("quality", "cost", "weight")
    truth = area(everything(space, heavy(space)), names)
    trials = late(guard(Auto(space, (*OBJECTIVES, "weight:min"))), 60, heavy(space))
    assert area(trials, names) > 0.95 * truth


# batches


@pytest.mark.quick("Auto")
@pytest.mark.parametrize("kind", [Auto, GP])
def test_a_batch_does_not_collapse(kind):
    """16 asked for at once: distinct, spread over costs, and no worse in all than they should be."""
    space = cliff_space(8, 6)
    scores = Cliff(space, 3)
    made = kind(space, OBJECTIVES)
    made.each = 1
    drive(made, 48, batch=1, scores=scores)
    batch = made.ask(16)
    rows = np.array([c.indices for c in batch])
    assert len(set(batch)) == 16
    gaps = np.abs(rows[:, None] - rows[None]).sum(axis=2)
    assert np.median(gaps) > 3  # neighbours are 1 apart
    cost = np.sort([scores(c)["cost"] for c in batch])
    assert cost[-1] > 1.5 * cost[0]


def test_few_are_under_way_while_little_is_known():
    """A quarter of the window once the design is out, all of it with eight trials for each."""
    space = cliff_space(8, 6)
    made, scores = guard(Auto(space, OBJECTIVES)), Cliff(space, 3)
    waiting, under_way = [space.baseline], []
    for number in range(140):
        candidate = waiting.pop(0)
        made.tell([Trial(number, candidate, scores(candidate))])
        waiting += made.ask(16 - len(waiting))
        under_way.append(len(waiting))
    assert under_way[0] == 13  # all of the design: five of the ladder are distinct, and eight of the table
    assert set(under_way[20:38]) == {4}
    assert under_way[-1] == 16
    assert (np.diff(under_way[20:]) >= 0).all()


class Deceptive:
    """No option hurts alone, and two neighbours beyond their first half ruin the network: what a table of
    single changes says is wrong everywhere."""

    def __init__(self, space):
        self.space = space

    def __call__(self, candidate):
        x = self.space.encode(candidate)
        both = int(((x > 0.5) & (np.roll(x, 1) > 0.5)).sum())
        cost = Costs().cost_arrays(self.space.choices, np.array([candidate.indices]))["cost"]
        return {"quality": 0.95 - 0.01 * float(x.mean()) - 0.15 * both, "cost": float(cost[0])}


@pytest.mark.quick("1")
@pytest.mark.parametrize("seed", range(2))
def test_is_not_deceived_by_single_changes(seed):
    """Costs few evaluations, against those that trust the table."""
    space = cliff_space()
    scores = Deceptive(space)
    truth = area(everything(space, scores))
    found = {name: late(searcher(name, space, OBJECTIVES, seed=seed), 80, scores) for name in PAIR}
    assert area(found["auto"]) > 0.98 * truth
    assert area(found["auto"]) > area(found["lagrangian"]) - 0.01 * truth


@pytest.mark.quick("0")
@pytest.mark.parametrize("seed", range(2))
def test_a_separable_space_is_soon_solved(seed):
    """Damages that add up on every path: 40 of 4,096 candidates."""
    space = cliff_space()
    weight = np.random.default_rng(seed).dirichlet(np.ones(len(space)))

    def scores(candidate):
        cost = Costs().cost_arrays(space.choices, np.array([candidate.indices]))["cost"]
        return {"quality": 1.0 - 0.4 * float(weight @ space.encode(candidate)), "cost": float(cost[0])}

    truth = area(everything(space, scores))
    assert area(late(searcher("auto", space, OBJECTIVES, seed=seed), 40, scores)) > 0.97 * truth


def test_what_is_under_way_is_not_proposed_again():
    space = cliff_space(8, 6)
    made = Auto(space, OBJECTIVES)
    made.each = 1
    told = drive(made, 40, batch=1, scores=Cliff(space, 3))
    asked = [c for _ in range(40) for c in made.ask(1)]
    assert len(set(asked)) == len(asked) == 40
    assert not set(asked) & {t.candidate for t in told}


# limits, failures, nothing to learn


@pytest.mark.quick("GP")
@pytest.mark.parametrize("kind", [Auto, GP])
def test_analytic_limits_are_kept_without_a_guard(kind):
    space = cliff_space(6, 5)
    every = np.array(list(itertools.product(range(5), repeat=6)))
    bound = float(np.quantile(Costs().cost_arrays(space.choices, every)["cost"], 0.01))
    made = kind(space, OBJECTIVES)
    made.limits = (Limit(f"cost<={bound}"),)
    trials = drive(made, 60, scores=Cliff(space, 4))
    assert len(trials) == 60
    assert all(t.scores["cost"] <= bound for t in trials)


@pytest.mark.slow
def test_measured_limits_are_learnt():
    """Quality at least 0.9, which one candidate in five keeps and the best are near to breaking."""
    space = cliff_space()
    limits, names = ["quality>=0.9"], ("cost", "weight")

    def kept(trials):
        return area([t for t in trials if t.scores["quality"] >= 0.9], names)

    truth = kept(everything(space, heavy(space)))
    made = guard(Auto(space, ("cost:min", "weight:min")), limits)
    assert kept(late(made, 60, heavy(space))) > 0.97 * truth


def test_constant_quality_leaves_the_cost():
    space = cliff_space(4, 5)
    trials = drive(guard(Auto(space, OBJECTIVES)), 30, scores=lambda c: {**Cliff(space)(c), "quality": 0.5})
    assert space.candidate(space.counts - 1) in {t.candidate for t in trials}
    assert len(trials) == 30


def test_keeps_away_from_what_fails():
    """Half of the space fails: all that cuts the first choice beyond its second option."""
    space = cliff_space()
    scores = Cliff(space, 2)
    truth = area([t for t in everything(space, scores) if t.candidate.indices[0] <= 1])
    trials = drive(guard(Auto(space, OBJECTIVES)), 60, scores=scores, fail=lambda c: c.indices[0] > 1)
    assert area(trials) > 0.97 * truth
    assert np.mean([t.failed for t in trials[15:40]]) < 0.2


def test_earlier_trials_take_the_place_of_the_design():
    space = cliff_space()
    scores = Cliff(space, 2)
    earlier = [space.baseline, *space.sample(np.random.default_rng(0), 99)]
    told = [Trial(i, c, scores(c)) for i, c in enumerate(earlier)]
    made = Auto(space, OBJECTIVES)
    made.tell(told)
    fresh = drive(made, 20, batch=1, scores=scores)
    assert area([*told, *fresh]) > 0.97 * area(everything(space, scores)) > area(told)


def test_number_of_threads_does_not_matter():
    from threadpoolctl import threadpool_limits

    def run(threads):
        with threadpool_limits(threads):
            return [
                t.candidate
                for t in drive(Auto(cliff_space(), OBJECTIVES), 40, scores=Cliff(cliff_space(), 2))
            ]

    assert run(1) == run(3)


@pytest.mark.quick("gp")
@pytest.mark.parametrize("name", ["auto", "gp"])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(name, tmp_path):
    whole = toy_sweep(tmp_path / "whole", searcher=name, trials=45)
    toy_sweep(tmp_path / "parts", searcher=name, trials=30)
    parts = toy_sweep(tmp_path / "parts", searcher=name, trials=45, resume=True)
    assert facts(parts.trials) == facts(whole.trials)


def test_is_known_by_name():
    for name in ("auto", "gp"):
        assert len(drive(searcher(name, toy_space(), OBJECTIVES), 12, scores=toy_scores)) == 12


def test_each_kind_with_grades_has_a_ladder_of_its_own():
    model, x = KindConformance.network()
    space = trace(model, x).space("prune", "bits", "drop", ratios=4)
    rows = {tuple(row) for row in Auto(space, OBJECTIVES).design().tolist()}
    for kind in ("prune:", "bits:"):
        assert tuple(len(c) - 1 if c.name.startswith(kind) else 0 for c in space.choices) in rows
    alone = trace(model, x).space("prune", "drop", ratios=4)
    assert Auto(alone, OBJECTIVES)._alone(alone.counts - 1) == []
