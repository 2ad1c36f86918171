"""The benchmark of searchers measures what it says: costs, hypervolume, driven searchers, peers, goals."""

from __future__ import annotations

import io
import itertools
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from netcarve import Candidate, Choice, Objective, Space, sweep, trace
from netcarve.evaluators.digits import DigitsNet
from netcarve.search.registry import known_searchers
from netcarve.spaces import ModelSide
from rich.console import Console

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
cache, costs, problems, peers, runs, results, tables = (
    import_module(f"search_{name}")
    for name in ("cache", "costs", "problems", "peers", "runs", "results", "tables")
)


class Buildable(costs.Costs):
    """Lets a real sweep run over the space: what is built does not matter, accuracy is computed."""

    def build(self, candidate: Candidate, *, repair: object = None) -> torch.nn.Module:
        return torch.nn.Identity()


def accuracy(candidate: Candidate) -> float:
    x = np.asarray(candidate.indices) / (len(candidate.choices[0]) - 1)
    return float(1.0 - 0.15 * (x @ [1.0, 0.2, 0.5]) - 0.1 * x[0] * x[1])


def problem(
    objectives: tuple[str, ...] = ("accuracy", "macs"), limits: tuple[str, ...] = (), options: int = 4
) -> Any:
    """Three choices; by default of four options, 64 candidates."""
    forms = {
        "macs": np.array([[5.0, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 3], [0, 0, 0, 0]]),
        "params": np.array([[1.0, 4, 0, 7], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]),
    }
    kept = tuple(range(2 * options, 0, -2))
    model = Buildable(((0,), (1,), (2,)), (kept,) * 3, forms)
    space = Space([Choice(n, tuple(range(options))) for n in "abc"], model=model)
    return problems.make_problem("toy", {"toy": 1}, space, objectives, accuracy, limits)


def everything(toy: Any) -> list[dict[str, float]]:
    rows = itertools.product(range(4), repeat=3)
    return [toy.score(toy.space.candidate(row)) for row in rows]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(peers, "cache_folder", lambda: tmp_path)
    return tmp_path


# -- costs


def test_costs_without_torch_are_those_of_the_network() -> None:
    real = trace(DigitsNet().eval(), torch.zeros(2, 1, 8, 8)).space(ratios=5)
    names = [c.about.group for c in real.choices]
    kept = tuple(tuple(c.kept) for c in real.choices)
    light = costs.Costs(tuple((i,) for i in range(len(names))), kept, tables.forms(real, names))
    candidates = [real.baseline, *real.sample(np.random.default_rng(0), 200)]
    wanted, got = real.cost_arrays(candidates), Space(real.choices, model=light).cost_arrays(candidates)
    assert set(got) == set(tables.METRICS)
    np.testing.assert_array_equal(got["macs"], wanted["macs"])
    np.testing.assert_array_equal(got["params"], wanted["params"])
    for name in ("size_mb", "activation_mb"):
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-9)


def test_one_choice_may_cut_several_groups() -> None:
    light = costs.Costs(((0, 2), (1,)), ((4, 1), (6, 3)), {})
    assert light.widths(np.array([[0, 0], [1, 0], [1, 1]])).tolist() == [[4, 6, 4], [1, 6, 1], [1, 3, 1]]


def test_what_is_not_quadratic_is_refused() -> None:
    with pytest.raises(RuntimeError, match="cubic is not quadratic"):
        costs.fitted_forms(lambda w: {"cubic": w.prod(axis=1).astype(float)}, [8, 8, 8])


# -- problems


@pytest.mark.parametrize("objectives", [("accuracy", "macs"), ("accuracy", "macs", "params")])
@pytest.mark.parametrize("limits", [(), ("params<=0.7x", "accuracy>=0.93x")])
def test_hypervolume_is_the_share_of_random_points_that_are_dominated(
    objectives: tuple[str, ...], limits: tuple[str, ...]
) -> None:
    toy = problem(objectives, limits)
    found = everything(toy)
    kept = [s for s in found if all(m.violation(s, toy.baseline) == 0.0 for m in toy.limits)]
    assert 0 < len(kept) <= len(found)
    points = np.array([toy.point(s) for s in kept])
    # A point better than the unchanged network would reach beyond the unit box; here there is none.
    assert points.min() >= 0.0
    darts = np.random.default_rng(0).random((40_000, len(objectives)))
    hit = np.zeros(len(darts), dtype=bool)
    for point in points:
        hit |= (point <= darts).all(axis=1)
    assert toy.hypervolume(found) == pytest.approx(hit.mean(), abs=0.01)
    assert toy.hypervolume([]) == toy.hypervolume([toy.baseline]) == 0.0


def test_the_region_is_ten_points_and_the_baselines_costs_or_the_limits() -> None:
    toy = problem()
    assert toy.point({"accuracy": toy.baseline["accuracy"] - 0.1, "macs": toy.baseline["macs"]}) == [1.0, 1.0]
    assert toy.point({"accuracy": toy.baseline["accuracy"], "macs": 0.0}) == [0.0, 0.0]
    tight = problem(limits=("macs<=0.5x", "accuracy>=0.95"))
    assert tight.point({"accuracy": 0.95, "macs": tight.baseline["macs"] / 2}) == pytest.approx([1.0, 1.0])


def test_another_problem_has_another_key() -> None:
    made = [problem(), problem(("accuracy", "params")), problem(limits=("macs<=0.5x",))]
    assert len({p.key for p in made}) == 3
    assert made[0].key == problem().key


def test_a_candidate_is_evaluated_once_for_all(tmp_path: Path) -> None:
    space, calls = problem().space, []

    def evaluate(number: int, candidate: Candidate) -> Any:
        calls.append(candidate)
        return SimpleNamespace(scores={"accuracy": accuracy(candidate)}, error=None)

    def make() -> Any:
        return cache.Memo(tmp_path / "memo.sqlite", lambda: SimpleNamespace(space=space, evaluate=evaluate))

    first, second = make(), make()
    candidates = space.sample(np.random.default_rng(0), 5)
    assert [first(c) for c in candidates] == [accuracy(c) for c in candidates]
    assert (
        [second(c) for c in candidates] == [make()(c) for c in candidates] == [first(c) for c in candidates]
    )
    assert len(calls) == len(set(candidates))


@pytest.mark.parametrize("name", list(problems.ENUMERATED))
def test_an_enumerated_problem_is_its_table(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    groups = [g for members, _ in problems.DIGITS["choices"].values() for g in members]
    kept = {f"kept:{g}": np.array([16, 10, 6, 2]) for g in groups} | {"kept:stem.0": np.array([16, 10, 6])}
    forms = {f"form:{m}": np.triu(100 * rng.random((10, 10))) for m in tables.METRICS}
    for form in forms.values():
        form[0] = 0.0  # no fixed part: cut deep, the network costs next to nothing, and the limits are kept
    table = np.sort(rng.uniform(0.99, 1.0, 3072))[::-1]
    cache.store(tmp_path / "table.npz", accuracy=table, **kept, **forms)
    monkeypatch.setattr(problems, "make_digits", lambda: tmp_path / "table.npz")
    made = problems.load.__wrapped__(name)
    assert made.space.size == len(table)
    every = problems.everything(made)
    rows = list(itertools.product(*(range(n) for n in made.space.counts)))
    for i in (0, 1, 1000, 3071):
        assert every[i] == pytest.approx(made.score(made.space.candidate(rows[i])), rel=1e-12)
        assert every[i]["accuracy"] == table[i]
    assert made.hypervolume(every) == pytest.approx(1.0)
    assert {o.name for o in made.objectives} <= set(every[0])


# -- runs


@pytest.mark.parametrize("limits", [(), ("macs<=0.5x", "accuracy>=0.85")])
def test_a_searcher_is_driven_as_a_sweep_drives_it(limits: tuple[str, ...], tmp_path: Path) -> None:
    toy = problem(limits=limits)
    swept = sweep(
        None,
        toy.space,
        "nsga2",
        toy.objectives,
        limits,
        trials=40,
        workers=0,
        seed=3,
        out=tmp_path / "run",
        evaluators=[lambda task, model, candidate: {"accuracy": accuracy(candidate)}],
    )
    own = runs.own_run("nsga2", toy, 3, 40)
    assert [t.candidate for t in own] == [t.candidate for t in swept.trials]
    assert own[0].candidate == toy.space.baseline
    assert dict(own[-1].scores) == toy.score(own[-1].candidate)


@pytest.mark.parametrize("objectives", [("accuracy", "macs"), ("accuracy", "macs", "params")])
def test_a_curve_is_the_hypervolume_so_far(objectives: tuple[str, ...]) -> None:
    toy = problem(objectives, ("params<=0.8x",))
    found = everything(toy)
    np.random.default_rng(0).shuffle(found)
    values = runs.curve(toy, found[:30], 40)
    assert values[:30] == pytest.approx([toy.hypervolume(found[:n]) for n in range(1, 31)])
    assert set(values[30:]) == {values[29]}


def test_proposals_are_timed_up_to_the_last_mark() -> None:
    wide = Space([Choice(f"c{i}", tuple(range(4))) for i in range(6)], model=_Cheap())
    toy = SimpleNamespace(space=wide, objectives=(Objective("accuracy"), Objective("macs")))
    timing = runs.proposal_times("random", toy, (60, 100, 10_000))
    assert timing.at[0] > 0
    assert timing.at[1] > 0
    assert timing.at[2] is None
    assert (timing.told, timing.given_up) == (4**6, False)  # the space has no more


class _Cheap(ModelSide):
    def cost_arrays(self, choices: tuple[Choice, ...], indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"macs": 100.0 - indices.sum(axis=1)}


# -- peers


@pytest.mark.slow
@pytest.mark.parametrize("peer", [p for p in peers.PEERS if p.name != "optuna GP"], ids=lambda p: p.name)
def test_a_peer_proposes_candidates_and_is_repeatable(peer: Any, folder: Path) -> None:
    toy = problem(limits=("macs<=0.5x", "accuracy>=0.85"), options=16)
    first = peers.peer_run(peer, toy, 0, 130)  # more than a population
    assert first.indices.shape == (130, 3)
    assert ((first.indices >= 0) & (first.indices < 16)).all()
    assert (peers.peer_run(peer, toy, 0, 130, fresh=True).indices == first.indices).all()
    assert (peers.peer_run(peer, toy, 1, 130).indices != first.indices).any()


def test_a_peers_run_is_kept(folder: Path) -> None:
    toy, asked = problem(), []

    def vectors(problem: Any, seed: int) -> Any:
        while True:
            asked.append(seed)
            yield [1, 2, 3]

    peer = peers.Peer("mine", "numpy", vectors)
    assert not peers.cached(peer, toy, 0, 20)
    peers.peer_run(peer, toy, 0, 20)
    assert peers.cached(peer, toy, 0, 20)
    assert not peers.cached(peer, toy, 0, 21)
    assert len(peers.peer_run(peer, toy, 0, 10).indices) == 10
    assert len(asked) == 20


def test_peers_are_told_how_far_each_limit_is_broken() -> None:
    toy = problem(limits=("macs<=0.5x", "accuracy>=0.85"))
    for scores in everything(toy):
        told = peers.excesses(toy, scores)
        assert np.maximum(told, 0.0) == pytest.approx([m.violation(scores, toy.baseline) for m in toy.limits])


# -- goals


def curves(*levels: float) -> np.ndarray:
    """One seed each: reaches 1 after ``level`` evaluations, 0 before."""
    return np.array([(np.arange(1, 201) >= level).astype(float) for level in levels])


def flat(*values: float) -> np.ndarray:
    return np.array([np.full(200, v) for v in values])


def verdicts(**by_problem: dict[str, np.ndarray]) -> list[bool | None]:
    made = {
        name: [
            results.Result(who.removeprefix("peer "), who.startswith("peer "), c) for who, c in found.items()
        ]
        for name, found in by_problem.items()
    }
    return [met for _, met in results.goals(made)]


def test_evaluations_needed_are_a_median_over_seeds() -> None:
    assert results.Result("a", False, curves(10, 30, 500)).needed() == 30
    assert results.Result("a", False, curves(10, 500, 500)).needed() == np.inf


def test_goal_of_half_the_evaluations() -> None:
    assert verdicts(truth={"auto": curves(50), "peer a": curves(100), "peer b": curves(150)})[0] is True
    assert verdicts(truth={"auto": curves(51), "peer a": curves(100), "peer b": curves(150)})[0] is False
    assert verdicts(truth={"auto": curves(100), "peer a": curves(500)})[0] is True
    assert verdicts(truth={"auto": curves(101), "peer a": curves(500)})[0] is False
    assert verdicts(truth={"auto": curves(500), "peer a": curves(500)})[0] is False
    assert verdicts(truth={"random": curves(50), "peer a": curves(100)})[0] is None


def test_a_goal_names_the_peers_that_it_says_nothing_about() -> None:
    made = [
        results.Result("auto", False, flat(0.6, 0.6)),
        results.Result("a", True, flat(0.5, 0.5)),
        results.Result("b", True, flat(0.4)),
        results.Result("c", True, np.empty((0, 200)), "not run yet"),
    ]
    for text, _ in list(results.goals({"truth": made, "large": made}))[:2]:
        assert text.endswith("(a; without c; b of 1 seeds)")


def test_what_takes_hours_is_left_out_unless_it_is_named_and_that_is_said() -> None:
    path = Path(__file__).parents[1] / "benchmarks" / "search.py"
    spec = spec_from_file_location("search_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    benchmark = module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    usual = benchmark.chosen_searchers(None)
    assert {*usual, "optuna-gp"} == set(known_searchers())
    assert "optuna-gp" not in usual
    assert benchmark.chosen_searchers(["optuna-gp"]) == ["optuna-gp"]
    for names, said in ((usual, True), (["optuna-gp"], False)):
        console = Console(file=io.StringIO(), width=120)
        benchmark.show_left_out(console, names)
        assert ("optuna-gp: left out" in console.file.getvalue()) == said  # type: ignore[attr-defined]


def test_goal_of_being_ahead_by_more_than_the_spread() -> None:
    assert verdicts(large={"auto": flat(0.6, 0.62), "peer a": flat(0.5, 0.52)})[1] is True
    assert (
        verdicts(large={"auto": flat(0.6, 0.62), "peer a": flat(0.5, 0.52), "peer b": flat(0.7)})[1] is False
    )
    assert verdicts(large={"auto": flat(0.5, 0.72), "peer a": flat(0.5, 0.52)})[1] is False


def test_goal_of_never_being_far_from_the_best() -> None:
    near = {"auto": flat(0.99), "x": flat(1.0), "y": flat(0.5)}
    far = {"auto": flat(0.97), "x": flat(1.0), "y": flat(0.5)}
    best = {"auto": flat(0.9), "x": flat(0.5), "y": flat(0.8)}
    assert verdicts(truth=near, three=best)[2] is True
    assert verdicts(truth=near, three=near)[2] is False  # x has the better rank
    assert verdicts(truth=far, three=best, large=best)[2] is False
    assert verdicts(truth={"auto": flat(0.9)})[2] is None


def test_ranks_are_shared_by_equals_and_only_of_those_that_did_all() -> None:
    made = {
        "truth": [results.Result(n, False, flat(v)) for n, v in (("a", 0.9), ("b", 0.9), ("c", 0.1))],
        "large": [
            results.Result("a", False, flat(0.2)),
            results.Result("b", True, flat(0.4)),
            results.Result("c", False, np.empty((0, 0)), "refused"),
        ],
    }
    assert results.average_ranks(made) == {"a": (1.5 + 2) / 2, "b": (1.5 + 1) / 2}
