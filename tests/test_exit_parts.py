"""What cascades are made of: divided networks, the places for it, and heads in closed form."""

import pytest
import torch
from netcarve.model.stages import CutError, find_cuts, functionalise, split
from netcarve.spaces import trace
from netcarve.spaces.kinds.exits import Cascade, Head, divide
from netcarve.spaces.kinds.exits.head import Moments, grid_of
from torch import nn
from toys import Convs

CLASSES = 5


class Tokens(nn.Module):
    """Attention with a class token, so that the batch length is needed on both sides of any place."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(2, 8, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(2)
        )
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x):
        b = x.shape[0]
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(b, -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.out(x[:, 0].reshape(b, 8))


def seeded(cls):
    torch.manual_seed(0)
    net = cls()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 2)
        net.out.weight.mul_(8)  # so that some samples are sure and others are not
    return net.eval()


def images(n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.randn(n, 2, 1, 1, generator=generator)  # without, averages are alike
    return torch.randn(n, 2, 8, 8, generator=generator) + 2 * offsets


def built(net, values=None, **options):
    """A space of exits, the cascade of some thresholds with fitted heads, and the blueprint."""
    blueprint = trace(net, images(2))
    space = blueprint.space("exits", **options)
    taken = values or {}
    candidate = space.from_values({c.name: taken.get(c.name, c.options[0]) for c in space.choices})
    return space, space.build(candidate)


# -- dividing ------------------------------------------------------------------------------------------


@pytest.mark.quick("Convs")
@pytest.mark.parametrize("cls", [Convs, Tokens])
def test_a_divided_network_is_the_network_wherever_one_tensor_crosses(cls):
    blueprint = trace(seeded(cls), images(2))
    space = blueprint.space("prune", ratios=[0, 0.5])
    whole = blueprint.surgeon.graph(blueprint.alive(space.candidate(space.counts - 1)))
    names, divided = set(), 0
    for node in blueprint.captured.graph_module.graph.nodes:
        names.add(node.name)
        if node.op != "call_function":
            continue
        try:
            first, second = divide(whole, names)
        except CutError:
            continue
        divided += 1
        for n in (1, 3):
            with torch.no_grad():
                assert torch.equal(second(first(images(n))), whole(images(n))), node.name
    assert divided >= 8


def test_dividing_agrees_with_stages_made_by_capturing():
    net = seeded(Convs)
    space, cascade = built(net, {"exit:down": 0.5}, exit_places=("down",), thresholds=(0.5,))
    blueprint = space.model.facts
    network = functionalise(blueprint.captured)
    cut = next(c for c in find_cuts(network) if "down" in c.ends)
    stages = split(network, [cut])
    x = images(4)
    with torch.no_grad():
        (sent,) = stages[0].module(x)
        torch.testing.assert_close(cascade.stages[0](x), sent)
        torch.testing.assert_close(cascade.stages[1](sent.clone()), stages[1].module(sent))


def test_the_second_part_does_not_overwrite_what_it_is_given():
    _, cascade = built(seeded(Convs), {"exit:down": 0.5}, exit_places=("down",), thresholds=(0.5,))
    with torch.no_grad():
        x = cascade.stages[0](images(3))
        before = x.clone()
        cascade.stages[1](x)  # begins with a ReLU in place
    assert torch.equal(x, before)


# -- places --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_exits_are_spread_over_the_work_unless_named():
    space = trace(seeded(Tokens), images(2)).space("exits", exits=1, thresholds=(0.9, 0.5))
    (choice,) = space.choices
    assert choice.name == "exit:blocks.0"
    assert choice.options == ("none", 0.9, 0.5)
    assert space.recipe["options"]["thresholds"] == [0.9, 0.5]
    with pytest.raises(TypeError, match="the option 'exit' is unknown"):
        trace(seeded(Tokens), images(2)).space("exits", exit=1)


def test_two_crossing_tensors_are_no_place():
    net = seeded(Convs)
    with pytest.raises(ValueError, match=r"exits cannot be after 'same\.0'; they can be after stem"):
        trace(net, images(2)).space("exits", exit_places=("stem", "same.0"))


# -- heads ---------------------------------------------------------------------------------------------


def test_heads_are_the_ridge_regression_of_the_networks_outputs():
    torch.manual_seed(0)
    stages = [
        nn.Sequential(nn.Linear(4, 6), nn.ReLU()),
        nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)),
    ]
    cascade = Cascade(stages, [Head(6, 1, (), 3)], [0.5]).eval()
    x = torch.randn(90, 4)
    cascade.refit([((x[:50],), {}), ((x[50:],), {})])
    with torch.no_grad():
        features = stages[0](x).double()
        wanted = stages[1](stages[0](x)).double()
    centred = features - features.mean(0)
    ridge = 1e-2 * float((centred**2).sum(0).mean())
    # The same by an augmented least-squares problem: rows sqrt(lambda) e_i with target 0, the bias undamped.
    a = torch.cat([centred, ridge**0.5 * torch.eye(6).double()])
    b = torch.cat([wanted - wanted.mean(0), torch.zeros(6, 3).double()])
    w = torch.linalg.lstsq(a, b).solution.T
    head = cascade.heads[0].linear
    torch.testing.assert_close(head.weight.double(), w, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        head.bias.double(), wanted.mean(0) - w @ features.mean(0), atol=1e-5, rtol=1e-4
    )


def test_moments_in_parts_are_those_of_the_whole_and_singular_ones_are_solved():
    x, y = torch.randn(30, 4).double(), torch.randn(30, 2).double()
    x = torch.cat([x, x[:, :1], torch.ones(30, 1).double()], 1)  # one feature twice, one constant
    whole, parts = Moments(6, 2), Moments(6, 2)
    whole.add(x, y)
    for i in range(0, 30, 7):
        parts.add(x[i : i + 7], y[i : i + 7])
    for a, b in zip(whole.solve(ridge=0.0), parts.solve(ridge=0.0), strict=True):
        torch.testing.assert_close(a, b)
    w, c = whole.solve(ridge=0.0)
    best = torch.linalg.lstsq(torch.cat([x[:, :4], torch.ones(30, 1).double()], 1), y).solution
    torch.testing.assert_close(x @ w.T + c, x[:, :4] @ best[:4] + best[4])


def test_features_are_averages_over_the_places():
    assert grid_of((6, 4, 4), 1) == (4, 4)  # 96 features: all of them
    assert grid_of((32, 8, 8), 1) == (2, 2)
    assert grid_of((100, 8, 8), 1) == (1, 1)
    assert grid_of((5, 8), 2) == (5,)
    assert grid_of((12,), 1) == ()
    x = torch.randn(2, 7, 5, 3)
    torch.testing.assert_close(Head(3, 3, (1, 1), 2).features(x), x.mean((1, 2)))
    torch.testing.assert_close(Head(3, 3, (7, 5), 2).features(x), x.permute(0, 3, 1, 2).flatten(1))
    tokens = Head(3, 2, (2,), 2).features(torch.arange(12.0).view(1, 4, 3))
    torch.testing.assert_close(tokens, torch.tensor([[1.5, 7.5, 2.5, 8.5, 3.5, 9.5]]))
