"""Searchers keep the contract, and find what brute force finds."""

import ast
import itertools
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
from netcarve.results.objective import Objective
from netcarve.results.trial import Trial
from netcarve.search.base import parse_objectives
from netcarve.search.baselines import Random
from netcarve.search.evolutionary.pymoo_algorithms import NSGA2
from netcarve.search.generator import GeneratorSearcher
from netcarve.search.greedy.greedy import Greedy
from netcarve.search.registry import find_searcher, guard, known_searchers, searcher
from netcarve.search.wrappers import Distinct
from netcarve.spaces import Choice, ModelSide, Space
from netcarve.testing import OBJECTIVES, SearcherConformance, drive, toy_scores, toy_space


class Climb(GeneratorSearcher):
    """The generator adapter, as its documentation shows it."""

    def search(self):
        best = self.space.baseline
        while True:
            trials = yield self.space.neighbours(best) or [best]
            good = [t for t in trials if not t.failed]
            if not good:
                return
            best = min(good, key=lambda t: self.loss(t)[-1]).candidate


class TestRandom(SearcherConformance):
    searcher = Random
    learns = False


class TestGreedy(SearcherConformance):
    searcher = Greedy
    random = False


class TestNSGA2(SearcherConformance):
    searcher = NSGA2


class TestGenerator(SearcherConformance):
    searcher = Climb
    random = False
    learns = False


class TestDistinctOfRandom(SearcherConformance):
    learns = False

    @staticmethod
    def searcher(space, objectives, *, seed=0):
        return Distinct(Random(space, objectives, seed=seed), patience=1)


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


# base


def test_loss_is_minimised():
    made = Random(toy_space(), ("accuracy", "macs"))
    trial = Trial(0, made.space.baseline, {"accuracy": 0.9, "macs": 7.0})
    assert made.loss(trial).tolist() == [-0.9, 7.0]
    assert made.loss(Trial(0, made.space.baseline, error="x")).tolist() == [np.inf, np.inf]


def test_objectives_are_checked():
    assert [o.name for o in parse_objectives("macs")] == ["macs"]
    assert parse_objectives(["mine:max"]) == (Objective("mine", "max"),)
    with pytest.raises(ValueError, match="at least one objective"):
        parse_objectives([])
    with pytest.raises(ValueError, match=r"more than once: .'latency_ms'"):
        parse_objectives(["latency", "latency_ms"])


# registry


def test_registry_knows_the_built_in_searchers():
    assert {"random", "greedy", "nsga2"} <= set(known_searchers())
    for name in ("random", "greedy", "nsga2"):
        assert drive(searcher(name, toy_space(), OBJECTIVES), 10)


def test_every_registered_searcher_has_a_conformance_suite():
    """Somewhere in these tests a class inherits the suite and names the searcher, or a subclass of it."""
    covered, bases = set(), {}
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                named = {n.id for n in node.bases if isinstance(n, ast.Name)}
                bases[node.name] = named
                if "SearcherConformance" in named:
                    covered |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    covered |= {base for name in covered for base in bases.get(name, ())}
    assert not {entry.attr for entry in entry_points(group="netcarve.searchers")} - covered


def test_installed_searchers_are_those_that_the_package_declares():
    root = Path(__file__).parents[1]
    declared = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    assert set(declared["netcarve.searchers"]) <= set(known_searchers()), "stale: pip install -e ."


def test_unknown_searcher_lists_the_known():
    with pytest.raises(ValueError, match=r"unknown searcher 'nsga9'; known are .*greedy.*nsga2.*random"):
        searcher("nsga9", toy_space(), OBJECTIVES)


def test_a_package_older_or_newer_than_its_entry_points_is_mended_in_one_line(tmp_path, monkeypatch):
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[netcarve.searchers]\n"
        "moved = netcarve.search.no_such_module:Moved\n"
        "renamed = netcarve.search.base:NoSuchClass\n"
        "theirs = netcarve.search.baselines:Random\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert {"moved", "theirs", "random"} <= set(known_searchers())
    assert find_searcher("theirs") is Random
    for name, target in (("moved", "no_such_module:Moved"), ("renamed", "base:NoSuchClass")):
        with pytest.raises(ValueError, match=rf"{target}, which cannot be imported .*`pip install -e \.`"):
            find_searcher(name)
    with pytest.raises(ValueError, match=r"unknown searcher 'new'.*`pip install -e \.`"):
        find_searcher("new")


def test_guard_wraps_once():
    made = searcher("random", costed_space(), OBJECTIVES, limits=["macs<=0.5x"])
    assert guard(made, ["macs<=0.5x"]) is made
    with pytest.raises(ValueError, match="give them once"):
        guard(made, ["macs<=0.6x"])


# oracles


def every(space):
    return [space.candidate(i) for i in itertools.product(*(range(n) for n in space.counts.tolist()))]


def front_of(points):
    """Non-dominated rows, by definition; minimisation."""
    points = np.unique(np.asarray(points), axis=0)
    dominated = [(np.all(points <= p, axis=1) & np.any(points < p, axis=1)).any() for p in points]
    return points[~np.array(dominated)]


def area(points, reference=(0.0, 1.0)):
    """Dominated area of (-quality, cost) below the reference, by definition of the staircase."""
    total, last = 0.0, reference[0]
    for loss, cost in sorted(map(tuple, front_of(points)), key=lambda p: p[1], reverse=False):
        total += max(0.0, last - loss) * max(0.0, reference[1] - cost)
        last = min(last, loss)
    return total


def losses(trials):
    return [(-t.scores["quality"], t.scores["cost"]) for t in trials]


@pytest.mark.parametrize("name", ["random", "nsga2"])
def test_finds_the_whole_front_of_a_tiny_space(name):
    space = toy_space(3, 3)
    expected = front_of([(-s["quality"], s["cost"]) for s in map(toy_scores, every(space))])
    trials = drive(searcher(name, space, OBJECTIVES), space.size)
    np.testing.assert_allclose(front_of(losses(trials)), expected)


def separable(space, seed):
    """Damage and saving are sums over choices, with damage growing faster at each step (convex)."""
    rng = np.random.default_rng(seed)
    damage = np.cumsum(np.sort(rng.random((len(space), 3)), axis=1), axis=1) / 20
    damage = np.hstack([np.zeros((len(space), 1)), damage])

    def scores(candidate):
        d = sum(damage[k, i] for k, i in enumerate(candidate.indices))
        return {"quality": float(1.0 - d), "cost": 1.0 - sum(candidate.indices) / 20}

    return scores


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_greedy_walks_the_front_of_a_separable_space(seed, width):
    """Equal savings, convex damages: the k steps of least damage are optimal at every k (a matroid), so the
    path of greedy removal is exactly the front."""
    space = toy_space(4, 4)
    scores = separable(space, seed)
    made = Greedy(space, OBJECTIVES, width=width)
    trials = drive(made, 1000, scores=scores)
    expected = front_of([(-s["quality"], s["cost"]) for s in map(scores, every(space))])
    np.testing.assert_allclose(front_of(losses(trials)), expected)
    assert made.finished
    assert len(trials) < 4 * 13


def test_greedy_crosses_an_infeasible_start_on_the_diagonal():
    space = costed_space()
    made = searcher("greedy", space, OBJECTIVES, limits=["macs<=0.7x"])
    trials = drive(made, 300)
    assert space.candidate([1] * 6) in {t.candidate for t in trials} or len(trials) > 20
    assert trials[-1].candidate.indices == tuple(space.counts - 1) or made.finished


@pytest.mark.slow
def test_nsga2_beats_random():
    """ZDT1 (Zitzler, Deb and Thiele 2000) on 12 choices of 8 options, 200 trials, mean of 5 seeds."""
    space = toy_space(12, 8)

    def scores(candidate):
        x = 1.0 - np.asarray(candidate.indices) / 7.0
        g = 1.0 + 9.0 * x[1:].mean()
        return {"quality": -float(g * (1.0 - np.sqrt(x[0] / g))), "cost": float(x[0])}

    def mean_area(kind):
        runs = [drive(guard(kind(space, OBJECTIVES, seed=s)), 200, scores=scores) for s in range(5)]
        return np.mean([area(losses(trials), reference=(10.0, 1.1)) for trials in runs])

    assert mean_area(NSGA2) > mean_area(Random) * 1.05


def test_nsga2_prefers_what_keeps_a_measured_limit():
    space = toy_space(8, 4)

    def kept(kind):
        made = guard(kind(space, OBJECTIVES, seed=1), ["quality>=0.8"])
        return sum(t.scores["quality"] >= 0.8 for t in drive(made, 120))

    assert kept(NSGA2) > 2 * kept(Random)


def test_constructor_arguments_are_checked():
    with pytest.raises(ValueError, match="population must be at least 4"):
        NSGA2(toy_space(), OBJECTIVES, population=2)
    with pytest.raises(ValueError, match="width must be at least 1"):
        Greedy(toy_space(), OBJECTIVES, width=0)
    with pytest.raises(ValueError, match="patience must be at least 1"):
        Distinct(Random(toy_space(), OBJECTIVES), patience=0)


def test_choices_with_one_option_are_harmless():
    space = Space([Choice("a", (1,)), Choice("b", (1, 2)), Choice("c", ("x",))])
    for name in set(known_searchers()) - {"greedy-merge", "greedy-split"}:  # these need cuts
        trials = drive(searcher(name, space, OBJECTIVES), 10)
        assert {t.candidate.indices for t in trials} == {(0, 0, 0), (0, 1, 0)}
