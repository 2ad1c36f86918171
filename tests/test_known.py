"""Equal networks are scored once, and only where that cannot matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from netcarve import Task, sweep, trace
from netcarve.engine.known import SAME
from netcarve.evaluators import Quality
from netcarve.search.bayesian.gp import Auto
from torch import nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.body(x)).mean((2, 3)))


class Counting(Quality):
    """Quality that counts its calls, in this process."""

    calls = 0

    def __call__(self, task, model, candidate):
        type(self).calls += 1
        return super().__call__(task, model, candidate)


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    x, y = torch.randn(40, 1, 8, 8), torch.arange(40) % 4
    return Task(Net().eval(), x[:4], (x, y), calibration=x[:16])


@pytest.fixture(scope="module")
def space(task):
    blueprint = trace(task.model, task.example)
    return blueprint.space(
        "prune", "drop", "splits", ratios=3, places=3, calibration=task.calibration_batches
    )


def networks(space, trials) -> set[bytes]:
    return {space.model.network_key(t.candidate) for t in trials}


def scores(run) -> list[tuple]:
    """Everything but what is read off a clock."""
    return [(t.candidate, {k: v for k, v in t.scores.items() if k != "latency_ms"}) for t in run.trials]


def run(task, space, out, evaluators, **options):
    Counting.calls = 0
    goals = ("accuracy", "traffic_kb", "macs")
    return sweep(
        task, space, "random", goals, trials=90, workers=0, out=out, evaluators=evaluators, **options
    )  # fmt: skip


def test_scored_once_and_alike(task, space, tmp_path):
    made = run(task, space, tmp_path / "once", [Counting()])
    distinct = networks(space, made.trials)
    assert len(distinct) < 60  # the test would be empty
    assert Counting.calls <= len(distinct) + 16  # equal ones may be under way together
    known = [t for t in made.trials if SAME in t.detail]
    assert len(known) == len(made.trials) - (Counting.calls - 1)  # trial 0 is scored twice

    class Alone(Counting):
        of_network = False

    Alone.calls = 0
    each = run(task, space, tmp_path / "each", [Alone()])
    assert not any(SAME in t.detail for t in each.trials)
    assert scores(each) == scores(made)
    assert {t.scores["traffic_kb"] for t in known} != {0.0}  # costs are the candidate's own


def test_resumed_runs_know_what_was_scored(task, space, tmp_path):
    whole = run(task, space, tmp_path / "whole", [Counting()])
    sweep(
        task, space, "random", ("accuracy", "traffic_kb", "macs"), trials=40, workers=0,
        out=tmp_path / "parts", evaluators=[Counting()],
    )  # fmt: skip
    first = Counting.calls
    made = run(task, space, tmp_path / "parts", [Counting()], resume=True)
    assert scores(made) == scores(whole)
    new = networks(space, made.trials[40:]) - networks(space, made.trials[:40])
    assert first > 0
    assert Counting.calls <= len(new) + 16


@pytest.mark.slow
def test_a_plain_function_sees_every_candidate(task, space, tmp_path):
    seen = []

    def scored(task, model, candidate):
        seen.append(candidate)
        return {"accuracy": 1.0 - candidate.indices[-1] / 10}

    run(task, space, tmp_path / "r", [scored])
    assert len(seen) == len(set(seen)) + 1 == 91  # trial 0 is scored twice


def test_the_model_of_accuracy_sees_networks_not_cuts(space):
    """Candidates that differ in cuts alone are one point to the process; the design does not move cuts."""
    neutral = space.neutral
    assert 0 < neutral.sum() < len(neutral)
    search = Auto(space, ("accuracy", "traffic_kb"))
    rows = np.array([c.indices for c in space.sample(np.random.default_rng(0), 20)])
    moved = rows.copy()
    moved[:, neutral] = 0
    assert (search.kernel.one_hot(rows) == search.kernel.one_hot(moved)).all()
    assert (search.design()[:, neutral] == 0).all()
    assert search.design()[:, ~neutral].any(axis=0).all()
