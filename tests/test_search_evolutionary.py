"""Evolutionary searchers: the contract, brute-force fronts, and what each algorithm promises."""

import itertools
import warnings

import numpy as np
import pytest
from netcarve.results.hypervolume import hypervolume
from netcarve.results.objective import Objective
from netcarve.results.trial import Trial
from netcarve.search.baselines import Random
from netcarve.search.evolutionary import age_moea, evolution, particle_swarm, ranking
from netcarve.search.evolutionary.age_moea import AGEMOEA
from netcarve.search.evolutionary.evolution import Ageing, Genetic
from netcarve.search.evolutionary.moead import MOEAD
from netcarve.search.evolutionary.particle_swarm import ParticleSwarm
from netcarve.search.evolutionary.pymoo_algorithms import NSGA2, NSGA3, SMSEMOA
from netcarve.search.registry import guard
from netcarve.spaces import Choice, Space
from netcarve.testing import OBJECTIVES, SearcherConformance, drive, toy_scores, toy_space

ALL = (AGEMOEA, Ageing, Genetic, MOEAD, NSGA2, NSGA3, ParticleSwarm, SMSEMOA)
each = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)


class TestAGEMOEA(SearcherConformance):
    searcher = AGEMOEA


class TestAgeing(SearcherConformance):
    searcher = Ageing


class TestGenetic(SearcherConformance):
    searcher = Genetic


class TestMOEAD(SearcherConformance):
    searcher = MOEAD


class TestNSGA3(SearcherConformance):
    searcher = NSGA3


class TestParticleSwarm(SearcherConformance):
    searcher = ParticleSwarm


class TestSMSEMOA(SearcherConformance):
    searcher = SMSEMOA


class TestGenerations(SearcherConformance):
    """With a barrier between the generations."""

    @staticmethod
    def searcher(space, objectives, *, seed=0):
        return NSGA2(space, objectives, seed=seed, steady=False)


# problems


def every(space):
    return [space.candidate(i) for i in itertools.product(*(range(n) for n in space.counts.tolist()))]


def zdt1(candidate):
    """Zitzler, Deb and Thiele 2000."""
    x = 1.0 - np.asarray(candidate.indices) / 7.0
    g = 1.0 + 9.0 * x[1:].mean()
    return {"quality": -float(g * (1.0 - np.sqrt(x[0] / g))), "cost": float(x[0])}


def dtlz2(candidate):
    """Three objectives on a sphere (Deb, Thiele, Laumanns and Zitzler 2002), options 0 to 4."""
    x = np.asarray(candidate.indices) / 4.0
    g = 1.0 + ((x[2:] - 0.5) ** 2).sum()
    a, b = x[:2] * np.pi / 2
    return {
        "cost": float(g * np.cos(a) * np.cos(b)),
        "quality": -float(g * np.cos(a) * np.sin(b)),
        "third": float(g * np.sin(a)),
    }


THREE = (*OBJECTIVES, Objective("third", "min"))


def losses(trials, objectives=OBJECTIVES):
    good = [t.scores for t in trials if not t.failed]
    return np.array([[o.sign * s[o.name] for o in objectives] for s in good])


def windowed(searcher, n, scores, window=16):
    """As a sweep calls a searcher: the baseline first, then one told, one asked."""
    trials, waiting = [], [searcher.space.baseline]
    while len(trials) < n and waiting:
        candidate = waiting.pop(0)
        trials.append(Trial(len(trials), candidate, scores(candidate)))
        searcher.tell(trials[-1:])
        waiting += searcher.ask(window - len(waiting))
    return trials


def volumes(kind, space, scores, reference, objectives=OBJECTIVES, n=120, seeds=4):
    runs = (windowed(guard(kind(space, objectives, seed=s)), n, scores) for s in range(seeds))
    return [hypervolume(losses(trials, objectives), reference) for trials in runs]


@pytest.fixture(scope="module")
def random_volumes():
    space = toy_space(10, 8)
    spherical = volumes(Random, toy_space(6, 5), dtlz2, (1.4, 1.4, 1.4), THREE)
    return {"zdt1": np.mean(volumes(Random, space, zdt1, (10.0, 1.1))), "dtlz2": np.mean(spherical)}


@pytest.mark.quick("NSGA2", "Ageing")
@each
def test_beats_random_on_two_objectives(kind, random_volumes):
    got = np.mean(volumes(kind, toy_space(10, 8), zdt1, (10.0, 1.1)))
    assert got > 1.05 * random_volumes["zdt1"]


@pytest.mark.quick("NSGA2", "Ageing")
@each
def test_beats_random_on_three_objectives(kind, random_volumes):
    got = np.mean(volumes(kind, toy_space(6, 5), dtlz2, (1.4, 1.4, 1.4), THREE))
    assert got > (1.0 if kind is Ageing else 1.03) * random_volumes["dtlz2"]  # mutation alone is slow here


@pytest.mark.quick("NSGA2", "Ageing", "MOEAD")
@each
def test_finds_most_of_the_true_front(kind):
    """Of 4^5 candidates, 150 are scored: random ones find 93 % of the hypervolume."""
    space = toy_space(5, 4)
    truth = np.array([[-s["quality"], s["cost"]] for s in map(toy_scores, every(space))])
    whole = hypervolume(truth, (0.0, 1.0))
    found = volumes(kind, space, toy_scores, (0.0, 1.0), n=150, seeds=4)
    assert np.mean(found) > 0.96 * whole
    assert np.mean(found) > np.mean(volumes(Random, space, toy_scores, (0.0, 1.0), n=150, seeds=4))


@pytest.mark.quick("ParticleSwarm", "MOEAD", "Ageing", "Genetic")
@each
def test_finds_the_optimum_of_one_objective(kind):
    space = toy_space(8, 6)
    target = np.array([1, 4, 2, 5, 0, 3, 3, 1])

    def scores(candidate):
        return {"cost": float(np.abs(np.asarray(candidate.indices) - target).sum())}

    best = [
        min(t.scores["cost"] for t in windowed(guard(kind(space, "cost:min", seed=s)), 200, scores))
        for s in range(3)
    ]
    assert np.mean(best) <= 3.0  # random: 5 on average


# what all share


@each
def test_never_asks_for_what_it_knows(kind):
    space = toy_space(6, 4)
    searcher = kind(space, OBJECTIVES, seed=1)  # not guarded
    strangers = list(dict.fromkeys(space.sample(np.random.default_rng(0), 20)))
    searcher.tell([Trial(i, c, toy_scores(c)) for i, c in enumerate(strangers)])
    asked = [t.candidate for t in drive(searcher, 100)]
    assert len(asked) == len({*asked, *strangers}) - len(strangers) == 100


@each
def test_learns_from_trials_it_never_asked_for(kind):
    """Told a whole population near the optimum, it starts there, and spends nothing on the usual start."""
    space = toy_space(10, 8)
    target = np.tile([6, 1], 5)

    def scores(candidate):
        return {"cost": float(np.abs(np.asarray(candidate.indices) - target).sum())}

    known = space.neighbours(space.candidate(target))
    known += [c for n in known[:12] for c in space.neighbours(n)]
    known = [c for c in dict.fromkeys(known) if c.indices != tuple(target)][:40]
    searcher = kind(space, "cost:min")
    searcher.tell([Trial(i, c, scores(c)) for i, c in enumerate(known)])
    asked = searcher.ask(8)
    assert asked
    assert np.mean([scores(c)["cost"] for c in asked]) < 8.0  # the first population: over 20
    assert space.baseline not in asked


@each
def test_starts_from_corners_and_diagonal(kind):
    space = toy_space(6, 5)
    asked = kind(space, OBJECTIVES, seed=2).ask(64)
    for level in range(5):
        assert space.candidate([level] * 6) in asked
    assert asked == evolution.first_population(space, np.random.default_rng(2), len(asked))


@each
def test_prefers_what_keeps_a_measured_limit(kind):
    space = toy_space(8, 4)

    def kept(make):
        searcher = guard(make(space, OBJECTIVES, seed=1), ["quality>=0.8"])
        return sum(t.scores["quality"] >= 0.8 for t in drive(searcher, 120))

    assert kept(kind) > 1.7 * kept(Random)


@each
def test_avoids_failures(kind):
    """A third of the options of the first two choices fail: they are asked for less and less."""
    space = toy_space(8, 6)

    def fails(candidate):
        return candidate.indices[0] >= 4 or candidate.indices[1] >= 4

    trials = drive(guard(kind(space, OBJECTIVES, seed=0)), 160, fail=fails)
    failed = [t.failed for t in trials]
    assert np.mean(failed[80:]) < 0.75 * (1.0 - (4 / 6) ** 2)


@each
def test_warnings_and_global_randomness_are_left_alone(kind):
    filters, state = list(warnings.filters), np.random.get_state()[1].copy()
    drive(kind(toy_space(), THREE), 40, scores=lambda c: {**toy_scores(c), "third": float(c.indices[1])})
    assert list(warnings.filters) == filters
    assert (np.random.get_state()[1] == state).all()


def test_generations_wait_for_all_that_was_asked():
    space = toy_space(8, 8)
    for steady in (True, False):
        searcher = Genetic(space, OBJECTIVES, population=8, steady=steady)
        asked = searcher.ask(8)
        assert len(asked) == 8
        searcher.tell([Trial(i, c, toy_scores(c)) for i, c in enumerate(asked[:-1])])
        assert bool(searcher.ask(1)) is steady
        searcher.tell([Trial(7, asked[-1], toy_scores(asked[-1]))])
        assert len(searcher.ask(8)) == 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: Genetic(s, OBJECTIVES, population=3), "population must be at least 4"),
        (lambda s: Genetic(s, OBJECTIVES, brood=0), "brood at least 1"),
        (lambda s: Genetic(s, OBJECTIVES, sample=1), "sample must be at least 2"),
        (lambda s: Ageing(s, OBJECTIVES, age=1), "age and sample must be at least 2"),
        (lambda s: MOEAD(s, OBJECTIVES, near=1.5), "near between 0 and 1"),
        (lambda s: ParticleSwarm(s, OBJECTIVES, inertia=1.0), "inertia must be in"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make(toy_space())


def test_one_option_everywhere_but_one():
    space = Space([Choice("a", (1,)), Choice("b", (1, 2, 3)), Choice("c", ("x",))])
    rng = np.random.default_rng(0)
    moved = evolution.mutate(rng, np.tile([0, 1, 0], (200, 1)), space.counts)
    assert {tuple(row) for row in moved.tolist()} == {(0, 0, 0), (0, 2, 0)}


# the algorithms


def test_the_oldest_die():
    space = toy_space(4, 8)
    searcher = Ageing(space, "cost:min", age=8)
    best = space.candidate([7, 7, 7, 7])
    searcher.tell([Trial(0, best, {"cost": 0.0})])
    others = [space.candidate([i, j, 0, 0]) for i in range(2) for j in range(4)]
    searcher.tell([Trial(1 + i, c, {"cost": 1.0}) for i, c in enumerate(others)])
    parents = [trial.candidate for trial, _, _ in searcher._alive]
    assert best not in parents
    assert len(parents) == 8


def test_moead_keeps_the_best_for_every_weight():
    """After trials in any order every incumbent is, for its weights, no worse than what replaced others."""
    space = toy_space(4, 5)
    searcher = MOEAD(space, OBJECTIVES, replace=16)  # no restriction: exact
    trials = [Trial(i, c, toy_scores(c)) for i, c in enumerate(every(space)[:200])]
    searcher.tell(trials)
    values = np.array([searcher.loss(t) for t in trials])
    norms = ranking.chebyshev(ranking.scaled(values, np.zeros(200))[:, None], searcher.weights)
    mine = ranking.scaled(np.vstack([searcher._losses, values]), np.zeros(200 + len(searcher.weights)))
    got = ranking.chebyshev(mine[: len(searcher.weights)], searcher.weights)
    np.testing.assert_allclose(got, norms.min(axis=0), rtol=0.15, atol=0.02)


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 4.0])
def test_curvature_of_a_known_front(p):
    """Points on x^p + y^p = 1."""
    x = np.linspace(0.0, 1.0, 101)
    points = np.column_stack([x, (1.0 - x**p) ** (1.0 / p)])
    assert age_moea.curvature(points, np.array([0, 100])) == pytest.approx(p, rel=1e-6)


def test_survival_prefers_extremes_then_spread():
    points = np.array([[0.0, 1.0], [0.25, 0.75], [0.5, 0.5], [0.51, 0.49], [0.75, 0.25], [1.0, 0.0]])
    score = age_moea.survival_scores(points, np.zeros(6, dtype=int))
    assert np.isinf(score[[0, 5]]).all()
    assert min(score[2:4]) < 0.7 * min(score[1], max(score[2:4]), score[4])  # one of the twins
    behind = np.vstack([points, points[2:3] + 0.2, points[2:3] + 0.4])
    score = age_moea.survival_scores(behind, np.array([0] * 6 + [1, 1]))
    assert score[6] > score[7]


def test_a_particle_is_a_distribution():
    """Samples have the particle's mean, and lie on the two options next to it."""
    position = np.array([0.0, 2.25, 0.5, 3.0])
    drawn = np.array([particle_swarm.sample(np.random.default_rng(s), position) for s in range(4000)])
    np.testing.assert_allclose(drawn.mean(axis=0), position, atol=0.03)
    assert (np.abs(drawn - position) < 1.0).all()


def test_particles_stay_in_the_space_and_learn():
    space = Space(
        [Choice("a", tuple(range(5))), Choice("b", (1, 2)), Choice("c", (1,)), Choice("d", range(9))]
    )
    swarm = ParticleSwarm(space, OBJECTIVES)
    drive(guard(swarm), 60)
    positions = np.array([p.position for p in swarm._particles])
    assert (positions >= 0.0).all()
    assert (positions <= space.counts - 1).all()
    best = {tuple(p.best.indices) for p in swarm._particles}
    assert best <= {c.indices for c in swarm._told}
    assert len(best & {tuple(b.indices) for b in swarm._archive}) >= 4  # most of the first are given up


# ranking


def brute_ranks(points, violations):
    """Constrained domination by definition, one front after the other."""
    n = len(points)

    def beats(a, b):
        if violations[a] > 0 or violations[b] > 0:
            return violations[a] < violations[b]
        return (points[a] <= points[b]).all() and (points[a] < points[b]).any()

    rank, left, level = np.zeros(n, dtype=int), set(range(n)), 0
    while left:
        front = {b for b in left if not any(beats(a, b) for a in left)}
        rank[list(front)] = level
        left, level = left - front, level + 1
    return rank


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_ranks_are_those_of_the_definition(m, seed):
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 4, (25, m)).astype(float)
    violations = np.where(rng.random(25) < 0.6, 0.0, rng.integers(1, 4, 25)).astype(float)
    violations[rng.random(25) < 0.1] = np.inf
    points[np.isinf(violations)] = np.inf
    assert (ranking.ranks(points, violations) == brute_ranks(points, violations)).all()


def test_crowding_in_closed_form():
    points = np.array([[0.0, 1.0], [0.25, 0.5], [0.5, 0.25], [1.0, 0.0]])
    np.testing.assert_allclose(ranking.crowding(points), [np.inf, 0.5 + 0.75, 0.75 + 0.5, np.inf])


@pytest.mark.parametrize(("n", "m", "count"), [(16, 2, 16), (16, 3, 15), (3, 3, 3), (2, 3, 3), (9, 1, 1)])
def test_weights_lie_evenly_on_the_simplex(n, m, count):
    weights = ranking.simplex(n, m)
    assert weights.shape == (count, m)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    assert (weights >= 0.0).all()
    assert len(np.unique(weights, axis=0)) == count
    assert {tuple(row) for row in np.eye(m)} <= {tuple(row) for row in weights}
