"""Coupling, surgery, costs: every claim is checked by running the networks."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from netcarve import trace
from netcarve.model.capture import CaptureError
from netcarve.model.proof import relative_difference
from netcarve.spaces.testing import zeroed_consumers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from toys import BasicBlock


class Depthwise(nn.Module):
    def __init__(self, i, o, multiplier=1):
        super().__init__()
        self.depth = nn.Conv2d(i, i * multiplier, 3, padding=1, groups=i)
        self.norm = nn.BatchNorm2d(i * multiplier)
        self.point = nn.Conv2d(i * multiplier, o, 1)

    def forward(self, x):
        return torch.relu(self.point(torch.relu(self.norm(self.depth(x)))))


class Dense(nn.Module):
    """Concatenation with the input."""

    def __init__(self, i, o):
        super().__init__()
        self.conv = nn.Conv2d(i, o, 3, padding=1)
        self.out_channels = i + o

    def forward(self, x):
        return torch.cat([x, torch.relu(self.conv(x))], 1)


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, c):
        super().__init__()
        self.down, self.up = nn.Linear(c, max(2, c // 2)), nn.Linear(max(2, c // 2), c)

    def forward(self, x):
        s = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3))))))
        return x * s[:, :, None, None]


class Shuffled(nn.Module):
    """Grouped convolution with a channel shuffle and a split."""

    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1, groups=2)
        self.left = nn.Conv2d(c // 2, c // 2, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        x = self.conv(x).view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        left, right = x.chunk(2, 1)
        return torch.cat([torch.relu(self.left(left)), right], 1)


class Net(nn.Module):
    """A chain of blocks, then pooling or flattening, then a classifier."""

    def __init__(self, kinds, width=8, flatten=False, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        blocks, c = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()], width
        for kind in kinds:
            if kind == "residual":
                blocks.append(BasicBlock(c, c))
            elif kind == "down":
                blocks.append(BasicBlock(c, c + 4, 2))
                c += 4
            elif kind == "depthwise":
                blocks.append(Depthwise(c, c))
            elif kind == "multiplier":
                blocks.append(Depthwise(c, c, 2))
            elif kind == "dense":
                blocks.append(Dense(c, 6))
                c += 6
            elif kind == "gate":
                blocks.append(Gate(c))
            elif kind == "shuffle":
                blocks.append(Shuffled(c))
            elif kind == "pool":
                blocks.append(nn.MaxPool2d(2))
        self.blocks = nn.Sequential(*blocks)
        self.flatten = flatten
        with torch.no_grad():
            features = self._features(torch.zeros(1, 3, 8, 8)).shape[1]
        self.head = nn.Sequential(nn.Linear(features, 12), nn.Hardswish(), nn.Dropout(0.1), nn.Linear(12, 5))
        for m in self.modules():  # fresh statistics would make normalisation an identity
            if isinstance(m, nn.BatchNorm2d):
                nn.init.uniform_(m.running_mean, -0.5, 0.5)
                nn.init.uniform_(m.running_var, 0.5, 2.0)

    def _features(self, x):
        x = self.blocks(x)
        return torch.flatten(x, 1) if self.flatten else x.mean((2, 3))

    def forward(self, x):
        return self.head(self._features(x))


KINDS = ("residual", "down", "depthwise", "multiplier", "dense", "gate", "shuffle", "pool")
# A flattened head ties every channel to a block of positions; two poolings leave 2x2 of them.
networks = st.builds(
    Net,
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=4).filter(
        lambda k: k.count("down") + k.count("pool") < 3
    ),
    flatten=st.booleans(),
    seed=st.integers(0, 999),
)
# No shrinking: a failing network is small already, and each try costs a capture.
property_test = settings(settings.get_profile("networks"))


@property_test
@given(networks, st.integers(0, 999))
def test_pruned_output_equals_zeroed_consumers_and_costs_equal_counted(net, seed):
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    blueprint = trace(net, x)
    space = blueprint.space()
    assert not blueprint._proof.left_out, blueprint.left_out
    candidates = [space.baseline, *space.sample(np.random.default_rng(seed), 3)]
    costs = space.costs(candidates)
    for row, candidate in zip(costs.to_dict("records"), candidates, strict=True):
        small = space.build(candidate)
        with torch.no_grad():
            difference, _ = relative_difference([small(x)], [zeroed_consumers(net, blueprint, candidate)(x)])
        assert difference < 1e-5
        with FlopCounterMode(display=False) as counter:
            small(x)
        assert counter.get_total_flops() == row["flops"] * len(x)
        assert sum(p.numel() for p in small.parameters()) == row["params"]
        held = [*small.parameters(), *small.buffers()]
        assert sum(t.numel() * t.element_size() for t in held) == pytest.approx(row["size_mb"] * 1e6)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.slow
@property_test
@given(networks, st.integers(0, 999))
def test_both_artifacts_agree_in_output_loss_and_gradient(net, seed):
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    blueprint = trace(net, x)
    space = blueprint.space()
    candidate = space.sample(np.random.default_rng(seed), 1)[0]
    alive = blueprint.alive(candidate)
    graph = blueprint.surgeon.graph(alive)
    if blueprint.artifact != "module":
        return
    own = blueprint.surgeon.own(alive)
    assert type(own) is Net
    assert set(own.state_dict()) == set(graph.state_dict())
    losses = []
    for module in (own, graph):
        module.train()
        torch.manual_seed(7)
        loss = module(x).square().mean()
        loss.backward()
        losses.append(loss.detach())
    assert torch.equal(*losses)
    theirs = dict(graph.named_parameters())
    for name, p in own.named_parameters():
        assert torch.equal(p.grad, theirs[name].grad), name
    for name, b in own.named_buffers():  # running statistics moved alike
        if "running" in name:
            assert torch.equal(b, dict(graph.named_buffers())[name]), name


def residual_net():
    return Net(["residual", "down", "residual"], seed=3)


def test_groups_of_a_residual_network():
    groups = {g.name: g for g in trace(residual_net(), torch.randn(2, 3, 8, 8)).groups}
    assert set(groups) == {
        "blocks.0", "blocks.3.conv1", "blocks.4.conv1", "blocks.4.conv2", "blocks.5.conv1", "head.0",
    }  # fmt: skip
    stem = {(m.parameter, m.role) for m in groups["blocks.0"].members}
    assert ("blocks.3.conv2.weight", "out") in stem
    assert ("blocks.4.shortcut.weight", "in") in stem
    assert ("blocks.1.weight", "scale") in stem


def test_the_last_layer_is_left_out_with_its_reason():
    blueprint = trace(residual_net(), torch.randn(2, 3, 8, 8))
    assert "output" in blueprint.left_out["head.3"]


def test_layers_state_their_new_sizes():
    net = Net(["multiplier", "residual"])
    space = trace(net, torch.randn(2, 3, 8, 8)).space()
    small = space.build(space.candidate([len(c) - 1 for c in space.choices]))
    for layer in small.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.shape == (
                layer.out_channels,
                layer.in_channels // layer.groups,
                *layer.kernel_size,
            )
        elif isinstance(layer, nn.Linear):
            assert layer.weight.shape == (layer.out_features, layer.in_features)
        elif isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean.shape == (layer.num_features,)


class Branchy(nn.Module):
    """Its forward reads a width that pruning changes: only the captured graph can be cut."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.width = nn.Conv2d(3, 8, 1), nn.Linear(8 * 16, 4), 8

    def forward(self, x):
        return self.b(torch.relu(self.a(x)).view(-1, self.width * 16))


def test_a_forward_that_knows_its_width_gives_the_graph():
    x = torch.randn(2, 3, 4, 4)
    blueprint = trace(Branchy(), x)
    space = blueprint.space()
    assert space.model.artifact == "graph"
    assert "does not run pruned" in blueprint.prove().own_reason
    small = space.build(space.candidate([4]))
    assert small(torch.randn(5, 3, 4, 4)).shape == (5, 4)
    assert small.a.weight.shape[0] == 4
    assert copy.deepcopy(small)(x).equal(small(x))
    assert set(small.state_dict()) == set(Branchy().state_dict())


@pytest.mark.parametrize("make", [residual_net, Branchy])
def test_a_space_travels_and_builds_the_same(make):
    x = torch.randn(2, 3, 8, 8) if make is residual_net else torch.randn(2, 3, 4, 4)
    space = trace(make(), x).space()
    candidate = space.sample(np.random.default_rng(0), 1)[0]
    there = pickle.loads(pickle.dumps(space))
    assert there.build(candidate)(x).equal(space.build(candidate)(x))
    assert there.costs([candidate]).equals(space.costs([candidate]))


class Keyword(nn.Module):
    """Keyword inputs, dict outputs, two tensors with one batch axis."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, wide, narrow=None, *, scale=None):
        return {"logits": self.c(torch.relu(self.a(wide) + self.b(narrow)) * scale)}


def test_keyword_inputs_and_dict_outputs():
    inputs = {"scale": torch.rand(2, 8), "wide": torch.randn(2, 6), "narrow": torch.randn(2, 3)}
    net = Keyword()
    blueprint = trace(net, inputs)
    assert "fixed axis" in blueprint.left_out["a"]  # a full-width input pins the hidden channels
    inputs["scale"] = torch.rand(2, 1)
    space = trace(net, inputs).space()
    small = space.build(space.candidate([4]))
    assert small(**inputs)["logits"].shape == (2, 2)
    assert small.a.weight.shape == (4, 6)


def test_built_networks_are_independent_and_trainable():
    net = residual_net()
    space = trace(net, torch.randn(2, 3, 8, 8)).space()
    one, two = space.build(space.baseline), space.build(space.baseline)
    optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
    one.train()(torch.randn(4, 3, 8, 8)).sum().backward()
    optimizer.step()
    x = torch.randn(2, 3, 8, 8)
    assert two(x).equal(net.eval()(x))
    assert not one.eval()(x).equal(two(x))


def test_double_precision_is_exact():
    net = residual_net().double()
    proof = trace(net, torch.randn(2, 3, 8, 8, dtype=torch.float64)).prove()
    assert not proof.left_out
    assert proof.largest_difference < 1e-10


def test_zero_initialised_heads_do_not_make_the_proof_vacuous():
    net = residual_net()
    nn.init.zeros_(net.head[3].weight)
    blueprint = trace(net, torch.randn(2, 3, 8, 8))
    before = blueprint.surgeon.tensors["head.3.weight"].clone()
    assert blueprint.prove().largest_difference > 0
    assert blueprint.surgeon.tensors["head.3.weight"].equal(before)


class Unfollowed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.a(x)).mean((2, 3))
        return self.b(x.sort(dim=1).values)


def test_what_is_not_understood_is_frozen_with_the_reason():
    blueprint = trace(Unfollowed(), torch.randn(2, 3, 4, 4))
    assert not blueprint.groups
    assert "sort" in blueprint.left_out["a"]
    with pytest.raises(ValueError, match="nothing in this model may be pruned"):
        blueprint.space()


class DataDependent(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


def test_capture_errors_say_where_and_what_to_try():
    with pytest.raises(CaptureError, match=r"does not run on its example.*\(2, 4, 8, 8\)"):
        trace(residual_net(), torch.randn(2, 4, 8, 8))
    with pytest.raises(CaptureError, match="control flow"):
        trace(DataDependent(), torch.randn(2, 3))
    with pytest.raises(TypeError, match="must be a tensor"):
        trace(residual_net(), 3)


class Standardised(nn.Module):
    """Weight-standardised convolution: the weight itself is normalised over its inputs at every call."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        weight = self.second.weight.reshape(1, 8, -1)
        weight = nn.functional.batch_norm(weight, None, None, training=True, momentum=0.0)
        x = nn.functional.conv2d(torch.relu(self.first(x)), weight.reshape_as(self.second.weight))
        return self.head(torch.relu(x).mean((2, 3)))


def test_weight_standardisation_is_proven_by_finite_numbers():
    proof = trace(Standardised(), torch.randn(2, 3, 6, 6)).prove()
    assert not proof.left_out
    assert 0 < proof.largest_difference < 1e-5
    nan = torch.tensor([float("nan"), 1.0])
    assert relative_difference([nan], [torch.ones(2)])[0] == float("inf")
    assert relative_difference([nan], [nan])[0] == float("inf")
