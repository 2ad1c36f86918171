"""Latency on a machine that others use: shares of the unchanged model's time, their intervals and order."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from netcarve import Task, sweep, trace
from netcarve.engine.measured_front import IN_TURNS
from netcarve.evaluators.latency import _drift, _interval, measure_latencies, measure_latency
from netcarve.results import Front, Trial
from netcarve.results.hypervolume import nondominated, nondominated_within
from netcarve.results.table import busy_text, front_rows
from netcarve.spaces import Choice, Space
from torch import Tensor, nn

BURN = """
import time
while True:
    end = time.time() + 0.1
    while time.time() < end: pass
    time.sleep(0.1)
"""


class Loop(nn.Module):
    """Its time is proportional to ``n``."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.layer = n, nn.Linear(96, 96)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.n):
            x = self.layer(x)
        return x


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """Other programs that burn two cores, on and off."""
    burning = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(2)]
    try:
        yield
    finally:
        for process in burning:
            process.kill()
            process.wait()


@pytest.mark.quick("True")
@pytest.mark.parametrize("together", [False, True])
def test_order_of_known_speeds_under_load(busy_machine: None, together: bool) -> None:
    shares = (1.0, 0.8, 0.6, 0.4, 0.2)
    inputs = ((torch.randn(64, 96),), {})
    baseline, nets = Loop(40), [Loop(round(40 * share)) for share in shares]
    if together:
        found = measure_latencies(nets, baseline, inputs)
    else:
        found = [measure_latency(net, baseline, inputs) for net in nets]
    ratios = [r.ratio for r in found]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios == pytest.approx(shares, rel=0.25)
    assert all(r.ratio_low < r.ratio < r.ratio_high for r in found)


def test_a_network_that_waits_is_timed_on_the_wall() -> None:
    class Wait(nn.Module):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.seconds = seconds

        def forward(self, x: Tensor) -> Tensor:
            time.sleep(self.seconds)
            return x

    record = measure_latency(Wait(0.004), Wait(0.008), ((torch.zeros(1, 1),), {}), repeats=10)
    assert record.median_ms >= 4
    assert record.ratio == pytest.approx(0.5, rel=0.4)


def test_intervals_of_ratios_cover_the_median() -> None:
    """95 % at least, whatever the distribution: here log-normal, with median 1."""
    rng = np.random.default_rng(0)
    for n in (6, 10, 31, 50):
        low, high = _interval(np.exp(rng.normal(size=(n, 4000))), floor=0.0)
        assert ((low <= 1) & (high >= 1)).mean() >= 0.945
    low, high = _interval(np.full((10, 1), 0.5))
    assert (low[0], high[0]) == pytest.approx((0.495, 0.505))  # two windows differ by that


def test_drift_is_how_far_stretches_lie_apart() -> None:
    assert _drift(np.full(20, 2.0)) == 0.0
    assert _drift(np.repeat([1.0, 1.0, 1.0, 1.5], 5)) == pytest.approx(0.5)
    assert _drift(np.array([1.0, 9.0, 1.0])) == 0.0  # one stretch: nothing to compare


def beats(p, low, high, a: int, b: int) -> bool:
    """One pair: better in what is exact and not clearly worse in the rest, or plainly better."""
    exact = (low == high).all(axis=0)
    plainly = (p[a] <= p[b]).all() and (p[a] < p[b]).any()
    trade = (p[a] <= p[b])[exact].all() and (p[a] < p[b])[exact].any() and (low[a] <= high[b]).all()
    return bool(plainly or trade)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 6)] * 4), max_size=12))
def test_front_of_intervals_is_the_kernel(rows) -> None:
    """Nobody on it beats another on it; everybody else is beaten by one of them, or equal to one."""
    data = np.array(rows, dtype=float).reshape(-1, 4)
    points = data[:, :2]
    low, high = points.copy(), points.copy()
    low[:, 1] -= data[:, 2] / 2
    high[:, 1] += data[:, 3] / 2
    kept = np.flatnonzero(nondominated_within(points, low, high))
    for i in range(len(points)):
        beaten = any(
            beats(points, low, high, k, i) or (k < i and (points[k] == points[i]).all()) for k in kept
        )
        assert beaten == (i not in kept)
    plain = nondominated_within(points, points, points)
    assert {tuple(p) for p in points[plain]} == {tuple(p) for p in points[nondominated(points)]}


def trial(number: int, accuracy: float, ms: float, spread: float = 0.0, drift: float = 0.0) -> Trial:
    detail = {"ratio": 1.0, "ratio_low": 1 - spread, "ratio_high": 1 + spread, "drift": drift}
    space = Space([Choice("c", tuple(range(10)))])
    return Trial(
        number,
        space.candidate([number]),
        {"accuracy": accuracy, "latency_ms": ms},
        detail=detail if number else {},
    )


def test_latencies_that_cannot_be_told_apart_are_equal_on_the_front() -> None:
    goals = ("accuracy", "latency_ms")
    exact = [trial(0, 0.9, 1.0), trial(1, 0.8, 0.95), trial(2, 0.7, 0.9), trial(3, 0.6, 0.5)]
    assert [t.number for t in Front(exact, goals)] == [0, 1, 2, 3]
    wide = [trial(t.number, t.scores["accuracy"], t.scores["latency_ms"], 0.06) for t in exact]
    front = Front(wide, goals)
    assert [t.number for t in front] == [0, 2, 3]  # 1 is as slow as 0; 2 is not, though it is as slow as 1
    assert [t.number for t in front.contenders()] == [0, 2, 3, 1]  # 1 may be faster for all that is known
    assert [t.number for t in Front(exact, goals).contenders()] == [0, 1, 2, 3]


def test_a_busy_machine_is_told_of() -> None:
    front = Front([trial(0, 0.9, 1.0), trial(1, 0.8, 0.5, 0.02, drift=0.234)], ("accuracy", "latency_ms"))
    assert "differed from itself by up to 23%" in busy_text(front)
    assert [row["latency_ms"] for row in front_rows(front)] == ["1.00 ms", "~0.500 ms 0.50x"]
    assert busy_text([trial(1, 0.8, 0.5, drift=0.1)]) == ""


def test_front_is_measured_in_turns_at_the_end(tmp_path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3)).eval()
    x = torch.randn(30, 16)
    task = Task(net, x[:2], (x, torch.arange(30) % 3))
    space = trace(net, task.example).space("prune", ratios=4)
    out = tmp_path / "run"
    given = {"objectives": ("accuracy", "latency"), "trials": 4, "workers": 0}
    quick = sweep(task, space, "random", out=out, measure=False, **given)
    assert not any(IN_TURNS in t.detail for t in quick.trials)
    told = [t.candidate for t in quick.trials]
    run = sweep(task, space, "random", out=out, resume=True, **given)
    assert [t.candidate for t in run.trials] == told
    assert all(IN_TURNS in t.detail for t in run.front)
    assert (
        run.trials[0].scores["latency_ms"] == quick.trials[0].scores["latency_ms"]
    )  # what the others refer to
    for t in run.front:
        share = 1.0 if t.number == 0 else t.detail["ratio"]
        assert t.scores["latency_ms"] == pytest.approx(share * run.trials[0].scores["latency_ms"])
        assert t.detail["drift"] >= 0
    again = sweep(task, space, "random", out=out, resume=True, **given)  # nothing is measured twice
    assert [dict(t.detail) for t in again.trials] == [dict(t.detail) for t in run.trials]
    assert "95 % interval" in run.show(next(t.number for t in run.trials if t.number))
