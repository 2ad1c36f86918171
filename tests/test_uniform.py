"""Every sweep of a model opens with uniform cuts: within limits, replayed, whoever searches."""

from pathlib import Path

import netcarve
import numpy as np
import pytest
import torch
from netcarve import Choice, Space, Task, trace
from netcarve.engine.uniform import RUNGS, SHARE, ladder, opening
from netcarve.search.base import Searcher, parse_limits
from netcarve.spaces import ModelSide
from torch import nn


class Costs(ModelSide):
    """MACs proportional to what is kept."""

    def cost_arrays(self, choices, indices):
        kept = [np.array([1.0 - (o if isinstance(o, float) else 0.0) for o in c.options]) for c in choices]
        return {"macs": np.prod([k[i] for k, i in zip(kept, np.asarray(indices).T, strict=True)], axis=0)}

    def build(self, candidate):
        raise NotImplementedError


EIGHT = tuple(i / 8 for i in range(8))


def space_of(*choices):
    return Space(choices, model=Costs())


def small_task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(120, 6)
    return Task(model, x[:1], (x, model(x).argmax(1).detach()))


class Lazy(Searcher):
    """A third party's: proposes one candidate at random, and remembers what it was told."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.told = []

    def ask(self, n):
        return self.space.sample(self.rng, min(n, 1))

    def tell(self, trials):
        super().tell(trials)
        self.told += [t.candidate for t in trials]


def test_the_ladder_raises_ratios_alone_and_all_of_them():
    choices = Choice("prune:a", EIGHT), Choice("prune:b", (0.0, 0.5)), Choice("drop:c", (False, True))
    space = space_of(*choices, Choice("width:d", (1, 2, 4)), Choice("exit:e", ("none", 0.9, 0.5)))
    rows = [c.indices for c in ladder(space)]
    assert [row[0] for row in rows] == list(range(1, RUNGS + 1))
    assert [row[1] for row in rows] == [0, 0, 0, 1, 1, 1, 1]
    assert {row[2:] for row in rows} == {(0, 0, 0)}


def test_where_nothing_is_a_ratio_there_is_no_ladder():
    assert ladder(space_of(Choice("drop:a", (False, True)))) == []
    assert ladder(space_of(Choice("width:a", (1, 2, 4)))) == []
    assert ladder(Space([Choice("prune:a", EIGHT)])) == []  # no model behind it


@pytest.mark.parametrize(("trials", "ratios"), [(7, []), (8, [4]), (24, [2, 4, 6]), (200, list(range(1, 8)))])
def test_a_small_budget_opens_with_fewer(trials, ratios):
    space = space_of(Choice("prune:a", EIGHT), Choice("prune:b", EIGHT))
    found = opening(space, (), trials)
    assert [c.indices[0] for c in found] == ratios
    assert len(found) <= trials // SHARE


def test_limits_on_costs_are_kept():
    space = space_of(Choice("prune:a", EIGHT), Choice("prune:b", EIGHT))
    found = opening(space, parse_limits(["macs<=0.4x"]), None)
    assert [c.indices[0] for c in found] == [3, 4, 5, 6, 7]  # (5/8)^2 = 0.39
    assert opening(space, parse_limits(["macs<=0.001x"]), None) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["auto", "nsga2", "random", "ladder", "grid", "branch-and-bound", "third"])
def test_every_sweep_opens_with_it(name, tmp_path: Path):
    task = small_task()
    space = trace(task.model, task.example).space(ratios=4)
    goals = ["macs", "params"] if name == "branch-and-bound" else None
    searcher = Lazy(space, ["accuracy", "macs"]) if name == "third" else name
    run = netcarve.sweep(task, space, searcher, goals, trials=16, workers=0, out=tmp_path / "run")
    wanted = opening(space, (), 16)
    assert len(wanted) == 2
    assert [t.candidate for t in run.trials[1:3]] == wanted
    assert set(wanted) <= {t.candidate for t in run.uniform} <= set(ladder(space))
    assert len({t.candidate for t in run.trials}) == len(run.trials)  # none of them twice
    if name == "third":
        assert searcher.told[:3] == [space.baseline, *wanted]


def test_a_longer_run_goes_on_after_the_opening_that_it_has(tmp_path: Path):
    task = small_task()
    space = trace(task.model, task.example).space(ratios=4)

    def swept(trials, **options):
        return netcarve.sweep(task, space, "nsga2", trials=trials, workers=0, out=tmp_path / "run", **options)

    first = [t.candidate for t in swept(9).trials]
    again = [t.candidate for t in swept(40, resume=True).trials]
    assert again[:9] == first
    assert len(again) == space.size == 16
