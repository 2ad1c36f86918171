"""What is on the front, what it is worth, and what people ask of it."""

import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from netcarve import Candidate, Choice, Front, Limit, Objective, Space, Trial
from netcarve.results import FrontTracker
from netcarve.search.base import parse_limits

SPACE = Space([Choice("a", tuple(range(10)))])


def trial(number, accuracy=None, macs=None, error=None, **more):
    scores = {"accuracy": accuracy, "macs": macs, **more}
    scores = {name: value for name, value in scores.items() if value is not None}
    return Trial(number, SPACE.candidate([number % 10]), {} if error else scores, error=error)


TRIALS = [
    trial(0, 0.99, 100.0, params=50.0),
    trial(1, 0.98, 60.0, params=40.0),
    trial(2, 0.97, 70.0, params=10.0),  # dominated by 1
    trial(3, error="Traceback\nValueError: no"),
    trial(4, 0.98, 60.0, params=39.0),  # as 1
    trial(5, 0.90, 20.0),
    trial(6, 0.999, None),  # without an objective
    trial(7, 0.50, 15.0, params=5.0),
]


def numbers(front):
    return [t.number for t in front]


def test_front_keeps_what_is_not_dominated_best_first():
    front = Front(TRIALS, ["accuracy", "macs"])
    assert numbers(front) == numbers(front.trials) == [0, 1, 5, 7]
    assert len(front) == 4
    assert front.baseline is TRIALS[0]
    assert numbers(Front(TRIALS[::-1], ["macs", "accuracy"])) == [7, 5, 1, 0]


def test_objectives_and_limits_may_be_objects():
    front = Front(TRIALS, [Objective("accuracy"), Objective("macs")], limits=[Limit("macs<=0.6x")])
    assert numbers(front) == [1, 5, 7]
    assert front.baseline is TRIALS[0]  # known, though it breaks the limit


def test_limits_take_trials_out():
    assert numbers(Front(TRIALS, ["accuracy", "macs"], limits=["macs<=0.5x", "accuracy>=0.6"])) == [5]


def test_a_limit_needs_the_unchanged_model():
    with pytest.raises(ValueError, match="relative to the unchanged model"):
        Front(TRIALS[1:], ["accuracy", "macs"], limits=["macs<=0.5x"])


@pytest.mark.parametrize("objectives", [[], ["macs", "macs"], ["latency", "latency_ms"]])
def test_objectives_must_be_given_once(objectives):
    with pytest.raises(ValueError, match="at least one objective and none twice"):
        Front(TRIALS, objectives)


def test_table_has_every_metric():
    table = Front(TRIALS, ["macs", "accuracy"]).table
    assert table.index.name == "trial"
    assert table.columns.tolist() == ["macs", "accuracy", "params"]
    assert table.loc[1].tolist() == [60.0, 0.98, 40.0]
    assert np.isnan(table.loc[5, "params"])
    empty = Front([], ["macs"]).table
    assert empty.empty
    assert empty.columns.tolist() == ["macs"]


def test_hypervolume_by_hand():
    front = Front(TRIALS, ["accuracy", "macs"])
    assert front.reference == {"accuracy": 0.0, "macs": 100.0}
    # Areas in units of (accuracy 1) x (100 MACs): trials 1, 5 and 7 reach below the unchanged model's.
    by_hand = 0.98 * 0.40 + 0.90 * 0.40 + 0.50 * 0.05
    assert front.hypervolume() == pytest.approx(by_hand)
    assert front.hypervolume({"macs": 100, "accuracy": 0}) == pytest.approx(by_hand)
    assert front.hypervolume([0.0, 100.0]) == pytest.approx(by_hand)
    assert front.hypervolume({"accuracy": 0.9, "macs": 100}) == pytest.approx(0.08 * 0.40 / 0.9)
    assert front.hypervolume([0.0, 10.0]) == 0.0
    assert Front([], ["accuracy", "macs"]).hypervolume() == 0.0


def test_reference_without_unchanged_model_and_for_losses_is_the_worst_seen():
    assert Front(TRIALS[1:], ["accuracy", "macs"]).reference["macs"] == 70.0
    losses = [trial(0, macs=100.0, loss=0.1), trial(1, macs=50.0, loss=0.4), trial(2, macs=90.0, loss=0.8)]
    front = Front(losses, ["loss", "macs"])
    assert front.reference == {"loss": 0.8, "macs": 100.0}
    assert front.hypervolume() == pytest.approx(0.5 * 0.5)


def test_reference_of_a_cost_that_the_unchanged_model_has_nothing_of():
    sent = [Trial(n, Candidate((n,)), {"accuracy": 1 - n / 10, "traffic_kb": 4.0 * n}) for n in range(3)]
    assert Front(sent, ["accuracy", "traffic_kb"]).reference["traffic_kb"] == 8.0
    assert Front(sent, ["accuracy", "traffic_kb"]).hypervolume() == pytest.approx(1.0)
    assert Front(sent[:1], ["accuracy", "traffic_kb"]).hypervolume() == pytest.approx(1.0)


def test_throughput_is_measured_against_the_unchanged_model():
    rates = [
        Trial(n, Candidate((n,)), {"accuracy": 1.0, "throughput_per_s": 40.0 * (n + 1)}) for n in range(3)
    ]
    front = Front(rates, ["accuracy", "throughput_per_s"])
    assert front.reference["throughput_per_s"] == 40.0
    assert front.hypervolume() == pytest.approx(2.0)  # three times as fast: two beyond


def test_reference_of_a_quality_below_zero_is_the_worst_seen():
    trials = [trial(0, macs=100.0, gain=-1.0), trial(1, macs=50.0, gain=-3.0), trial(2, macs=90.0, gain=-4.0)]
    front = Front(trials, ["gain:max", "macs"])
    assert front.reference == {"gain": -4.0, "macs": 100.0}
    assert front.hypervolume() == pytest.approx(0.5 * 0.25)


@pytest.mark.parametrize("reference", [{"macs": 1.0}, [1.0], {}])
def test_reference_needs_every_objective(reference):
    with pytest.raises(ValueError, match="a value for each of"):
        Front(TRIALS, ["accuracy", "macs"]).hypervolume(reference)


def test_knee_is_the_best_compromise():
    assert Front(TRIALS, ["accuracy", "macs"]).knee.number == 5


def test_best_with_and_without_limits():
    front = Front(TRIALS, ["accuracy", "macs"])
    assert front.best("accuracy").number == 0
    assert front.best("macs").number == 7
    assert front.best("accuracy", "macs<=0.6x").number == 1
    assert front.best("macs", Limit("accuracy>=0.95")).number == 1
    assert front.best("macs", ["accuracy>=0.8", "macs<=30"]).number == 5
    assert front.best("params", "accuracy>=0.95").number == 1  # trial 5 has no params
    assert front.best("params:max").number == 0


@pytest.mark.parametrize(
    ("metric", "where", "match"),
    [
        ("accuracy", "macs<=0.1x", r"smallest macs is 15 \(0.15x\), of trial 7"),
        ("macs", "accuracy>=0.995", "largest accuracy is 0.99, of trial 0"),
        ("macs", ["accuracy>=0.95", "macs<=0.5x"], "nearest to all is trial"),
        ("latency", (), "known are accuracy, macs, params"),
        ("accuracy", "latency<=1", "known are accuracy, macs, params"),
        ("speed", (), "unknown metric 'speed'"),
    ],
)
def test_best_says_what_can_be_reached(metric, where, match):
    with pytest.raises(ValueError, match=match):
        Front(TRIALS, ["accuracy", "macs"]).best(metric, where)


def test_an_empty_front_says_why():
    front = Front(TRIALS, ["accuracy", "macs"], limits=["macs<=1"])
    for ask in (lambda: front.knee, lambda: front.best("macs")):
        with pytest.raises(ValueError, match=r"1 failed, 1 lack an objective, 6 break a limit"):
            ask()
    assert Front([trial(0, error="x")], ["macs"]).baseline is None


values = st.integers(0, 5).map(float)
trial_lists = st.lists(st.tuples(values, values, values, st.booleans()), max_size=30)


@given(
    rows=trial_lists,
    objectives=st.sampled_from([["accuracy", "macs"], ["loss", "accuracy", "macs"], ["macs"]]),
)
def test_tracker_agrees_with_the_front(rows, objectives):
    trials = [
        trial(n, a, m, loss=v, error="x" if failed and n else None)
        for n, (a, m, v, failed) in enumerate(rows)
    ]
    limits = ["macs<=0.8x"] if len(rows) % 2 else []
    tracker = FrontTracker(objectives, limits)
    for count, each in enumerate(trials, start=1):
        before = numbers(Front(trials[: count - 1], objectives, limits=limits))
        after = Front(trials[:count], objectives, limits=limits)
        assert tracker.add(each) == (each.number in numbers(after))
        assert tracker.size == len(after) >= (len(before) > 0)
        assert tracker.hypervolume() == pytest.approx(after.hypervolume())


def test_tracker_is_cheap():
    rng = np.random.default_rng(0)
    trials = [trial(n, float(a), float(m)) for n, (a, m) in enumerate(rng.uniform(size=(2000, 2)))]
    # A long front is the hard case: half of the trials lie on a line where none beats another.
    trials += [trial(2000 + n, 2.0 + n / 1000, n / 1000) for n in range(300)]
    tracker = FrontTracker(["accuracy", "macs"])
    start = time.perf_counter()
    for each in trials:
        tracker.add(each)
    assert (time.perf_counter() - start) / len(trials) < 0.5e-3  # ten times what it takes


def test_results_import_without_torch_or_pandas():
    code = (
        "import sys, netcarve.results as r; r.Front([], ['macs']).hypervolume(); "
        "bad = {'torch', 'pandas', 'matplotlib', 'rich', 'ray'} & set(sys.modules); "
        "sys.exit(' '.join(bad) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Limits with units


@pytest.mark.parametrize(
    ("text", "metric", "bound"),
    [
        ("latency<=5ms", "latency_ms", 5.0),
        ("latency_ms <= 5", "latency_ms", 5.0),
        ("latency<=500us", "latency_ms", 0.5),
        ("latency<=0.1 s", "latency_ms", 100.0),
        ("params<=1M", "params", 1e6),
        ("params<=1.5k", "params", 1500.0),
        ("macs<=2G", "macs", 2e9),
        ("macs<=50%", "macs", 150.0),
        ("macs<=0.5x", "macs", 150.0),
        ("accuracy>=95%", "accuracy", 0.95),
        ("accuracy>=0.95", "accuracy", 0.95),
        ("accuracy>=0.5x", "accuracy", 0.45),
        ("size<=2MB", "size_mb", 2.0),
        ("size<=2MiB", "size_mb", 2.097152),
        ("size<=500KB", "size_mb", 0.5),
        ("traffic<=1MB", "traffic_kb", 1000.0),
        ("memory:edge<=64MB", "memory_mb:edge", 64.0),
        ("throughput>=30/s", "throughput_per_s", 30.0),
        ("energy<=1J", "energy_mj", 1000.0),
        ("latency_change<=20%", "latency_change", 0.2),
        ("loss<=0.3", "loss", 0.3),
        ("mine>=-1e-3", "mine", -1e-3),
        ("stages<=3", "stages", 3.0),
    ],
)
def test_limits_have_units(text, metric, bound):
    limit = Limit(text)
    assert limit.metric == metric
    assert limit.bound({"macs": 300.0, "accuracy": 0.9}) == pytest.approx(bound)
    limit.check()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latency<=5MB", r"has the unit 'MB'; a limit on latency_ms may be in ns, us, µs, ms, s, %, x"),
        ("params<=1m", r"has the unit 'm'; a limit on params may be in k, K, M, G, T, %, x"),
        ("loss<=5%", r"a limit on loss may be in x"),
        ("mine>=95%", r"a limit on mine may be in x"),
        ("macs<0.5x", r"cannot read the limit 'macs<0.5x'; write it like macs<=0.5x"),
        ("macs<=1.2.3", r"cannot read the limit"),
    ],
)
def test_limits_that_make_no_sense_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Limit(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy>=95", r"accuracies are fractions; write accuracy>=95%, or 0.95"),
        ("accuracy>=150%", r"no accuracy is above 100%"),
        ("robust_accuracy<=2", r"write robust_accuracy<=2%"),
        ("macs<=-1", r"macs is never below 0"),
    ],
)
def test_limits_that_cannot_be_meant_open_but_start_nothing(text, message):
    limit = Limit(text)  # an old run with one must still open
    with pytest.raises(ValueError, match=message):
        limit.check()
    with pytest.raises(ValueError, match=message):
        parse_limits([text])
