"""Parallel branches: exact, apart from each other, and of the stated cost."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from netcarve import trace
from netcarve.spaces.kinds.width import branches, find_regions
from netcarve.spaces.testing import counted_costs
from torch import nn
from toys import Recurrent, TransformerBlock


class Perceptron(nn.Module):
    """Two hidden groups, one right after the other."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 9), nn.Linear(9, 7), nn.Linear(7, 3)

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.relu_(self.a(x)))))


class Convolutions(nn.Module):
    """Grouped and depthwise convolutions, BatchNorm, pooling and dropout between maker and readers."""

    def __init__(self):
        super().__init__()
        self.make = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.groups = nn.GroupNorm(8, 16)
        self.left, self.right = nn.Conv2d(16, 4, 1), nn.ConvTranspose2d(16, 4, 2, stride=2)
        self.drop = nn.Dropout(0.0)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        h = torch.relu(self.groups(self.depth(torch.relu(self.norm(self.make(x))))))
        h = self.drop(nn.functional.avg_pool2d(h, 2))
        return self.head((self.left(h) + nn.functional.avg_pool2d(self.right(h), 2)).mean((2, 3)))


NETS = {
    "perceptron": (Perceptron, (4, 6), {"a", "b"}),
    "convolutions": (Convolutions, (3, 3, 8, 8), {"make", "left"}),
    "attention": (lambda: TransformerBlock(12, 4, 20), (3, 5, 12), {"attention.qkv", "up"}),
}


def made(name, dtype=torch.float64, **options):
    torch.manual_seed(0)
    kind, shape, groups = NETS[name]
    net = kind().to(dtype).eval()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-1, 1), m.running_var.uniform_(0.5, 2)
    x = torch.randn(*shape, dtype=dtype)
    blueprint = trace(net, x)
    return net, x, blueprint, blueprint.space(*options.pop("kinds", ["width"]), **options), groups


def ratio(got, expected):
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", NETS)
def test_the_divided_network_is_the_undivided_one(name, dtype, allowed):
    net, x, _, space, groups = made(name, dtype, parallel=(2, 3, 4))
    assert {c.name for c in space.choices} == {f"width:{g}" for g in groups}
    for values in itertools.product(*(c.options for c in space.choices)):
        built = space.build(
            space.from_values(dict(zip([c.name for c in space.choices], values, strict=True)))
        )
        for batch in (x, torch.cat([x, -x])):
            with torch.no_grad():
                assert ratio(built(batch), net(batch)) <= allowed, values


@pytest.mark.parametrize("name", NETS)
def test_gradients_are_those_of_the_undivided_network(name):
    net, x, _, space, _ = made(name)
    built = space.build(space.candidate(space.counts - 1))
    for module in (net, built):
        module.train()
        if isinstance(module, nn.Module):
            module.zero_grad()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    net(a).square().sum().backward()
    built(b).square().sum().backward()
    assert ratio(b.grad, a.grad) <= 1e-12
    whole = sum(p.grad.square().sum() for p in net.parameters())
    parts = sum(p.grad.square().sum() for p in built.parameters())
    assert abs(float(parts / whole) - 1) <= 1e-12  # the parts' gradients are the whole's, each once
    assert all(p.grad is not None for p in built.parameters())
    if name == "convolutions":  # running statistics moved alike: parts of the whole's
        stats = torch.cat([b for n, b in built.named_buffers() if n.endswith("running_mean")])
        assert torch.allclose(stats, net.norm.running_mean)


@pytest.mark.parametrize("name", NETS)
def test_costs_are_the_undivided_networks_and_those_counted(name):
    net, x, _, space, _ = made(name, torch.float32)
    candidate = space.candidate(space.counts - 1)
    got = {k: v[0] for k, v in space.cost_arrays([candidate]).items()}
    base = {k: v[0] for k, v in space.cost_arrays([space.baseline]).items()}
    assert {k: got[k] for k in ("macs", "params")} == {k: base[k] for k in ("macs", "params")}
    counted = counted_costs(space.build(candidate), x)
    assert counted["params"] == got["params"] == sum(p.numel() for p in net.parameters())
    assert counted["macs"] == pytest.approx(got["macs"])
    assert base["branch_macs"] == base["macs"]


def test_branch_macs_are_those_of_the_largest_branch():
    _, _, _, space, _ = made("perceptron", parallel=(2, 4))
    of = lambda a, b: space.cost_arrays([space.from_values({"width:a": a, "width:b": b})])["branch_macs"][0]  # noqa: E731
    assert of(1, 1) == 6 * 9 + 9 * 7 + 7 * 3
    assert of(2, 1) == 6 * 5 + 5 * 7 + 7 * 3  # 9 units: 5 and 4
    assert of(1, 4) == 6 * 9 + 9 * 2 + 2 * 3
    assert of(2, 4) == 6 * 5 + 5 * 2 + 2 * 3  # the layer between both groups: a product


@pytest.mark.slow
@pytest.mark.parametrize(("name", "group", "parts"), [
    ("perceptron", "a", 9), ("perceptron", "b", 2), ("convolutions", "make", 3),
    ("attention", "attention.qkv", 4), ("attention", "up", 3),
])  # fmt: skip
def test_branches_run_apart_and_add_up(name, group, parts):
    net, x, _, _, _ = made(name)
    apart = branches(net, x, group, parts)
    assert len(apart.branches) == parts
    for batch in (x, torch.cat([x, -x])):
        with torch.no_grad():
            fed, kept = apart.before(batch)
            # As on devices of their own: every branch from its bytes alone.
            results = [pickle.loads(pickle.dumps(b))(*copy.deepcopy(fed)) for b in apart.branches]
            (out,) = apart.after(*kept, *apart.add(results))
            assert ratio(out, net(batch)) <= 1e-12
            assert torch.equal(apart(batch), out)
    assert sum(p.numel() for p in apart.parameters()) == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", ["convolutions", "attention"])
def test_no_branch_depends_on_anothers_weights(name):
    net, x, _, _, groups = made(name)
    for group in groups:
        apart = branches(net, x, group, 3)
        fed, _ = apart.before(x)
        for i, branch in enumerate(apart.branches):
            total = sum(t.square().sum() for t in branch(*fed))
            own = list(branch.parameters())
            others = [p for j, b in enumerate(apart.branches) if j != i for p in b.parameters()]
            grads = torch.autograd.grad(total, own + others, allow_unused=True, retain_graph=True)
            assert all(g is None for g in grads[len(own) :])
            assert all(g is not None and g.abs().sum() > 0 for g in grads[: len(own) - 1])


def test_pruned_units_are_divided_and_branches_are_no_more_than_units():
    _, x, _, space, _ = made("perceptron", kinds=["prune", "width"], parallel=(2, 4), ratios=[0, 0.25, 0.8])
    for values in itertools.product([0, 0.25, 0.8], [1, 2, 4], [0, 0.8], [1, 4]):
        names = ("prune:a", "width:a", "prune:b", "width:b")
        candidate = space.from_values(dict(zip(names, values, strict=True)))
        whole = space.from_values(dict(zip(names, (values[0], 1, values[2], 1), strict=True)))
        built, expected = space.build(candidate), space.build(whole)
        with torch.no_grad():
            assert ratio(built(x), expected(x)) <= 1e-12
        costs, plain = space.cost_arrays([candidate]), space.cost_arrays([whole])
        assert costs["macs"] == plain["macs"]
        assert costs["params"] == plain["params"]
        assert sum(p.numel() for p in built.parameters()) == costs["params"][0]


def test_divided_blocks_can_be_dropped():
    _, x, _, space, _ = made("attention", kinds=["width", "drop"])
    for candidate in itertools.islice(itertools.product(*(range(len(c)) for c in space.choices)), 40):
        candidate = space.candidate(candidate)
        plain = space.from_values({k: 1 if k.startswith("width") else v for k, v in candidate.values.items()})
        with torch.no_grad():
            assert ratio(space.build(candidate)(x), space.build(plain)(x)) <= 1e-12
        assert (
            sum(p.numel() for p in space.build(candidate).parameters())
            == space.cost_arrays([candidate])["params"]
        )


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.first(x)
        return self.head(h + torch.relu(self.body(h)))


class Normalised(Perceptron):
    def forward(self, x):
        return self.c(torch.tanh(self.b(nn.functional.layer_norm(self.a(x), (9,)))))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.make, self.down, self.up = nn.Conv2d(3, 8, 1), nn.Linear(8, 4), nn.Linear(4, 8)
        self.read = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        h = torch.relu(self.make(x))
        gate = torch.sigmoid(self.up(torch.relu(self.down(h.mean((2, 3))))))
        return self.read(h * gate[:, :, None, None]).mean((2, 3))


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.read = nn.Linear(4, 5), nn.Linear(4, 6), nn.Linear(11, 3)

    def forward(self, x):
        return self.read(torch.relu(torch.cat([self.left(x), self.right(x)], 1)))


class Measured(Perceptron):
    def forward(self, x):
        h = self.a(x)
        return self.c(torch.tanh(self.b(h / h.norm(dim=1, keepdim=True))))


def recurrent():
    return Recurrent(nn.GRU, 6, 5, 3, nn.Linear(4, 6))


@pytest.mark.parametrize(("kind", "shape", "group", "reason"), [
    (recurrent, (5, 3, 4), "embed", "is read by gru, whose results for parts of the units do not add up"),
    (Residual, (5, 4), "first", "holds pairs of its units"),
    (Normalised, (5, 6), "a", "takes statistics over its units"),
    (Gated, (5, 3, 4, 4), "make", "needs the sum over all units"),
    (Joined, (5, 4), "left", "share an axis"),
    (Measured, (5, 6), "a", "needs the sum|do not add up"),
    (lambda: nn.Sequential(nn.Linear(4, 6), nn.Softmax(1)), (5, 4), "0", "is not in the network"),
])  # fmt: skip
def test_what_cannot_be_divided_says_why(kind, shape, group, reason):
    torch.manual_seed(0)
    net, x = kind().eval(), torch.randn(*shape)
    blueprint = trace(net, x)
    if group in {g.name for g in blueprint.coupling.groups}:
        _, reasons = find_regions(blueprint.captured.graph_module.graph, blueprint.coupling)
        assert group in reasons
    with pytest.raises(ValueError, match=reason):
        branches(net, x, group, 2)
    if blueprint.groups:
        assert f"width:{group}" not in {c.name for c in blueprint.space("prune", "width").choices}
    else:
        with pytest.raises(ValueError, match="pruned or divided into branches"):
            blueprint.space("prune", "width")


def test_bad_arguments_are_refused():
    net, x, blueprint, _, _ = made("perceptron")
    for wrong in ((1, 2), (4, 2), (), (2, 2.5)):
        with pytest.raises(ValueError, match="rising whole numbers from 2"):
            blueprint.space("width", parallel=wrong)
    with pytest.raises(ValueError, match="9 units: 2 to 9 parts, got 10"):
        branches(net, x, "a", 10)
    with pytest.raises(ValueError, match="is not in the network; these can be divided: a, b"):
        branches(net, x, "z", 2)


def test_spaces_travel_and_divided_networks_are_pickled():
    net, x, _, space, _ = made("attention")
    far = pickle.loads(pickle.dumps(space))
    candidate = far.candidate(far.counts - 1)
    built = copy.deepcopy(far.build(candidate))
    with torch.no_grad():
        assert ratio(built(x), net(x)) <= 1e-12
    assert np.array_equal(
        far.cost_arrays([candidate])["branch_macs"], space.cost_arrays([candidate])["branch_macs"]
    )
