"""Which units go first, and how many: importance criteria, pruning ratios, rounding."""

import itertools

import numpy as np
import pytest
import torch
from netcarve import trace
from netcarve.model.importance import criterion
from torch import nn


class Residual(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1)
        )

    def forward(self, x):
        return torch.relu(x + self.body(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.blocks = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), Residual(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.blocks(x).mean((2, 3)))


def test_units_kept_are_the_most_important_and_nested():
    net = Net()
    blueprint = trace(net, torch.randn(2, 3, 8, 8))
    for importance in ("l1", "l2", "batchnorm", "random"):
        space = blueprint.space(importance=importance)
        ladder = [
            blueprint.kept(space.candidate([min(i, len(c) - 1) for c in space.choices])) for i in range(8)
        ]
        for more, less in itertools.pairwise(ladder):
            assert all(set(less[g]) <= set(more[g]) for g in more)
    space = blueprint.space(importance="l1")
    kept = blueprint.kept(
        space.candidate([4 if c.name == "prune:blocks.3.body.0" else 0 for c in space.choices])
    )
    norms = net.blocks[3].body[0].weight.detach().abs().sum((1, 2, 3))
    assert set(kept["blocks.3.body.0"]) == set(norms.topk(4).indices.tolist())


def test_batch_norm_importance_follows_gamma():
    net = Net()
    with torch.no_grad():
        net.blocks[3].body[1].weight.copy_(torch.tensor([1.0, -8, 2, 7, 3, 6, -5, 4]))
    blueprint = trace(net, torch.randn(2, 3, 8, 8))
    space = blueprint.space(importance="batchnorm")
    kept = blueprint.kept(
        space.candidate([5 if c.name == "prune:blocks.3.body.0" else 0 for c in space.choices])
    )
    assert kept["blocks.3.body.0"].tolist() == [1, 3, 5]


@pytest.mark.parametrize("importance", ["l1", "l2"])
def test_every_layer_of_a_group_has_a_voice_whatever_its_size_and_scale(importance):
    net = Net()  # `blocks.0` and the last convolution of the residual block make the same units
    with torch.no_grad():
        ramp = torch.linspace(0.5, 1.5, 8).view(8, 1, 1, 1)
        net.blocks[0].weight.mul_(ramp)
        net.blocks[3].body[3].weight.mul_(1e4 * ramp**2)
    blueprint = trace(net, torch.randn(2, 3, 8, 8))
    (group,) = (g for g in blueprint.groups if g.name == "blocks.0")
    assert len(group.makers()) == 2
    parameters = dict(net.named_parameters())
    by = criterion(importance)
    scores = by(group, parameters)
    for name in ("blocks.0.weight", "blocks.3.body.3.weight"):  # neither is drowned by the other
        other = {**parameters, name: parameters[name].flip(0)}
        changed = by(group, other)
        assert np.abs(changed - scores).max() > 0.05 * scores.mean()
    scaled = {k: 7 * v if k == "blocks.3.body.3.weight" else v for k, v in parameters.items()}
    np.testing.assert_allclose(by(group, scaled), scores, rtol=1e-6)


def test_a_user_criterion_and_its_mistakes():
    blueprint = trace(Net(), torch.randn(2, 3, 8, 8))
    space = blueprint.space(importance=lambda group, parameters: -np.arange(group.size))
    kept = blueprint.kept(space.candidate([len(c) - 1 for c in space.choices]))
    assert all(units.tolist() == list(range(len(units))) for units in kept.values())
    with pytest.raises(ValueError, match="finite numbers, got shape"):
        blueprint.space(importance=lambda group, parameters: np.zeros(3))
    with pytest.raises(ValueError, match="unknown importance 'l7'"):
        blueprint.space(importance="l7")


def test_ratios_and_rounding():
    blueprint = trace(Net(), torch.randn(2, 3, 8, 8))
    choice = blueprint.space(ratios=[0, 0.5, 0.75]).choices[0]
    assert choice.options == (0.0, 0.5, 0.75)
    assert choice.kept == (8, 4, 2)
    assert all(k % 4 == 0 for c in blueprint.space(round_to=4).choices for k in c.kept)
    for bad in ([0.5], [0, 1.0], [0, -0.1]):
        with pytest.raises(ValueError, match="ratios"):
            blueprint.space(ratios=bad)
    with pytest.raises(ValueError, match="unknown kind of space 'melt'"):
        blueprint.space("melt")
