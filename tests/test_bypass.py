"""Bypasses: a fitted operator in the place of a residual block's branch."""

import numpy as np
import pytest
import torch
from netcarve import trace
from netcarve.model.operators.counting import count
from netcarve.model.operators.initialise import closest_map
from netcarve.spaces.testing import ToyNet, counted_costs
from torch import nn
from toys import Attention

KINDS = ("prune", "operators", "bypass")


class Residual(nn.Module):
    """Two convolutional blocks that end in a ReLU, then two of tokens with layer norm before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.first, self.second = (
            nn.Sequential(
                nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
            )
            for _ in range(2)
        )
        self.tokens = nn.Conv2d(8, 12, 2, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in range(2))
        self.attention = Attention(12, 2)
        self.mlp = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))
        self.out = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.first(x))
        x = torch.relu(x + self.second(x))
        x = self.tokens(x).flatten(2).transpose(1, 2)
        y = self.norms[0](x)
        x = x + self.attention(y)
        x = x + self.mlp(self.norms[1](x))
        return self.out(x.mean(1))


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    net, x = Residual().eval(), torch.randn(240, 3, 8, 8)
    blueprint = trace(net, x[:4])
    data = blueprint.calibrate([((x[:160],), {})])
    return net, x, blueprint, data, blueprint.space(*KINDS, ratios=3, calibration=data, operators=("svd",))


def _choice(space, name):
    return next(i for i, c in enumerate(space.choices) if c.name == name)


def _one(space, name, option):
    """The candidate in which one choice alone is not at its first option."""
    at, indices = _choice(space, name), [0] * len(space)
    indices[at] = space.choices[at].options.index(option)
    return space.candidate(indices)


def test_every_block_may_be_bypassed(made):
    space = made[-1]
    options = {c.name: c.options for c in space.choices if c.name.startswith("bypass:")}
    assert list(options) == ["bypass:first", "bypass:second", "bypass:attention", "bypass:mlp"]
    for found in options.values():
        assert (found[0], found[-1]) == ("keep", "identity")
        assert len(found) > 2
    assert "linear:1" in options["bypass:mlp"]


def test_costs_are_those_of_a_new_trace_of_the_built_network(made):
    _, x, _, _, space = made
    some = space.sample(np.random.default_rng(0), 2)
    for which in (1, -2):  # the dearest and the cheapest operator in every second block, the others dropped
        indices = [0] * len(space)
        for at, choice in enumerate(space.choices):
            if choice.name.startswith("bypass:"):
                indices[at] = (which if at % 2 else -1) % len(choice)
        some.append(space.candidate(indices))
    for candidate in some:
        network = space.build(candidate)
        traced, run = counted_costs(network, x[:4]), count(network, x[:1])
        costs = {name: float(v[0]) for name, v in space.cost_arrays([candidate]).items()}
        for name in ("macs", "params", "size_mb", "activation_mb"):
            assert costs[name] == pytest.approx(traced[name], rel=1e-9), (name, candidate.values)
        assert costs["memory_mb"] == pytest.approx((run.peak + run.bytes) / 1e6, rel=1e-9), candidate.values


def test_identity_is_the_block_dropped(made):
    _, x, blueprint, data, space = made
    dropped = blueprint.space("drop", calibration=data)
    for block in ("first", "attention"):
        a = space.build(_one(space, f"bypass:{block}", "identity"))
        b = dropped.build(_one(dropped, f"drop:{block}", True))
        with torch.no_grad():
            torch.testing.assert_close(a(x), b(x), rtol=1e-5, atol=1e-5)


def test_a_fitted_map_loses_less_than_dropping_on_inputs_that_it_has_not_seen(made):
    net, x, _, _, space = made
    with torch.no_grad():
        y = net(x[160:])
        for choice in space.choices:
            if choice.name.startswith("bypass:"):
                linear, identity = (
                    (space.build(_one(space, choice.name, o))(x[160:]) - y).square().mean()
                    for o in (choice.options[1], "identity")
                )
                assert linear < (1.02 if "attention" in choice.name else 0.95) * identity, choice.name


def test_a_linear_branch_is_replaced_without_loss():
    """x + B A x: the closest map is the product; of any layers without a non-linearity between."""
    torch.manual_seed(0)
    x = torch.randn(400, 6)

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Sequential(nn.Linear(6, 24), nn.Linear(24, 6))
            self.out = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.relu(x + self.branch(x)))

    net = Linear().eval().double()
    x = x.double()
    blueprint = trace(net, x[:4])
    space = blueprint.space("bypass", calibration=blueprint.calibrate([((x,), {})]))
    with torch.no_grad():
        built = space.build(_one(space, "bypass:branch", "linear:1"))
        torch.testing.assert_close(built(x), net(x), rtol=0, atol=1e-5)


def test_the_closest_map_of_a_convolution_is_its_kernel():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 3, 3, padding=1).double(), torch.randn(40, 3, 9, 9).double()
    with torch.no_grad():
        weight, bias = closest_map(x, layer(x), 3)
    torch.testing.assert_close(weight, layer.weight, rtol=0, atol=3e-3)
    torch.testing.assert_close(bias, layer.bias, rtol=0, atol=3e-3)


def test_a_dropped_operator_s_layer_goes_with_its_branch(made):
    _, x, _, _, space = made
    inside = next(c for c in space.choices if c.name == "operators:mlp.0")
    indices = [0] * len(space)
    indices[_choice(space, inside.name)] = 1
    indices[_choice(space, "bypass:mlp")] = 1
    both = space.candidate(indices)
    alone = _one(space, "bypass:mlp", space.choices[_choice(space, "bypass:mlp")].options[1])
    costs = [space.cost_arrays([c]) for c in (both, alone)]
    assert {k: float(v[0]) for k, v in costs[0].items()} == {k: float(v[0]) for k, v in costs[1].items()}
    with torch.no_grad():
        assert torch.equal(space.build(both)(x), space.build(alone)(x))


def test_without_calibration_data_there_is_the_identity_alone():
    torch.manual_seed(0)
    space = trace(ToyNet().eval(), torch.randn(4, 3, 6, 6)).space("bypass")
    assert [c.options for c in space.choices] == [("keep", "identity")]


@pytest.mark.parametrize("name", ["inverted-residual", "shuffle"])
def test_units_of_published_networks_stand_for_a_block(made, name):
    _, x, blueprint, data, _ = made
    space = blueprint.space("bypass", calibration=data, bypass_operators=(name,))
    choice = space.choices[0]
    built = space.build(_one(space, choice.name, choice.options[1]))
    assert built(x[:5]).shape == (5, 4)


def test_bypass_and_drop_are_refused_together(made):
    with pytest.raises(ValueError, match="leave out drop"):
        made[2].space("bypass", "drop")
    with pytest.raises(ValueError, match="known are"):
        made[2].space("bypass", bypass_operators=("nonsense",))
