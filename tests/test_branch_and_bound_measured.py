"""Branch and bound where candidates have to be scored, in a run, and on a real network."""

import dataclasses

import numpy as np
import pytest
from netcarve.results.objective import Limit, Objective
from netcarve.results.trial import Trial
from netcarve.search.exact.branch_and_bound import BranchAndBound
from netcarve.search.exact.certificate import CertificateError, check_certificate
from netcarve.search.greedy.sensitivity import candidates_of, predict
from netcarve.search.registry import guard
from netcarve.spaces import Choice, ModelSide, Space
from netcarve.testing import claimed, drive, every, toy_space, true_front

COSTS = (Objective("macs"), Objective("params"), Objective("memory_mb"))


class Quadratic(ModelSide):
    """Costs are quadratic forms of what each choice keeps, with bounds from the corners of a box."""

    def __init__(self, counts, rng):
        self.kept = [np.sort(rng.integers(1, 9, n))[::-1] for n in counts]
        d = len(counts)
        self.forms = {o.name: rng.integers(0, 3, (d, d)).astype(float) for o in COSTS}

    def cost_arrays(self, choices, indices):
        kept = np.stack([row[indices[:, d]] for d, row in enumerate(self.kept)], axis=1).astype(float)
        return {name: 1.0 + ((kept @ form) * kept).sum(axis=1) for name, form in self.forms.items()}

    def cost_bounds(self, choices, low, high):
        least, most = self.cost_arrays(choices, high), self.cost_arrays(choices, low)
        return {name: (least[name], most[name]) for name in least}

    def build(self, candidate):
        raise NotImplementedError


def solved(space, objectives, limits, **options):
    made = BranchAndBound(space, objectives, **options)
    made.limits = tuple(limits)
    made.ask(1)
    return made


# measured objectives


def measured_instance(seed, *, monotone):
    """Accuracy that falls with compression (or not), measured; macs analytic."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, 5, 4)
    space = Space(
        [Choice(f"c{d}", tuple(range(n))) for d, n in enumerate(counts.tolist())],
        model=Quadratic(counts, rng),
    )
    hurt = rng.integers(0, 4, (4, 4)).cumsum(axis=1) if monotone else rng.integers(0, 9, (4, 4))
    hurt = hurt - hurt[:, :1]

    def scores(candidate):
        accuracy = 100.0 - float(predict(hurt, candidate.indices)[0])
        return {m: float(v[0]) for m, v in space.cost_arrays([candidate]).items()} | {"accuracy": accuracy}

    return space, scores


@pytest.mark.parametrize("limits", [(), ("macs<=0.5x",), ("accuracy>=0.95x", "macs<=0.8x")])
@pytest.mark.parametrize("monotone", [True, False])
@pytest.mark.parametrize("goals", [("accuracy",), ("accuracy", "macs"), ("macs",)])
def test_measured_searches_equal_brute_force(goals, monotone, limits):
    objectives = tuple(map(Objective, goals))
    limits = tuple(map(Limit, limits))
    asked = total = 0
    for seed in range(4):
        space, scores = measured_instance(seed, monotone=monotone)
        made = guard(BranchAndBound(space, objectives, assume_monotone=monotone), limits)
        first = Trial(0, space.baseline, scores(space.baseline))
        made.tell([first])  # as a sweep does: limits refer to it
        trials = [first, *drive(made, 10_000, scores=scores)]
        assert made.finished
        certificate = inner(made).certificate
        assert certificate.optimal
        expected = true_front(space, objectives, limits, scores)
        np.testing.assert_allclose(claimed(certificate, objectives), expected)
        for exhaustive in (10_000, 0):
            check_certificate(
                space,
                objectives,
                limits,
                certificate,
                trials=trials,
                exhaustive=exhaustive,
            )
        if len(expected) and "accuracy" in [*goals, *(m.metric for m in limits)]:
            unscored = [t for t in trials if t.candidate.values != certificate.front[0]["candidate"]]
            with pytest.raises(CertificateError):
                check_certificate(space, objectives, limits, certificate, trials=unscored)
        asked, total = asked + len(trials), total + space.size
    if monotone or limits:
        assert asked < total


def inner(searcher):
    while hasattr(searcher, "inner"):
        searcher = searcher.inner
    return searcher


def test_monotone_assumption_spares_most_evaluations():
    asked = total = 0
    for seed in range(8):
        space, scores = measured_instance(seed, monotone=True)
        made = guard(BranchAndBound(space, ("accuracy", "macs"), assume_monotone=True), ["macs<=0.5x"])
        asked += len(drive(made, 10_000, scores=scores))
        total += sum(scores(c)["macs"] <= 0.5 * scores(space.baseline)["macs"] for c in every(space))
    assert asked < 0.8 * total, (asked, total)


def test_trials_that_contradict_the_assumption_are_counted():
    space, _ = measured_instance(0, monotone=False)
    accuracy = {c: float(10 * (i % 7)) for i, c in enumerate(every(space))}
    made = BranchAndBound(space, ("accuracy",), assume_monotone=True)
    trials = drive(made, 1000, scores=lambda c: {"accuracy": accuracy[c]})
    certificate = made.certificate
    less = lambda a, b: all(x <= y for x, y in zip(a.indices, b.indices, strict=True))  # noqa: E731
    expected = sum(
        any(less(a.candidate, b.candidate) and accuracy[b.candidate] > accuracy[a.candidate] for b in trials)
        for a in trials
    )
    assert certificate.contradicted == {"accuracy": expected}
    assert expected > 0
    assert f"which {expected} of {len(trials)} trials (accuracy) contradict" in certificate.line()
    check_certificate(space, made.objectives, (), certificate, trials=trials)
    hidden = dataclasses.replace(certificate, contradicted={"accuracy": 0})
    with pytest.raises(CertificateError, match="contradict other"):
        check_certificate(space, made.objectives, (), hidden, trials=trials)


def test_discrepancies_come_in_order():
    """Without bounds: the ladder first, then what is one step away from it, ..., everything once."""
    space = toy_space(4, 4)
    made = BranchAndBound(space, ("accuracy",))
    trials = drive(made, 1000, batch=1, scores=lambda c: {"accuracy": 1.0})
    rows = [t.candidate.indices for t in trials]
    assert set(rows[:4]) == {(i,) * 4 for i in range(4)}
    assert len(rows) == len(set(rows)) == 256
    assert made.certificate.optimal
    assert "no bound on accuracy: enumerated" in made.certificate.line()
    spread = [np.ptp(row) for row in rows]
    assert np.mean(spread[:40]) < 1.3 < np.mean(spread[-40:])


def test_a_space_that_measures_another_cost_than_it_computes_is_not_trusted():
    space = Space(toy_space(2, 3).choices, model=Quadratic(np.full(2, 3), np.random.default_rng(0)))
    made = BranchAndBound(space, COSTS[:1])
    made.tell([Trial(0, space.baseline, {"macs": 12345.0})])
    made.ask(1)
    assert made.certificate.origin == {"macs": "none"}


# a run, and a real network


class MeasuredCosts:
    """Scores nothing: the space's costs are all that is wanted."""

    name, metrics, lane = "nothing", ("one",), False

    def __call__(self, task, model, candidate):
        return {"one": 1.0}


def test_a_run_keeps_the_certificate_and_the_front_prints_it(tmp_path, capsys):
    from netcarve.cli import app
    from netcarve.engine import load, sweep
    from torch import nn
    from typer.testing import CliRunner

    rng = np.random.default_rng(0)
    space = Space(toy_space(4, 4).choices, model=Quadratic(np.full(4, 4), rng))
    space.model.build = lambda candidate, repair=None: nn.Identity()
    limits = ["memory_mb>=0.4x"]
    run = sweep(
        None,
        space,
        "branch-and-bound",
        COSTS,
        limits,
        trials=60,
        workers=0,
        out=tmp_path / "run",
        evaluators=[MeasuredCosts()],
    )
    certificate = load(tmp_path / "run").certificate
    assert certificate is not None
    assert certificate.optimal
    check_certificate(space, COSTS, [Limit(limits[0])], certificate, trials=run.trials)
    np.testing.assert_array_equal(claimed(certificate, COSTS), true_front(space, COSTS, [Limit(limits[0])]))
    assert run.info["complete"]
    shown = CliRunner().invoke(app, ["front", str(tmp_path / "run")])
    assert "certified: complete front of" in shown.stdout, shown


@pytest.fixture(scope="module")
def network():
    import torch
    from netcarve.spaces.blueprint import trace
    from torch import nn

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(
                nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1)
            )

        def forward(self, x):
            return x + self.inner(x)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), Residual(), Residual(), nn.Flatten())
    net.append(nn.Linear(6 * 64, 4))
    return trace(net.eval(), torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("kinds", [("prune",), ("prune", "drop")])
def test_cost_bounds_of_a_network_hold_for_every_candidate_of_a_box(network, kinds):
    space = network.space(*kinds, ratios=4)
    rng = np.random.default_rng(0)
    ends = rng.integers(0, space.counts, (2, 40, len(space)))
    low, high = ends.min(axis=0), ends.max(axis=0)
    bounds = space.model.cost_bounds(space.choices, low, high)
    assert {"macs", "flops", "params", "size_mb"} <= set(bounds)
    assert ("memory_mb" in bounds) == (kinds == ("prune",))
    for i in range(40):
        inside = candidates_of(space, rng.integers(low[i], high[i] + 1, (50, len(space))))
        for name, values in space.cost_arrays(inside).items():
            if name in bounds:
                assert (values >= bounds[name][0][i] * (1 - 1e-12)).all()
                assert (values <= bounds[name][1][i] * (1 + 1e-12)).all()


@pytest.mark.parametrize("kinds", [("prune",), ("prune", "drop")])
def test_certified_front_of_a_network_equals_brute_force(network, kinds):
    space = network.space(*kinds, ratios=4)
    objectives, limits = (Objective("macs"), Objective("size_mb")), [Limit("params>=0.5x")]
    certificate = solved(space, objectives, limits).certificate
    assert certificate.origin == dict.fromkeys(("macs", "params", "size_mb"), "interval")
    np.testing.assert_allclose(claimed(certificate, objectives), true_front(space, objectives, limits))
    check_certificate(space, objectives, limits, certificate)
