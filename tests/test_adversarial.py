"""Networks that invite a wrong cut: what comes out must still equal the unpruned network, masked."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from netcarve import trace
from netcarve.model.capture import CaptureError
from netcarve.model.proof import relative_difference
from netcarve.spaces.testing import zeroed_consumers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

WIDTH = 12


class Net(nn.Module):
    """Two convolutions and a head; what happens between them is the matter of each test."""

    def __init__(self, between, **extra):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.head, self.between = nn.Linear(WIDTH, 4), between
        for name, value in extra.items():
            if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x):
        x = self.between(self, torch.relu(self.a(x)))
        return self.head(torch.relu(self.b(x)).mean((2, 3)))


def write_on_a_view(net, x):
    x = x.clone()
    x[:, :4].mul_(2.0).add_(1)
    x[:, -3:] = 0.25
    return x


def fill_by_slices(net, x):
    made = x.new_zeros(x.shape[0], WIDTH, *x.shape[2:])
    made[:, :5], made[:, 5:] = x[:, 7:], x[:, :7]
    return made


def shuffle(net, x):
    n, c, h, w = x.shape
    return net.d(x).view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)


def shuffle_through_the_batch(net, x):
    n, c, h, w = x.shape
    x = x.reshape(n * c // 2, 2, h * w).permute(1, 0, 2).reshape(2, -1, c // 2, h, w)
    return torch.cat([x[0], x[1]], 1)


def flatten_and_back(net, x):
    return net.d(x.flatten(1)).view_as(x)


NETS = {
    "shared": lambda: Net(lambda net, x: net.b(net.b(x))),
    "tied": lambda: Net(lambda net, x: F.conv2d(x, net.b.weight, net.a.bias, padding=1)),
    "write on a view": lambda: Net(write_on_a_view),
    "fill by slices": lambda: Net(fill_by_slices),
    "negative slices": lambda: Net(lambda net, x: torch.cat([x[:, -5:-2], x[:, -2:], x[:, :-5]], 1)),
    "cat with itself": lambda: Net(lambda net, x: torch.cat([x, x], 1)[:, 5:17]),
    "shuffle": lambda: Net(shuffle, d=nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=3)),
    "shuffle through the batch": lambda: Net(shuffle_through_the_batch),
    "uneven groups": lambda: Net(
        lambda net, x: net.e(net.d(x)),
        d=nn.Conv2d(WIDTH, 24, 1, groups=4),
        e=nn.Conv2d(24, WIDTH, 1, groups=6),
    ),
    "flatten and back": lambda: Net(flatten_and_back, d=nn.Linear(WIDTH * 36, WIDTH * 36)),
    "pad channels": lambda: Net(
        lambda net, x: net.d(F.pad(x, (0, 0, 0, 0, 2, 3), value=-1.0)), d=nn.Conv2d(WIDTH + 5, WIDTH, 1)
    ),
    "pick by number": lambda: Net(lambda net, x: x[:, net.i], i=torch.randperm(WIDTH)),
    "broadcast buffer": lambda: Net(lambda net, x: x - net.m[:, None, None], m=torch.rand(WIDTH)),
    "mask": lambda: Net(
        lambda net, x: x.masked_fill(net.k[:, None, None], 0.5), k=torch.arange(WIDTH) % 2 == 0
    ),
    "soft-max": lambda: Net(lambda net, x: x * F.softmax(x, 1)),
    "maximum of two": lambda: Net(
        lambda net, x: torch.max(net.d(x), x) - torch.min(net.d(x), x) / 2, d=nn.Conv2d(WIDTH, WIDTH, 1)
    ),
    "einsum with ellipsis": lambda: Net(
        lambda net, x: torch.einsum("...chw,cd->...dhw", x, net.w), w=nn.Parameter(torch.randn(WIDTH, WIDTH))
    ),
    "scale by width": lambda: Net(lambda net, x: x / math.sqrt(x.shape[1])),
    "branch on width": lambda: Net(lambda net, x: x * 2 if x.shape[1] > 3 else x),
    "branch on divisibility": lambda: Net(lambda net, x: x if x.shape[1] % 5 == 2 else x * 2),
    "branch on two widths": lambda: Net(
        lambda net, x: net.d(x) * (2 if net.d(x).shape[1] < x.shape[1] else 1), d=nn.Conv2d(WIDTH, WIDTH, 1)
    ),
    "slope per channel": lambda: Net(lambda net, x: net.p(x - 0.5), p=nn.PReLU(WIDTH)),
    "instance norm": lambda: Net(lambda net, x: net.p(x), p=nn.InstanceNorm2d(WIDTH, affine=True)),
    "feature dropout": lambda: Net(lambda net, x: net.p(x), p=nn.FeatureAlphaDropout(0.5)),
    "complex weight": lambda: Net(
        lambda net, x: (torch.fft.fft2(x) * net.w).real,
        w=nn.Parameter(torch.randn(WIDTH, 1, 1, dtype=torch.cfloat)),
    ),
    "weight norm": lambda: Net(
        lambda net, x: net.d(x), d=nn.utils.parametrizations.weight_norm(nn.Conv2d(WIDTH, WIDTH, 1))
    ),
}


def made(name):
    torch.manual_seed(0)
    net = NETS[name]()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.rand_like(parameter))
    return net


@pytest.mark.parametrize("name", NETS)
def test_every_candidate_equals_the_masked_network(name):
    net = made(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    blueprint = trace(net, torch.randn(2, 3, 6, 6))
    space = blueprint.space()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.training

    deepest = space.candidate(space.counts - 1)
    for candidate in [space.baseline, deepest, *space.sample(np.random.default_rng(0), 4)]:
        built, masked = space.build(candidate), zeroed_consumers(net, blueprint, candidate)
        assert sum(p.numel() for p in built.parameters()) == space.cost_arrays([candidate])["params"][0]
        for batch in (1, 5):
            x = torch.randn(batch, 3, 6, 6)
            with torch.no_grad():
                difference, allowed = relative_difference([built(x)], [masked(x)])
            assert difference <= allowed, (candidate.values, blueprint.artifact)


@pytest.mark.parametrize("name", ["branch on width", "branch on two widths", "scale by width"])
def test_a_forward_that_computes_with_a_width_gives_the_graph(name):
    blueprint = trace(made(name), torch.randn(2, 3, 6, 6))
    space = blueprint.space()
    assert space.model.artifact == "graph"


class Auxiliary(Net):
    """A second head that only training sees."""

    def __init__(self):
        super().__init__(lambda net, x: x, second=nn.Linear(WIDTH, 4))

    def forward(self, x):
        y = super().forward(x)
        return (y, self.second(self.a(x).mean((2, 3)))) if self.training else y


def test_what_is_built_trains_even_where_the_forward_takes_another_path_then():
    space = trace(Auxiliary(), torch.randn(2, 3, 6, 6)).space()
    built = space.build(space.candidate(space.counts - 1)).train()
    built(torch.randn(4, 3, 6, 6)).sum().backward()
    assert built.get_parameter("a.weight").grad.abs().sum() > 0


class Overwriting(Net):
    """Normalises its input in place."""

    def __init__(self):
        super().__init__(lambda net, x: x)

    def forward(self, x):
        return super().forward(x.sub_(0.5).mul_(2.0))


def test_inputs_that_the_model_overwrites_stay_as_they_are():
    torch.manual_seed(0)
    net, example = Overwriting(), torch.randn(2, 3, 6, 6)
    before = example.clone()
    blueprint = trace(net, example)
    space = blueprint.space(calibration=[((before.clone().repeat(32, 1, 1, 1),), {})])
    assert {group.name for group in blueprint.groups} == {"a", "b"}
    same = space.build(space.baseline)(before.clone())
    assert torch.equal(example, before)
    torch.testing.assert_close(same, net.eval()(before.clone()))


@pytest.mark.parametrize(
    "between",
    [
        lambda net, x: (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 0.1),
        lambda net, x: x * torch.sigmoid(net.d(x.mean((2, 3), keepdim=True).squeeze()))[..., None, None],
    ],
    ids=["unbiased deviation", "squeeze"],
)
def test_two_units_stay_where_one_is_too_few(between):
    torch.manual_seed(0)
    blueprint = trace(Net(between, d=nn.Linear(WIDTH, WIDTH)), torch.randn(2, 3, 6, 6))
    space = blueprint.space(ratios=WIDTH)
    kept = {choice.about.group: min(choice.kept) for choice in space.choices}
    assert kept["a"] == 2
    assert kept["b"] == 1
    assert space.build(space.candidate(space.counts - 1))(torch.randn(3, 3, 6, 6)).isfinite().all()


class Remembering(nn.Module):
    """Keeps what the first call computed, unless it is being exported."""

    def __init__(self):
        super().__init__()
        self.a, self.scale, self.b = nn.Linear(5, WIDTH), nn.Parameter(torch.rand(WIDTH)), nn.Linear(WIDTH, 3)
        self.kept = {}

    def forward(self, x):
        if torch.compiler.is_exporting():
            return self.b(self.a(x) * self.scale.exp())
        if "table" not in self.kept:
            self.kept["table"] = self.scale.exp()
        return self.b(self.a(x) * self.kept["table"])


def test_what_a_model_remembers_of_the_example_is_not_handed_to_what_is_built():
    blueprint = trace(Remembering(), torch.randn(2, 5))
    space = blueprint.space()
    assert space.model.artifact == "module"
    assert space.build(space.candidate(space.counts - 1)).kept == {}


def test_frozen_parameters_stay_frozen():
    net = made("broadcast buffer")
    net.b.requires_grad_(False)
    space = trace(net, torch.randn(2, 3, 6, 6)).space()
    built = space.build(space.candidate(space.counts - 1))
    assert {n for n, p in built.named_parameters() if not p.requires_grad} == {"b.weight", "b.bias"}


def test_dropout_that_never_stops_is_not_switched():
    between = lambda net, x: F.dropout(x, 0.0, training=True) + F.dropout(x, 0.5, net.training)  # noqa: E731
    blueprint = trace(Net(between), torch.randn(2, 3, 6, 6))
    built = blueprint.surgeon.graph(blueprint.alive(blueprint.space().baseline))
    flags = [n.args[2] for n in built.graph.nodes if n.target is torch.ops.aten.dropout.default]
    assert flags[0] is True
    assert str(flags[1]) == "dropout_training"


@pytest.mark.parametrize(
    "name", ["einsum with ellipsis", "maximum of two", "complex weight", "uneven groups"]
)
def test_macs_count_what_is_not_followed(name):
    space = trace(made(name), torch.randn(2, 3, 6, 6)).space()
    for candidate in [space.baseline, *space.sample(np.random.default_rng(1), 3)]:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            space.build(candidate)(torch.randn(2, 3, 6, 6))
        assert space.cost_arrays([candidate])["flops"][0] == counter.get_total_flops() / 2


def test_without_a_batch_axis_a_cut_network_is_repaired_as_far_as_samples_allow():
    class Unbatched(Net):
        def forward(self, x):
            return super().forward(x[None])[0]

    torch.manual_seed(0)
    inputs = [((torch.randn(3, 6, 6),), {}) for _ in range(8)]
    space = trace(Unbatched(lambda net, x: x), inputs[0][0][0]).space(calibration=inputs)
    built = space.build(space.candidate(space.counts // 2))
    assert built(inputs[1][0][0]).isfinite().all()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Net(lambda net, x: x).to("meta"), "meta device"),
        (lambda: Net(lambda net, x: net.d(x), d=nn.LazyConv2d(WIDTH, 1)), "lazy"),
    ],
)
def test_models_without_numbers_are_refused_by_name(make, reason):
    with pytest.raises(CaptureError, match=reason):
        trace(make(), torch.randn(2, 3, 6, 6))


class Branches(nn.Module):
    """What `cond` computes is not followed: it is left as it is, what stands before it may be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 16), nn.Linear(16, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x).relu())
        return torch.cond(x.sum() > 0, lambda y: self.head(y).relu(), lambda y: self.head(y), (x,))


def test_a_branch_on_data_is_left_alone():
    torch.manual_seed(0)
    x = torch.randn(2, 4)
    blueprint = trace(Branches(), x)
    space = blueprint.space(ratios=2)
    assert [g.name for g in blueprint.groups] == ["first"]
    assert "cond is not followed" in " ".join(blueprint.left_out.values())
    assert space.build(space.candidate([1]))(x).shape == (2, 3)


LEFT_ALONE = {
    "adaptive average": lambda x: F.adaptive_avg_pool2d(x, (3, None)),
    "average": lambda x: F.avg_pool2d(x, (3, 1), stride=(2, 1), padding=(1, 0)),
    "maximum": lambda x: F.max_pool2d(x, (2, 1)),
    "larger": lambda x: F.interpolate(x, scale_factor=(2, 1), mode="bilinear"),
    "larger by size": lambda x: F.interpolate(x, size=(9, WIDTH)),
    "padded": lambda x: F.pad(x, (0, 0, 1, 2), mode="reflect"),
}
TOUCHED = {
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (None, WIDTH + 3)),
    "average": lambda x: F.avg_pool2d(x, (1, 3), stride=1, padding=(0, 1)),
    "scaled": lambda x: F.interpolate(x, scale_factor=(1, 1.01)),
    "places of maxima": lambda x: F.adaptive_max_pool2d(x, (2, WIDTH)),
}


def along_the_channels(act):
    """The last spatial axis of what ``act`` gets are the channels."""
    return Net(lambda net, x: act(x.transpose(1, 3)).transpose(1, 3)[:, :WIDTH])


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_an_axis_that_pooling_and_resampling_leave_alone_is_followed(name):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6)
    net = along_the_channels(LEFT_ALONE[name]).eval()
    blueprint = trace(net, x)
    blueprint.prove()
    assert "a" in {g.name for g in blueprint.groups}
    space = blueprint.space()
    for candidate in space.sample(np.random.default_rng(0), 3):
        with torch.no_grad():
            masked = zeroed_consumers(net, blueprint, candidate)
            difference, allowed = relative_difference([space.build(candidate)(x)], [masked(x)])
        assert difference <= allowed


@pytest.mark.parametrize("name", TOUCHED)
def test_an_axis_that_they_change_is_left_out(name):
    blueprint = trace(along_the_channels(TOUCHED[name]), torch.randn(2, 3, 6, 6))
    assert "is a spatial axis of" in blueprint.left_out["a"]
