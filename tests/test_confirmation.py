"""Figures of a front on data that chose nothing: closed forms, brute force, real sweeps, old runs."""

import itertools
from pathlib import Path

import netcarve
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from netcarve import Choice, Front, Space, Task, Trial, trace
from netcarve.evaluators.errors import TaskError
from netcarve.evaluators.quality import pack
from netcarve.evaluators.task import HELD_BACK, LEAST_TO_SPLIT
from netcarve.results.comparison import gain, sentence
from netcarve.results.confirmation import (
    chosen_volume,
    indistinct,
    notes,
    optimism,
    samples_right,
    value_of,
)
from netcarve.results.plot import plot_front
from netcarve.results.significance import mcnemar, wilson
from netcarve.results.table import front_document, front_rows
from torch import nn

SPACE = Space([Choice("cut", tuple(i / 10 for i in range(10)))])
OBJECTIVES = ["accuracy", "macs"]


def trial(number, macs, right, confirm=None, **scores):
    """Accuracy as ``right`` says, bool [samples]; likewise on the samples that confirm."""
    detail = {"right": pack(list(right))}
    if confirm is not None:
        own = {"data": "test data", "samples": len(confirm), "right": pack(list(confirm))}
        detail["confirmed"] = {**own, "scores": {"accuracy": float(np.mean(confirm))}}
    scores = {"accuracy": float(np.mean(right)), "macs": float(macs), **scores}
    return Trial(number, SPACE.candidate((number % 10,)), scores, detail=detail)


def lucky(seed=0, trials=40, samples=200, confirm=400):
    """Networks of equal truth (0.9): whoever looks good on validation is lucky."""
    rng = np.random.default_rng(seed)
    return [
        trial(n, 100 - 2 * n, rng.random(samples) < 0.9, rng.random(confirm) < 0.9) for n in range(trials)
    ]


# -- volumes


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 10), st.integers(1, 20)), min_size=1, max_size=12)
)
@settings(max_examples=60, deadline=None)
def test_the_volume_chosen_by_the_searchs_own_figures_is_its_hypervolume(points):
    trials = [
        Trial(n, SPACE.candidate((n % 10,)), {"accuracy": a / 10, "macs": m, "params": p})
        for n, (m, a, p) in enumerate(points)
    ]
    for objectives in (OBJECTIVES, [*OBJECTIVES, "params"], ["accuracy"], ["macs", "accuracy"]):
        front = Front(trials, objectives)
        volume = chosen_volume(front, lambda t: t.scores["accuracy"])
        assert volume == pytest.approx(front.hypervolume(), abs=1e-12)


def test_confirmed_volume_by_hand():
    """Costs 100, 50, 20 of 100; the search sees .9, .8, .6, the other samples give .8, .9, .5."""
    trials = [
        trial(0, 100, np.arange(10) < 9, np.arange(10) < 8),
        trial(1, 50, np.arange(10) < 8, np.arange(10) < 9),
        trial(2, 20, np.arange(10) < 6, np.arange(10) < 5),
    ]
    seen, sure = optimism(Front(trials, OBJECTIVES))
    assert seen == pytest.approx(0.3 * 0.6 + 0.5 * 0.8)  # up to the unchanged model's own cost, exclusive
    assert sure == pytest.approx(0.3 * 0.5 + 0.5 * 0.9)


def test_luck_is_seen_as_optimism_and_the_confirmed_figures_have_none():
    gaps, left = [], []
    for seed in range(12):
        front = Front(lucky(seed), OBJECTIVES)
        seen, sure = optimism(front)
        cheapest = min(t.scores["macs"] for t in front) / 100
        gaps.append(seen - sure)
        left.append(sure - 0.9 * (1 - cheapest))  # what these networks are truly worth
    assert np.mean(gaps) > 0.02
    assert abs(np.mean(left)) < 0.01
    assert abs(np.mean(left)) < 3 * np.std(left) / np.sqrt(len(left)) + 1e-3


# -- intervals, and what is told apart


def test_values_carry_the_interval_of_their_own_samples():
    t = trial(3, 10, np.arange(50) < 40, np.arange(80) < 60)
    own = value_of(t, "accuracy")
    assert (own.value, own.samples, own.confirmed) == (0.75, 80, True)
    assert (own.low, own.high) == wilson(60, 80)
    seen = value_of(trial(3, 10, np.arange(50) < 40), "accuracy")
    assert (seen.value, seen.samples, seen.confirmed) == (0.8, 50, False)
    assert value_of(t, "macs").margin is None
    assert value_of(t, "latency_ms") is None


def test_not_told_apart_is_mcnemar_on_every_pair():
    rng = np.random.default_rng(5)
    share = np.linspace(0.95, 0.6, 25)
    trials = [trial(n, 100 - n, rng.random(60) < p, rng.random(90) < p) for n, p in enumerate(share)]
    trials += [trial(25, 1, rng.random(60) < 0.3, rng.random(90) < 0.3)]
    front = Front(trials, OBJECTIVES)
    assert len(front) > 3
    found, right = indistinct(front), samples_right(list(front)).astype(bool)
    numbers = [t.number for t in front]
    for (i, a), (j, b) in itertools.permutations(enumerate(numbers), 2):
        assert (b in found[a]) == (mcnemar(right[i], right[j]).p >= 0.05)
    assert found[25] == []


def test_samples_of_two_kinds_are_never_mixed():
    some = [trial(0, 100, np.arange(50) < 45, np.arange(80) < 70), trial(1, 50, np.arange(50) < 40)]
    assert samples_right(some).shape == (2, 50)
    front = Front(some, OBJECTIVES)
    assert optimism(front) is None


@pytest.mark.parametrize(
    "record",
    [None, 3, {"scores": 5}, {"scores": {"accuracy": "x"}}, {"scores": {"accuracy": float("nan")}}],
)
def test_senseless_records_confirm_nothing(record):
    t = Trial(0, SPACE.baseline, {"accuracy": 0.5, "macs": 1.0}, detail={"confirmed": record, "right": [3]})
    assert not t.confirmed
    front = Front([t], OBJECTIVES)
    assert indistinct(front) == {}
    assert optimism(front) is None
    assert len(front_rows(front, noise=True)) == 1


# -- against uniform cuts


def test_a_search_that_bought_nothing_says_so_and_one_that_did_says_how_much():
    share = {0: 100, 1: 80, 2: 60, 3: 40}

    def cuts(seed):
        return [
            trial(
                n, 100 - 25 * n, np.arange(100) < right, np.random.default_rng(seed).permutation(100) < right
            )
            for n, right in share.items()
        ]

    line = cuts(0)
    nothing = gain(Front(line, OBJECTIVES), line[1:])
    assert nothing.mean == pytest.approx(0.0, abs=1e-12)
    assert not nothing.bought
    assert "bought nothing" in sentence(Front(line, OBJECTIVES), line[1:])
    # One network, half way down, that loses nothing: the front's line runs flat until there.
    better = [*line, trial(9, 50, np.ones(100, bool), np.ones(100, bool))]
    found = gain(Front(better, OBJECTIVES), line[1:])
    # Uniform: on average 70 % from 25 to 100 of cost; the front: 100 % down to 50, then falling to 40 %.
    assert found.mean == pytest.approx((50 * 1.0 + 25 * 0.7) / 75 - 0.7)
    assert found.low > 0
    assert "bought +" in sentence(Front(better, OBJECTIVES), line[1:])


def test_no_claim_without_a_line_to_compare_with():
    line = lucky(0)
    assert sentence(Front(line, OBJECTIVES), line[1:2]) == ""
    assert sentence(Front(line, ["macs"]), line) == ""


# -- what is shown


def test_table_json_and_csv_show_the_confirmed_figure(tmp_path: Path):
    trials = lucky(3)
    front = Front(trials, OBJECTIVES)
    row = front_rows(front, uniform=trials[1:4], noise=True)[0]
    own = value_of(trials[0], "accuracy")
    assert row["confirmed"] == f"{100 * own.value:.2f} ±{100 * own.margin:.1f} %"
    assert any("= " in r["note"] for r in front_rows(front, noise=True))
    assert {r["trial"] for r in front_rows(front, uniform=trials[1:4])} >= {"0", "1", "2", "3"}
    document = front_document(front, task="t", searcher="auto", seed=0)
    assert document["confirmed_on"] == {"data": "test data", "samples": 400}
    assert [t["confirmed"]["accuracy"] for t in document["trials"]] == front.table[
        "confirmed_accuracy"
    ].tolist()
    assert "optimism +" in notes(front)[0]
    plot_front(front, trials, tmp_path / "a.png", uniform=trials[1:4])
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_a_front_that_nothing_confirms_says_why():
    plain = Front([trial(0, 100, np.arange(50) < 40)], OBJECTIVES)
    assert "confirmed" not in front_rows(plain, noise=True)[0]
    assert front_rows(plain, noise=True)[0]["accuracy"] == "80.00 ±10.9 %"
    assert notes(plain, "too few")[0] == "Not confirmed: too few."


# -- tasks and sweeps


def task_of(samples, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(samples, 6)
    y = (model(x) + 0.3 * torch.randn(samples, 3)).argmax(1)
    return Task(model, x[:1], (x, y), **options)


def rows_of(batches):
    return {tuple(row.tolist()) for args, _, _ in batches for row in args[0]}


def test_a_quarter_of_a_large_validation_set_is_held_back_and_never_seen():
    task = task_of(LEAST_TO_SPLIT)
    kept, held = rows_of(task.batches), rows_of(task.confirm_batches)
    assert len(held) == HELD_BACK * LEAST_TO_SPLIT
    assert len(kept) + len(held) == LEAST_TO_SPLIT
    assert not kept & held
    assert rows_of((a, k, None) for a, k in task.calibration_batches) <= kept
    assert task.without_train().confirm_batches == []


def test_what_confirms_in_the_order_of_preference():
    other = (torch.randn(50, 6), torch.zeros(50, dtype=torch.int64))
    small = task_of(100)
    assert small.confirm_batches == []
    assert "too few" in small.confirm_data
    assert task_of(2000, test=other).confirm_data == "test data"
    assert len(rows_of(task_of(2000, test=other).batches)) == 2000
    assert len(rows_of(task_of(100, confirm=0.2).confirm_batches)) == 20
    assert task_of(100, confirm=other, test=other).confirm_data == "data given to confirm"
    assert task_of(2000, confirm=False).confirm_batches == []
    assert task_of(2000, confirm=False).fingerprint() != task_of(2000).fingerprint()
    for wrong in (0.0, 0.7, 1.5, -1):
        with pytest.raises(TaskError, match="confirm is a share"):
            task_of(100, confirm=wrong)
    task, x = task_of(100), torch.randn(100, 6)
    with pytest.raises(TaskError, match="confirm holds only samples that are in validation"):
        Task(task.model, x[:1], (x, torch.zeros(100).long()), confirm=(x[:50], torch.zeros(50).long()))


def test_a_sweep_confirms_its_front_once_with_the_networks_that_it_scored(tmp_path: Path):
    task = task_of(300, confirm=0.3)
    space = trace(task.model, task.example).space(ratios=4)

    def swept(trials, **options):
        return netcarve.sweep(
            task, space, "random", trials=trials, workers=0, out=tmp_path / "run", **options
        )

    run = swept(9)
    wanted = {0, *(t.number for t in run.front), *(t.number for t in run.uniform)}
    assert {t.number for t in run.trials if t.confirmed} == wanted
    for t in run.front:
        model = run.model(t.number)
        right = [(model(*a).argmax(1) == y) for a, _, y in task.confirm_batches]
        assert t.confirmed["accuracy"] == pytest.approx(float(torch.cat(right).float().mean()))
    rows = [m for t in run.trials for m in _measured(run, t.number)]
    longer = swept(14, resume=True)
    assert [t.scores["accuracy"] for t in longer.trials][:9] == [t.scores["accuracy"] for t in run.trials]
    assert {t.number for t in longer.front} <= {t.number for t in longer.trials if t.confirmed}
    assert rows == [m for t in run.trials for m in _measured(longer, t.number) if m in rows]  # nothing twice
    assert "confirmed on 90" in run.show(run.front.knee.number)


def _measured(run, number):
    from netcarve.results.ledger import Ledger

    with Ledger(run.path / "ledger.sqlite") as ledger:
        return [(m.number, str(m.detail)) for m in ledger.measurements(number) if "confirmed" in m.detail]
