"""Spaces whose choices set weights to zero, and clusters merged into one of their units."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import netcarve
import numpy as np
import pytest
import torch
from netcarve.evaluators.finetuning import finetune
from netcarve.model.importance.cluster import Cluster
from torch import nn


class Net(nn.Module):
    """A residual CNN with a depthwise layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.mix = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.depth = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.head = nn.Linear(12, 5)
        nn.init.normal_(self.mix[1].bias)  # zeros would count as masked

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.mix(x)
        return self.head(self.depth(x).relu().mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.quick("row", "element")
@pytest.mark.parametrize("granularity", ["element", "row", "column", "kernel"])
def test_costs_and_masks_of_the_built_network(net: Net, granularity: str) -> None:
    blueprint = netcarve.trace(net, X)
    space = blueprint.space("prune", "drop", "mask", ratios=4, granularity=granularity, norm=2)
    assert [c.name for c in space.choices if c.name.startswith("mask:")] == [
        f"mask:{n}.weight" for n in ("stem", "mix.0", "depth", "head")
    ]
    sampled = [space.baseline, *space.sample(np.random.default_rng(0), 12)]
    costs = space.costs(sampled)
    for row, candidate in zip(costs.to_dict("records"), sampled, strict=True):
        built = space.build(candidate)
        held = sum(int((p != 0).sum()) for n, p in built.named_parameters() if p.dim() > 1)
        held += sum(p.numel() for p in built.parameters() if p.dim() == 1)
        assert row["nonzeros"] == held
        assert row["params"] == sum(p.numel() for p in built.parameters())
        assert built(X).shape == (4, 5)
    assert costs["nonzeros"][0] == costs["params"][0] == sum(p.numel() for p in net.parameters())
    assert (costs["nonzeros"][1:] < costs["params"][1:]).all()


def test_masks_come_after_pruning_and_repair(net: Net) -> None:
    """What is masked is the repaired weight: its weakest numbers are zero, all else is as it was."""
    data = [((torch.randn(32, 3, 6, 6),), {})]
    space = netcarve.trace(net, X).space("prune", "mask", ratios=2, calibration=data, masking="plain")
    cut = {c.name: c.options[-1] if c.name.startswith("prune:") else 0.0 for c in space.choices}
    without = space.build(space.from_values(cut))
    masked = space.build(space.from_values({**cut, "mask:mix.0.weight": 0.5}))
    before, after = without.mix[0].weight, masked.mix[0].weight  # type: ignore[index]
    zero = after == 0
    assert int(zero.sum()) == round(0.5 * before.numel())
    assert torch.equal(after[~zero], before[~zero])
    assert before[zero].abs().max() <= before[~zero].abs().min()
    for name, p in without.named_parameters():
        if name != "mix.0.weight":
            assert torch.equal(p, masked.get_parameter(name))


def test_a_sweep_over_masks_runs_is_resumed_by_name_and_exports(net: Net, tmp_path: Path) -> None:
    x = torch.randn(80, 3, 6, 6)
    task = netcarve.Task(net, X, (x, net(x).argmax(1).detach()))
    space = netcarve.trace(task.model, task.example).space("mask")
    assert pickle.loads(pickle.dumps(space)).costs([space.baseline]).equals(space.costs([space.baseline]))
    run = netcarve.sweep(
        task, space, "random", ["accuracy", "nonzeros"], trials=6, workers=0, out=tmp_path / "run"
    )
    assert not any(t.failed for t in run.trials)
    again = netcarve.load(tmp_path / "run", task)
    worst = max(run.trials, key=lambda t: -t.scores["nonzeros"])
    model = again.model(worst.number)  # the space is made again from the run's recipe
    assert sum(int((p != 0).sum()) for p in model.parameters()) == worst.scores["nonzeros"]


def test_fine_tuning_keeps_zeros(net: Net) -> None:
    space = netcarve.trace(net, X).space("mask", sparsities=[0.0, 0.8])
    model = space.build(space.candidate([1] * len(space)))
    zero = {n: p == 0 for n, p in model.named_parameters()}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    x, y = torch.randn(130, 3, 6, 6), torch.randint(5, (130,))
    finetune(model, (x, y), epochs=2)
    assert sum(int(z.sum()) for z in zero.values()) > 1000
    for name, p in model.named_parameters():
        assert not p[zero[name]].any()
        assert not torch.equal(p, before[name])


# Merging.


def _doubled() -> nn.Sequential:
    """Every hidden unit twice, with other outgoing weights."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 6)
    )
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight[1::2] = layer.weight[::2]
            layer.bias[1::2] = layer.bias[::2]
    return net.double().eval()


def test_merging_duplicates_is_exact() -> None:
    net = _doubled()
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    blueprint = netcarve.trace(net, x)
    space = blueprint.space(ratios=[0.0, 0.5], importance=Cluster(size=2), repair="merge")
    merged = space.build(space.candidate([1] * len(space)))
    assert len(space) == 2
    assert sum(p.numel() for p in merged.parameters()) < 0.6 * sum(p.numel() for p in net.parameters())
    assert float((merged(x).detach() - net(x)).abs().max() / net(x).abs().max()) < 1e-12
    travelled = pickle.loads(pickle.dumps(space))
    assert torch.equal(travelled.build(space.candidate([1] * len(space)))(x), merged(x))
    plain = netcarve.trace(net, x).space(ratios=[0.0, 0.5], importance=Cluster(size=2, keep_one=True))
    without = plain.build(plain.candidate([1] * len(plain)))
    assert float((without(x) - net(x)).abs().max() / net(x).abs().max()) > 1e-2


def test_merging_without_clusters_is_refused(net: Net) -> None:
    with pytest.raises(ValueError, match="importance must be"):
        netcarve.trace(net, X).space(importance="l1", repair="merge")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsities": [0.5]}, "start with 0"),
        ({"sparsities": [0.0, 0.5, 0.5]}, "rise"),
        ({"sparsities": [0.0, 1.0]}, "delete the layer"),
        ({"granularity": "tile"}, "granularity"),
        ({"norm": 0}, "norm"),
    ],
)
def test_nonsense_is_refused(net: Net, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        netcarve.trace(net, X).space("mask", **options)


def test_a_space_that_does_not_merge_ends_merging() -> None:
    net = _doubled()
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    blueprint = netcarve.trace(net, x)
    blueprint.space(ratios=[0.0, 0.5], importance=Cluster(size=2), repair="merge")
    built = [b.space(ratios=[0.0, 0.5], importance="l1") for b in (blueprint, netcarve.trace(net, x))]
    after, plain = (space.build(space.candidate([1] * len(space)))(x) for space in built)
    assert torch.equal(after, plain)
