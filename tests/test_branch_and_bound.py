"""Branch and bound: brute force is the oracle of the search, and of the check of its certificates."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netcarve.results.hypervolume import nondominated
from netcarve.results.objective import Limit, Objective, total_violation
from netcarve.results.trial import Trial
from netcarve.search.branch_and_bound import BranchAndBound
from netcarve.search.certificate import Certificate, CertificateError, check_certificate
from netcarve.search.registry import guard
from netcarve.search.sensitivity import candidates_of, predict
from netcarve.search.testing import SearcherConformance, drive, toy_space
from netcarve.spaces import Choice, Space

COSTS = (Objective("macs"), Objective("params"), Objective("memory_mb"))


class TestBranchAndBound(SearcherConformance):
    searcher = BranchAndBound
    random = False


class Tables:
    """An analytic model side: polynomials of what each choice keeps, or anything at all.

    ``vouches`` gives bounds over boxes, from the two extreme corners: right only where costs fall.
    """

    def __init__(self, counts, rng, *, kind, quality=False):
        self.kind, self.counts = kind, counts
        self.kept = [np.sort(rng.integers(1, 9, n))[::-1] for n in counts]  # ties between options are usual
        d = len(counts)
        if kind == "wild":
            self.tables = {o.name: rng.integers(1, 12, counts).astype(float) for o in COSTS}
        else:
            pairs = {o.name: rng.integers(0, 3, (d, d)).astype(float) for o in COSTS}
            self.tables = {name: pair + pair.T for name, pair in pairs.items()}
        if kind == "vouched":
            self.cost_bounds = self._cost_bounds

    def cost_arrays(self, choices, indices):
        if self.kind == "wild":
            return {name: table[tuple(indices.T)] for name, table in self.tables.items()}
        kept = np.stack([row[indices[:, d]] for d, row in enumerate(self.kept)], axis=1).astype(float)
        return {name: 1.0 + ((kept @ pair) * kept).sum(axis=1) for name, pair in self.tables.items()}

    def _cost_bounds(self, choices, low, high):
        least, most = self.cost_arrays(choices, high), self.cost_arrays(choices, low)
        return {name: (least[name], most[name]) for name in least}

    def build(self, candidate):
        raise NotImplementedError


def every(space):
    return candidates_of(space, np.array(list(itertools.product(*(range(n) for n in space.counts.tolist())))))


def instance(seed):
    """A random problem with up to 500 candidates: 1 to 3 objectives, limits on both sides."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, rng.integers(2, 6))
    kind = ("vouched", "wild", "assumed")[seed % 3]
    space = Space(
        [Choice(f"c{d}", tuple(range(n))) for d, n in enumerate(counts.tolist())],
        model=Tables(counts, rng, kind=kind),
    )
    objectives = tuple(COSTS[: rng.integers(1, 4)])
    limits = []
    for o in COSTS:
        if rng.random() < 0.4:
            values = space.cost_arrays(every(space))[o.name]
            op = "<=" if rng.random() < 0.5 else ">="
            limits.append(Limit(f"{o.name}{op}{rng.choice(values):.0f}"))
    if rng.random() < 0.3:
        limits.append(Limit("macs<=0.6x"))
    return space, objectives, limits, kind


def true_front(space, objectives, limits, scores=None):
    """Distinct non-dominated vectors, by definition."""
    everything = every(space)
    costs = space.cost_arrays(everything)
    base = {m: float(v[0]) for m, v in space.cost_arrays([space.baseline]).items()}
    if scores:
        base |= scores(space.baseline)
    points = []
    for i, candidate in enumerate(everything):
        found = {m: float(v[i]) for m, v in costs.items()} | (scores(candidate) if scores else {})
        if total_violation(limits, found, base) == 0:
            points.append([o.sign * found[o.name] for o in objectives])
    points = np.unique(np.array(points).reshape(-1, len(objectives)), axis=0)
    return points[nondominated(points)] if len(points) else points


def claimed(certificate, objectives):
    points = [[o.sign * entry["scores"][o.name] for o in objectives] for entry in certificate.front]
    return np.unique(np.array(points).reshape(-1, len(objectives)), axis=0)


def solved(space, objectives, limits, **options):
    made = BranchAndBound(space, objectives, **options)
    made.limits = tuple(limits)
    made.ask(1)
    return made


@pytest.mark.parametrize("block", range(10))
def test_certified_fronts_equal_brute_force(block):
    """200 random instances, every certificate checked by brute force and by splitting boxes."""
    for seed in range(block * 20, block * 20 + 20):
        space, objectives, limits, kind = instance(seed)
        made = solved(space, objectives, limits, assume_monotone=kind == "assumed")
        certificate = made.certificate
        assert certificate.optimal, seed
        np.testing.assert_array_equal(
            claimed(certificate, objectives), true_front(space, objectives, limits), err_msg=str(seed)
        )
        assert len(certificate.front) == len(claimed(certificate, objectives))
        through_json = Certificate.from_json(json.loads(json.dumps(certificate.to_json(), allow_nan=False)))
        for exhaustive in (10_000, 0):
            check_certificate(space, objectives, limits, through_json, exhaustive=exhaustive)
        assert set(certificate.origin.values()) == {
            {"vouched": "interval", "wild": "exact", "assumed": "assumed"}[kind]
        }


def corrupted(certificate, space):
    """Certificates that are wrong, with what is wrong."""
    for i, entry in enumerate(certificate.front):
        yield f"without point {i}", {"front": certificate.front[:i] + certificate.front[i + 1 :]}
        changed = {**entry, "scores": {m: v * 0.9 - 1 for m, v in entry["scores"].items()}}
        yield (
            f"other scores at {i}",
            {"front": [*certificate.front[:i], changed, *certificate.front[i + 1 :]]},
        )
    yield "failed, without a trial", {"failed": [certificate.front[0]["candidate"]]}
    yield "a point twice", {"front": [*certificate.front, certificate.front[0]]}
    yield "another space", {"front": [{"candidate": {"x": 1}, "scores": {}}]}
    yield "another order", {"order": certificate.order[:-1]}
    yield "negative gap", {"gap": -0.5}
    yield "other limits", {"limits": ["macs<=1"]}
    worse = space.baseline if certificate.front[0]["candidate"] != space.baseline.values else None
    if worse is not None:
        scores = {m: float(v[0]) for m, v in space.cost_arrays([worse]).items() if m in ("macs", "params")}
        yield (
            "a dominated point",
            {"front": [*certificate.front, {"candidate": worse.values, "scores": scores}]},
        )


@pytest.mark.parametrize("exhaustive", [10_000, 0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_corrupted_certificates_are_refused(seed, exhaustive):
    rng = np.random.default_rng(seed)
    counts = np.array([3, 4, 3, 4])
    kind = ("vouched", "wild", "assumed")[seed]
    space = Space(
        [Choice(f"c{d}", tuple(range(n))) for d, n in enumerate(counts.tolist())],
        model=Tables(counts, rng, kind=kind),
    )
    objectives, limits = COSTS[:2], (Limit("memory_mb>=0.35x" if kind != "wild" else "memory_mb>=4"),)
    good = solved(space, objectives, limits, assume_monotone=kind == "assumed").certificate
    check_certificate(space, objectives, limits, good, exhaustive=exhaustive)
    kinds = 0
    for what, change in corrupted(good, space):
        kinds += 1
        bad = dataclasses.replace(good, **change)
        with pytest.raises(CertificateError) as refused:
            check_certificate(space, objectives, limits, bad, exhaustive=exhaustive)
        assert str(refused.value), what
    assert kinds >= 9
    with pytest.raises(CertificateError, match="is for the objectives"):
        check_certificate(space, objectives[:1], limits, good)


def test_a_certificate_with_a_wrong_assumption_is_refused():
    """Costs that rise with compression, by a caller who says that they fall."""
    rng = np.random.default_rng(5)
    counts = np.array([4, 4, 4, 4])
    refused = 0
    for _ in range(10):
        space = Space(toy_space(4, 4).choices, model=Tables(counts, rng, kind="wild"))
        wrong = solved(space, COSTS[:2], (), assume_monotone=True).certificate
        if len(claimed(wrong, COSTS[:2])) == len(true_front(space, COSTS[:2], ())):
            continue
        refused += 1
        with pytest.raises(CertificateError, match="not accounted for"):
            check_certificate(space, COSTS[:2], (), wrong)
    assert refused > 3


# stopped early


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_the_gap_of_a_proof_that_was_stopped_is_true_and_shrinks(objectives):
    rng = np.random.default_rng(3)
    counts = np.array([4, 3, 4, 4, 3])
    space = Space(
        [Choice(f"c{d}", tuple(range(n))) for d, n in enumerate(counts.tolist())],
        model=Tables(counts, rng, kind="vouched"),
    )
    goals, limits = COSTS[:objectives], (Limit("memory_mb>=0.5x"),)
    made = BranchAndBound(space, goals, prove=1, step=1)
    made.limits = limits
    gaps = []
    for _ in range(400):
        made.ask(1)
        certificate = made.certificate
        gaps.append(certificate.gap)
        check_certificate(space, goals, limits, certificate)
        check_certificate(space, goals, limits, certificate, exhaustive=0)
        if certificate.optimal:
            break
    assert certificate.optimal
    assert gaps[0] is None or gaps[0] > 0
    np.testing.assert_array_equal(claimed(certificate, goals), true_front(space, goals, limits))
    open_ = [g for g in gaps if g]
    if open_:
        wrong = dataclasses.replace(certificate, front=certificate.front[1:], gap=0.0)
        with pytest.raises(CertificateError):
            check_certificate(space, goals, limits, wrong)


def test_the_certified_front_is_proposed_and_then_it_has_finished():
    space = Space(
        toy_space(4, 4).choices, model=Tables(np.full(4, 4), np.random.default_rng(0), kind="vouched")
    )
    limits = (Limit("memory_mb>=0.4x"),)
    made = guard(BranchAndBound(space, COSTS[:2]), limits)
    costs = lambda c: {m: float(v[0]) for m, v in space.cost_arrays([c]).items()}  # noqa: E731
    trials = drive(made, 1000, scores=costs)
    assert made.finished
    expected = true_front(space, COSTS[:2], limits)
    got = np.unique([[t.scores["macs"], t.scores["params"]] for t in trials], axis=0)
    np.testing.assert_array_equal(got, expected)
    assert len(trials) == len(expected)


def test_a_certified_candidate_that_fails_is_left_out_and_the_rest_proven_again():
    space = Space(toy_space(4, 4).choices, model=Tables(np.full(4, 4), np.random.default_rng(0), kind="wild"))
    limits = (Limit("memory_mb>=3"),)
    made = solved(space, COSTS, limits)
    first = sorted({c.indices for c in made.ask(1000)})
    lost = first[1::2]
    assert len(lost) >= 2
    costs = lambda c: {m: float(v[0]) for m, v in space.cost_arrays([c]).items()}  # noqa: E731
    again = BranchAndBound(space, COSTS)
    again.limits = limits
    trials = drive(again, 1000, fail=lambda c: c.indices in lost, scores=costs)
    good = again.certificate
    assert good.optimal
    assert len(good.failed) == len(lost)
    rest = [c for c in every(space) if c.indices not in lost and costs(c)["memory_mb"] >= 3]
    points = np.unique([[costs(c)[o.name] for o in COSTS] for c in rest], axis=0)
    np.testing.assert_array_equal(claimed(good, COSTS), points[nondominated(points)])
    check_certificate(space, COSTS, limits, good, trials=trials)
    with pytest.raises(CertificateError, match="no trial says so"):
        check_certificate(space, COSTS, limits, good)


# measured objectives


def measured_instance(seed, *, monotone):
    """Accuracy that falls with compression (or not), measured; macs analytic."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, 5, 4)
    space = Space(
        [Choice(f"c{d}", tuple(range(n))) for d, n in enumerate(counts.tolist())],
        model=Tables(counts, rng, kind="vouched"),
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
    space = Space(
        toy_space(2, 3).choices, model=Tables(np.full(2, 3), np.random.default_rng(0), kind="vouched")
    )
    made = BranchAndBound(space, COSTS[:1])
    made.tell([Trial(0, space.baseline, {"macs": 12345.0})])
    made.ask(1)
    assert made.certificate.origin == {"macs": "none"}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_certificates_are_the_same_again(seed):
    space, objectives, limits, kind = instance(seed)
    first, second = (solved(space, objectives, limits, assume_monotone=kind == "assumed") for _ in range(2))
    assert first.certificate == second.certificate


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="prove must be at least 1"):
        BranchAndBound(toy_space(), COSTS, prove=0)
    made = BranchAndBound(toy_space(), ("accuracy",), assume_monotone=["speed"])
    with pytest.raises(ValueError, match=r"assume_monotone names .'speed'."):
        made.ask(1)
    with pytest.raises(CertificateError, match="no certificate"):
        Certificate.from_json({"front": []})


# a run, and a real network


class MeasuredCosts:
    """Scores nothing: the space's costs are all that is wanted."""

    name, metrics, lane = "nothing", ("one",), False

    def __call__(self, task, model, candidate):
        return {"one": 1.0}


def test_a_run_keeps_the_certificate_and_the_front_prints_it(tmp_path, capsys):
    from netcarve.cli import app
    from netcarve.search import load, sweep
    from torch import nn
    from typer.testing import CliRunner

    rng = np.random.default_rng(0)
    space = Space(toy_space(4, 4).choices, model=Tables(np.full(4, 4), rng, kind="vouched"))
    space.model.build = lambda candidate: nn.Identity()
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
    bounds = network.cost_bounds(space.choices, low, high)
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
