"""Examples of docs/extending.md, but for the kind (see test_kind_conformance.py): they work as written."""

import math
import re
from pathlib import Path

import netcarve
import numpy as np
import pytest
import torch
from netcarve.evaluators import Quality
from netcarve.model.operators.conformance import OperatorConformance
from netcarve.testing import SearcherConformance
from torch import nn

GUIDE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")


def example(section: str) -> dict:
    """What the first code of a section defines."""
    text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", GUIDE, re.DOTALL | re.MULTILINE)
    code = re.search(r"```python\n(.*?)```", text[1], re.DOTALL)
    made = {"__name__": section}
    exec(compile(code[1], f"docs/extending.md, {section}", "exec"), made)
    return made


class TestSummed(OperatorConformance):
    @classmethod
    def made(cls):
        return example("An operator")["Summed"]()

    def formula(self, site, option):
        """A 1x1 layer on the output's places."""
        params = site.inputs * site.outputs
        return params * math.prod(site.output_size), params


class TestWalk(SearcherConformance):
    searcher = example("A searcher")["Walk"]


@pytest.fixture(scope="module")
def task() -> netcarve.Task:
    return example("A task")["task"]()


def test_the_task_is_learnt_and_its_metric_is_traded_off(task, tmp_path):
    space = netcarve.trace(task.model, task.example).space("prune")
    metric = example("A metric")["Confidence"]()
    goals = ["accuracy", "confidence:max", "macs"]
    run = netcarve.sweep(
        task,
        space,
        "random",
        goals,
        trials=8,
        workers=0,
        out=tmp_path / "run",
        evaluators=[Quality(), metric],
    )
    assert run.trials[0].scores["accuracy"] > 0.9
    model = space.build(space.baseline)
    with torch.no_grad():
        expected = torch.cat([model(*a, **k).softmax(1).amax(1) for a, k, _ in task.batches]).mean()
    assert run.trials[0].scores["confidence"] == pytest.approx(float(expected), abs=1e-6)


def test_the_importance_keeps_the_units_with_the_largest_weight():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.1, 0, 0], [0, -3, 0], [2, 2, 2], [0.2, 0.2, 0.2]]))
    importance = example("An importance")["largest_weight"]
    space = netcarve.trace(model, torch.randn(2, 3)).space("prune", ratios=[0, 0.5], importance=importance)
    built = space.build(space.candidate([1]))
    assert np.array_equal(built[0].weight.detach(), model[0].weight.detach()[[1, 2]])
