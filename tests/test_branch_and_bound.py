"""Branch and bound: brute force is the oracle of the search, and of the check of its certificates."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netcarve.results.hypervolume import nondominated
from netcarve.results.objective import Limit, Objective
from netcarve.search.exact.branch_and_bound import BranchAndBound
from netcarve.search.exact.certificate import Certificate, CertificateError, check_certificate
from netcarve.search.registry import guard
from netcarve.spaces import Choice, ModelSide, Space
from netcarve.testing import SearcherConformance, claimed, drive, every, toy_space, true_front

COSTS = (Objective("macs"), Objective("params"), Objective("memory_mb"))


class TestBranchAndBound(SearcherConformance):
    searcher = BranchAndBound
    random = False
    learns = False  # without a bound it enumerates


class Tables(ModelSide):
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


def solved(space, objectives, limits, **options):
    made = BranchAndBound(space, objectives, **options)
    made.limits = tuple(limits)
    made.ask(1)
    return made


@pytest.mark.quick("0", "7", "8")
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
    first = certificate.front[:1]
    yield "a gap in units of its own", {"front": first, "gap": 0.01, "scale": [1e9, 1e9]}
    yield "a scale for one objective", {"scale": certificate.scale[:1]}
    yield "a front without scores", {"front": [{**entry, "scores": {}} for entry in certificate.front]}
    yield "assumed in silence", {"origin": dict.fromkeys(certificate.origin, "assumed"), "assumed": {}}
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
    assert kinds >= 13
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


@pytest.mark.parametrize(
    "odd",
    [{"front": 7}, {"gap": "0"}, {"cuts": {"limit": "x"}}, {"assumed": {"macs": None, 3: 4}}, {"order": {}}],
)
def test_a_certificate_of_other_kinds_is_none(odd):
    space, objectives, limits, _ = instance(0)
    sound = solved(space, objectives, limits).certificate.to_json()
    assert Certificate.from_json(sound).line()
    with pytest.raises(CertificateError, match="no certificate"):
        Certificate.from_json({**sound, **odd})
