"""Dropping residual blocks, alone and with pruning: outputs, costs, repair, and the way to a worker."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from netcarve import Task, trace
from netcarve.engine.rebuild import rebuild_space
from netcarve.engine.settings import RunError
from netcarve.evaluators.inspection import inspection
from netcarve.model.proof import relative_difference
from netcarve.spaces.testing import counted_costs, zeroed_consumers
from torch import nn


def conv(i, o, stride=1):
    return nn.Conv2d(i, o, 3, stride, 1, bias=False)


class Post(nn.Module):
    """He et al. 2016: relu(x + f(x)). In all of these f is zero once the parameters of ``last`` are."""

    def __init__(self, c, inplace=False):
        super().__init__()
        self.conv1, self.bn1 = conv(c, c), nn.BatchNorm2d(c)
        self.conv2, self.last = conv(c, c), nn.BatchNorm2d(c)
        self.relu = nn.ReLU(inplace)

    def forward(self, x):
        out = self.last(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.relu.inplace:
            out += x
        else:
            out = x + out
        return self.relu(out)


class Pre(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm, self.conv, self.last = nn.BatchNorm2d(c), conv(c, c), nn.Conv2d(c, c, 1)

    def forward(self, x):
        return x + self.last(torch.relu(self.conv(torch.relu(self.norm(x)))))


class Scaled(nn.Module):
    """Layer scale after a depthwise convolution, with dropout on both sides."""

    def __init__(self, c):
        super().__init__()
        self.depth, self.point = nn.Conv2d(c, c, 3, padding=1, groups=c), nn.Conv2d(c, 2 * c, 1)
        self.last, self.gamma = nn.Conv2d(2 * c, c, 1), nn.Parameter(torch.rand(c, 1, 1) + 0.5)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x):
        y = self.gamma * self.last(F.gelu(self.point(self.depth(x))))
        return self.dropout(x) + self.dropout(y)


class Nested(nn.Module):
    """A residual block within the branch of another."""

    def __init__(self, c):
        super().__init__()
        self.before, self.inner, self.last = conv(c, 6), Pre(6), conv(6, c)

    def forward(self, x):
        return x + self.last(self.inner(self.before(x)))


class Shared(nn.Module):
    """The same branch twice."""

    def __init__(self, c):
        super().__init__()
        self.conv, self.last = conv(c, c), nn.Conv2d(c, c, 1)

    def forward(self, x):
        for _ in range(2):
            x = x + self.last(torch.relu(self.conv(x)))
        return x


class Gated(nn.Module):
    """Squeeze and excite inside the branch; x arrives in another shape."""

    def __init__(self, c):
        super().__init__()
        self.conv, self.gate, self.last = conv(c, c), nn.Linear(c, c), nn.Conv2d(c, c, 1)

    def forward(self, x):
        y = torch.relu(self.conv(x))
        y = self.last(y * torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None])
        return (x.flatten(2) + y.flatten(2)).view(x.shape)


class Long(nn.Module):
    """An earlier value is read again, after two blocks of which the result is overwritten."""

    def __init__(self, c):
        super().__init__()
        self.blocks, self.out = nn.Sequential(Pre(c), Pre(c)), nn.Conv2d(2 * c, c, 1)

    def forward(self, x):
        y = self.blocks(x)
        y.mul_(2.0)
        return self.out(torch.cat([x, y], 1))


class Projection(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.body, self.skip = conv(c, c, 2), nn.Conv2d(c, c, 1, 2)

    def forward(self, x):
        return torch.relu(self.skip(x) + self.body(x))


BLOCKS = {
    "post": 1,
    "inplace": 1,
    "pre": 1,
    "scaled": 1,
    "nested": 2,
    "shared": 2,
    "gated": 1,
    "long": 2,
    "down": 0,
}
MAKERS = {
    "post": Post, "inplace": lambda c: Post(c, inplace=True), "pre": Pre, "scaled": Scaled, "nested": Nested,
    "shared": Shared, "gated": Gated, "long": Long, "down": Projection,
}  # fmt: skip


class Net(nn.Module):
    def __init__(self, kinds, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), *(MAKERS[k](8) for k in kinds))
        self.head, self.expected = nn.Linear(8, 5), sum(BLOCKS[k] for k in kinds)
        for m in self.modules():  # fresh statistics would make normalisation an identity
            if isinstance(m, nn.BatchNorm2d):
                nn.init.uniform_(m.running_mean, -0.5, 0.5)
                nn.init.uniform_(m.running_var, 0.5, 2.0)

    def forward(self, x):
        return self.head(self.blocks(x).mean((2, 3)))


networks = st.builds(
    Net,
    st.lists(st.sampled_from(list(BLOCKS)), min_size=1, max_size=4).filter(lambda k: k.count("down") < 3),
    seed=st.integers(0, 999),
)
property_test = settings(settings.get_profile("networks"))


def images(n=3, seed=0):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def owner_of(net, name):
    """The module that ends the branch of a block: blocks are named after it or a part of it."""
    path = name.partition("[")[0]
    while not hasattr(net.get_submodule(path), "last"):
        path = path.rpartition(".")[0]
    return net.get_submodule(path)


def without(net, names):
    """``net`` with the last layers of the branches ``names`` at zero."""
    for name in names:
        for p in owner_of(net, name).last.parameters():
            nn.init.zeros_(p)
    return net


def dropped(candidate):
    return [c.about.block for c, option in candidate.items() if c.name.startswith("drop:") and option]


def dropping(space, names):
    return space.from_values(space.baseline.values | {f"drop:{name}": True for name in names})


def assert_costs(space, candidate, small, x):
    row = space.cost_arrays([candidate])
    for name, counted in counted_costs(small, x).items():
        assert float(row[name][0]) == pytest.approx(counted), name


@pytest.mark.slow
@property_test
@given(networks, st.integers(0, 999))
def test_dropping_equals_a_branch_of_zeros_and_costs_equal_counted(net, seed):
    x = images(seed=seed)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    blueprint = trace(net, x)
    assert len(blueprint.blocks) == net.expected
    if not net.expected:
        with pytest.raises(ValueError, match="nothing in this model may be dropped"):
            blueprint.space("drop")
        return
    space = blueprint.space("prune", "drop")
    assert not [name for name in blueprint.left_out if name.startswith("drop:")]
    twice = [b.name for b in blueprint.blocks if isinstance(owner_of(net, b.name), Shared)]
    rng = np.random.default_rng(seed)
    for candidate in (*space.sample(rng, 2), space.candidate(space.counts - 1)):
        small = space.build(candidate)
        gone = dropped(candidate)
        first = {name for name in twice if name in gone}
        if not first or len(first) == len(twice):  # one call alone has no weights to set to zero
            reference = without(zeroed_consumers(net, blueprint, candidate), gone)
            with torch.no_grad():
                assert relative_difference([small(x)], [reference(x)])[0] < 1e-5
        assert_costs(space, candidate, small, x)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_one_of_two_calls_of_a_branch_can_go():
    net, x = Net(["shared"]).eval(), images()
    space = trace(net, x).space("drop")
    h, shared = net.blocks[:3](x), net.blocks[3]
    h = h + shared.last(torch.relu(shared.conv(h)))
    for option in ((1, 0), (0, 1)):
        candidate = space.candidate(option)
        small = space.build(candidate)
        with torch.no_grad():
            assert relative_difference([small(x)], [net.head(h.mean((2, 3)))])[0] < 1e-5
        assert sum(p.numel() for p in small.parameters()) == sum(p.numel() for p in net.parameters())
        assert_costs(space, candidate, small, x)


@pytest.mark.slow
def test_costs_of_many_candidates_are_those_of_each():
    net, x = Net(["post", "nested", "down", "inplace", "long", "shared"]), images()
    space = trace(net, x).space("prune", "drop", ratios=4)
    candidates = space.sample(np.random.default_rng(0), 8300)  # more than one chunk
    together = space.cost_arrays(candidates)
    for i in (0, 8191, 8192, 8299):
        assert_costs(space, candidates[i], space.build(candidates[i]), x)
        alone = space.cost_arrays([candidates[i]])
        assert all(v[i] == pytest.approx(alone[k][0]) for k, v in together.items())
    # What is cut within a dropped block costs nothing and saves nothing.
    inside = next(c for c in space.choices if c.name == "prune:blocks.4.before")
    moot = dropping(space, ["blocks.4"]).values | {inside.name: inside.options[-1]}
    costs = space.cost_arrays([dropping(space, ["blocks.4"]), space.from_values(moot)])
    assert all(v[0] == v[1] for v in costs.values())


def test_what_is_read_later_is_not_overwritten():
    """Both blocks of Long hand on x, which a later write in place would reach."""
    net, x = Net(["long"], seed=5).eval(), images(2)
    blueprint = trace(net, x)
    assert blueprint.blocks[0].copies
    space = blueprint.space("drop")
    for option in ((1, 0), (0, 1), (1, 1)):
        candidate = space.candidate(option)
        with torch.no_grad():
            expected = without(copy.deepcopy(net), dropped(candidate))(x)
            assert relative_difference([space.build(candidate)(x)], [expected])[0] < 1e-5


class Around(nn.Module):
    """A block with a block in its branch, which ends in a sum that is overwritten."""

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = conv(3, 8), Pre(8), conv(8, 8)

    def forward(self, x):
        x = self.first(x)
        y = self.inner(x) * 1.0
        y += x
        return (x + self.last(y)).mean((2, 3))


def test_a_copy_within_a_dropped_block_goes_with_it():
    net = Around().eval()
    blueprint = trace(net, images())
    space = blueprint.space("drop")
    assert any(b.copies for b in blueprint.blocks)
    assert all(b.name for b in blueprint.blocks)  # also where only the model itself is around the branch
    everything = space.candidate(space.counts - 1)
    with torch.no_grad():
        assert (
            relative_difference([space.build(everything)(images())], [net.first(images()).mean((2, 3))])[0]
            < 1e-6
        )


def test_the_callers_input_is_not_overwritten():
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head((x + self.a(x)).relu_())

    x = torch.randn(3, 4)
    space = trace(First(), x).space("drop")
    kept = x.clone()
    space.build(space.candidate([1]))(x)
    assert torch.equal(x, kept)


@pytest.mark.quick("module")
@pytest.mark.parametrize("kind", ["module", "graph"])
def test_a_built_network_is_an_ordinary_module_and_travels(kind):
    kinds = ["post", "down", "inplace"] if kind == "module" else ["scaled", "gated", "nested"]
    net, x = Net(kinds), images(4)
    blueprint = trace(net, x)
    space = blueprint.space("prune", "drop")
    assert space.model.artifact == kind
    candidate = dropping(space, [b.name for b in blueprint.blocks])
    small = space.build(candidate)
    if kind == "module":
        assert type(small) is Net
        assert [type(small.blocks[i]) for i in (3, 5)] == [nn.Identity, nn.Identity]
    travelled = pickle.loads(pickle.dumps(space)).build(candidate)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(small)(x), small(x))
        assert torch.equal(travelled(x), small(x))
    assert set(travelled.state_dict()) == set(small.state_dict())
    small.train()
    small(x).square().mean().backward()
    assert all(p.grad is not None for p in small.parameters())
    with torch.no_grad():
        torch.export.export(small.eval(), (x,))


def test_sequential_repair_gives_later_layers_what_a_dropped_block_took():
    """A linear branch: the layer after the block can take all of it over, so the repair is nearly exact."""
    torch.manual_seed(0)

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.up, self.down, self.mid, self.head = (nn.Linear(8, 8) for _ in range(5))

        def forward(self, x):
            x = self.stem(x)
            x = x + self.down(self.up(x))
            return self.head(torch.relu(self.mid(x)))

    net, x = Chain().eval(), torch.randn(512, 8)
    errors = {}
    for repair in (False, "once", True):
        blueprint = trace(net, x[:4])
        space = blueprint.space("prune", "drop", calibration=[((x,), {})], repair=repair)
        with torch.no_grad():
            small = space.build(dropping(space, [b.name for b in blueprint.blocks]))
            errors[repair] = float((small(x) - net(x)).abs().mean())
    assert errors["once"] == pytest.approx(errors[False])  # nothing was cut: nothing to fold
    assert errors[True] < 0.05 * errors[False]


@pytest.mark.slow
def test_sequential_repair_runs_with_nested_blocks_and_cuts():
    net, x = Net(["nested", "post", "down", "scaled", "long"]).eval(), images(32)
    space = trace(net, x[:2]).space("prune", "drop", ratios=4, calibration=[((x,), {})])
    travelled = pickle.loads(pickle.dumps(space))
    for candidate in space.sample(np.random.default_rng(1), 3):
        with torch.no_grad():
            made = space.build(candidate)(x)
            assert torch.isfinite(made).all()
            assert torch.equal(made, travelled.build(candidate)(x))


@pytest.mark.slow
def test_a_space_is_made_again_from_its_recipe_and_inspection_lists_the_blocks():
    net, x = Net(["post", "nested"]).eval(), images(8)
    task = Task(net, x[:2], (x, torch.zeros(8, dtype=torch.int64)), name="made")
    blueprint = trace(net, x[:2])
    space = blueprint.space("prune", "drop")
    again = rebuild_space(task, space.recipe, space.choices)
    odd = {**space.recipe, "options": {"of": "another netcarve"}}
    with pytest.raises(RunError, match=r"options of the run's space are not understood.*load\(path"):
        rebuild_space(task, odd, space.choices)
    candidate = dropping(space, ["blocks.4.inner"])
    with torch.no_grad():
        assert torch.equal(space.build(candidate)(x), again.build(again.from_values(candidate.values))(x))
    found = inspection(task, blueprint)["blocks"]
    assert [b["name"] for b in found] == ["blocks.3", "blocks.4.inner", "blocks.4"]
    for block in found:
        costs = space.cost_arrays([space.baseline, dropping(space, [block["name"]])])
        assert block["macs"] == costs["macs"][0] - costs["macs"][1]
        assert block["params"] == costs["params"][0] - costs["params"][1]
