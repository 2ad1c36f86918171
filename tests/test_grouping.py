"""Groups of channels: the assignment, the refit, and the layers that are built."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from netcarve import trace
from netcarve.evaluators.batchnorm import reestimate_batchnorm
from netcarve.model.repair import gather
from netcarve.spaces.kinds.group import assign, balanced_sizes, kept_share
from netcarve.spaces.kinds.group.kind import dense_layers
from netcarve.spaces.kinds.group.refit import refit
from netcarve.spaces.testing import counted_costs
from torch import nn


def planted(outputs, inputs, groups, seed):
    """Block-diagonal energies behind hidden permutations, and the groups of rows and columns."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.repeat(np.arange(groups), balanced_sizes(outputs, groups)))
    columns = rng.permutation(np.repeat(np.arange(groups), balanced_sizes(inputs, groups)))
    weight = rng.normal(size=(outputs, inputs)) * (rows[:, None] == columns)
    return weight, rows, columns


@pytest.mark.parametrize(("outputs", "inputs", "groups"), [
    (4, 4, 2), (6, 9, 3), (16, 8, 4), (7, 5, 2), (32, 32, 8), (64, 48, 4), (10, 64, 2), (33, 20, 5),
    (128, 128, 16), (7, 5, 3), (21, 30, 8),
])  # fmt: skip
def test_hidden_blocks_are_found_whole(outputs, inputs, groups):
    for seed in range(3):
        weight, rows, _ = planted(outputs, inputs, groups, seed)
        found = assign(weight**2, groups)
        assert found.kept == pytest.approx(1.0, abs=1e-14)
        assert not weight[found.rows[:, None] != found.columns].any()
        assert len(set(zip(rows, found.rows, strict=True))) == groups  # the same parts, whatever their names


def arrangements(n, groups):
    return sorted(
        set(itertools.permutations(np.repeat(np.arange(groups), balanced_sizes(n, groups)).tolist()))
    )


@given(st.integers(2, 6), st.integers(2, 6), st.integers(2, 3), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_assignment_is_balanced_and_no_single_side_can_do_better(outputs, inputs, groups, seed):
    groups = min(groups, outputs, inputs)
    energy = np.random.default_rng(seed).random((outputs, inputs)) ** 2
    found = assign(energy, groups)
    for labels, n in ((found.rows, outputs), (found.columns, inputs)):
        assert np.array_equal(np.bincount(labels, minlength=groups), balanced_sizes(n, groups))
    assert found.kept == pytest.approx(energy[found.rows[:, None] == found.columns].sum() / energy.sum())
    for labels, e in ((found.columns, energy), (found.rows, energy.T)):
        inside = e @ np.eye(groups)[labels]
        best = max(inside[np.arange(len(e)), list(a)].sum() for a in arrangements(len(e), groups))
        assert found.kept * energy.sum() >= best * (1 - 2e-6)


def test_assignment_is_mostly_the_best_of_all():
    reached = []
    for seed in range(20):
        energy = np.random.default_rng(seed).random((5, 4)) ** 2
        best = max(
            energy[np.array(rows)[:, None] == np.array(columns)].sum()
            for rows in arrangements(5, 2)
            for columns in arrangements(4, 2)
        )
        reached.append(assign(energy, 2).kept * energy.sum() / best)
    assert max(reached) <= 1 + 1e-12
    assert min(reached) > 0.8
    assert np.mean(np.array(reached) > 1 - 1e-12) >= 0.7


def test_random_weights_keep_more_than_their_share():
    energy = np.random.default_rng(0).normal(size=(32, 32)) ** 2
    assert assign(energy, 4).kept > 0.29  # 0.25 would be chance
    assert assign(energy, 4).kept == assign(energy, 4).kept
    assert assign(energy, 4, restarts=16).kept >= assign(energy, 4, restarts=1).kept


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 16))
def test_share_of_the_weights_in_closed_form(outputs, inputs, groups):
    groups = min(groups, outputs, inputs)
    inside = int((balanced_sizes(outputs, groups) * balanced_sizes(inputs, groups)).sum())
    assert kept_share(outputs, inputs, groups) == pytest.approx(inside / (outputs * inputs))


def test_bad_assignments_are_refused():
    for groups in (0, 4):
        with pytest.raises(ValueError, match="1 to 3 groups"):
            assign(np.ones((5, 3)), groups)
    with pytest.raises(ValueError, match="finite and not negative"):
        assign(np.array([[1.0, np.nan], [1, 1]]), 2)
    with pytest.raises(ValueError, match="restarts"):
        assign(np.ones((2, 2)), 2, restarts=0)
    assert assign(np.zeros((4, 4)), 2).kept == 0.0  # nothing to keep


class Layers(nn.Module):
    """Every kind of layer that can be grouped, and some that cannot."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.depth = nn.Conv2d(12, 12, 3, groups=12, padding=1)
        self.line = nn.Conv1d(12, 10, 3, padding="same")
        self.hidden, self.head = nn.Linear(10, 9), nn.Linear(9, 6)

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        x = torch.relu(self.line(self.depth(x).flatten(2))).mean(2)
        return self.head(torch.relu(self.hidden(x)))


def layers_net(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    net = Layers().to(dtype).eval()
    net.norm.running_mean.uniform_(-1, 1)
    net.norm.running_var.uniform_(0.5, 2)
    return net, torch.randn(4, 3, 6, 6, dtype=dtype)


def zeroed(net, values):
    """The dense network with weights outside of groups set to zero."""
    net = copy.deepcopy(net)
    for name, groups in values.items():
        weight = net.get_submodule(name.removeprefix("group:")).weight.data
        if groups > 1:
            found = assign(weight.double().square().reshape(*weight.shape[:2], -1).sum(2).numpy(), groups)
            weight[torch.from_numpy(found.rows[:, None] != found.columns)] = 0
    return net


def test_built_layers_are_the_dense_ones_without_the_weights_outside():
    net, x = layers_net()
    blueprint = trace(net, x)
    space = blueprint.space("group", groups=(2, 3, 4))
    assert [c.name for c in space.choices] == [f"group:{n}" for n in ("second", "line", "hidden", "head")]
    assert "has 12 groups already" in space.left_out["group:depth"]
    assert "3 inputs and 8 outputs" in space.left_out["group:first"]
    for candidate in space.sample(np.random.default_rng(0), 7):
        built, expected = space.build(candidate), zeroed(net, candidate.values)
        for batch in (x, torch.cat([x, -x])):
            with torch.no_grad():
                assert torch.allclose(built(batch), expected(batch), rtol=0, atol=1e-12)
        built.train()(x).sum().backward()
        assert all(p.grad is not None for p in built.parameters())


def test_outputs_depend_on_their_own_inputs_alone():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Identity()).double()
    space = trace(net, torch.randn(3, 8).double()).space("group", groups=(4,))
    built = space.build(space.candidate([1]))
    jacobian = torch.autograd.functional.jacobian(lambda v: built(v[None])[0], torch.randn(8).double())
    assert ((jacobian != 0).sum(1) == 2).all()


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_planted_layers_are_recovered_exactly(groups):
    for seed in range(3):
        net, x = layers_net(seed=seed)
        for name in ("second", "line", "hidden", "head"):
            weight = net.get_submodule(name).weight.data
            mask = planted(*weight.shape[:2], min(groups, *(n // 2 for n in weight.shape[:2])), seed)[0] != 0
            weight[torch.from_numpy(~mask)] = 0
        space = trace(net, x).space("group", groups=(groups,))
        with torch.no_grad():
            assert torch.allclose(
                space.build(space.candidate(space.counts - 1))(x), net(x), rtol=0, atol=1e-12
            )


@pytest.mark.quick("kinds2")
@pytest.mark.parametrize(
    "kinds", [("group",), ("prune", "group"), ("prune", "width", "group"), ("group", "width")]
)
def test_costs_are_those_of_the_built_network(kinds):
    net, x = layers_net(torch.float32)
    space = trace(net, x).space(*kinds, ratios=[0, 0.3, 0.7])
    for candidate in space.sample(np.random.default_rng(1), 3):
        costs = {k: v[0] for k, v in space.cost_arrays([candidate]).items()}
        counted = counted_costs(space.build(candidate), x)
        assert counted["macs"] == pytest.approx(costs["macs"])
        assert counted["params"] == pytest.approx(costs["params"])
        if "width" not in kinds:
            # Vectors of channel numbers that stand in order are left out.
            assert -1e-9 <= costs["size_mb"] - counted["size_mb"] < 2e-4


@pytest.mark.slow
def test_grouped_layers_are_divided_whatever_the_order_of_the_choices():
    net, x = layers_net()
    spaces = [
        trace(net, x).space(*kinds, ratios=[0, 0.4])
        for kinds in itertools.permutations(["prune", "width", "group"])
    ]
    rng = np.random.default_rng(2)
    for candidate in spaces[0].sample(rng, 5):
        plain = {k: 1 if k.startswith("width") else v for k, v in candidate.values.items()}
        with torch.no_grad():
            expected = spaces[0].build(spaces[0].from_values(plain))(x)
            for space in spaces[::2]:
                built = space.build(space.from_values(candidate.values))
                assert torch.allclose(built(x), expected, rtol=0, atol=1e-12)


def measured(net, x):
    captured = trace(net, x).captured
    blueprint = trace(net, x)
    return blueprint, gather(captured, blueprint.coupling, [((x,), {})])


def test_refit_is_least_squares_and_never_worse_than_none():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    x = torch.randn(200, 6).double() @ torch.randn(6, 6).double()
    blueprint, calibration = measured(net, x)
    (consumer,) = (c for c in calibration.consumers if c.weight == "2.weight")
    h, weight, bias = net[:2](x).detach(), net[2].weight.detach(), net[2].bias.detach()
    y = h @ weight.T + bias
    alive = np.ones(blueprint.coupling.units + 1, dtype=bool)
    rows, columns = np.arange(6) % 2, np.arange(8) // 4
    inside = torch.from_numpy(rows[:, None] == columns)
    before = (y - h @ (weight * inside).T - bias).square().sum(0)
    for ridge in (0.0, 1e-3, 0.03, 1.0):
        object.__setattr__(calibration, "ridge", ridge)
        new, constant = refit(weight, rows, columns, calibration, consumer, alive)
        assert not new[~inside].any()
        after = (y - h @ new.T - bias - constant).square().sum(0)
        assert (after <= before + 1e-9).all()
        if ridge == 0:  # by another route: least squares on the samples
            for o in range(6):
                own = h[:, columns == rows[o]]
                z = torch.cat([own, torch.ones(200, 1).double()], 1)
                best = torch.linalg.lstsq(z, y[:, o : o + 1]).solution[:, 0]
                assert torch.allclose(after[o], (y[:, o] - z @ best).square().sum(), rtol=1e-6, atol=1e-9)


def test_refit_leaves_removed_inputs_out():
    torch.manual_seed(1)
    net = (
        nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten())
        .double()
        .eval()
    )
    x = torch.randn(40, 2, 8, 8).double()
    blueprint, calibration = measured(net, x)
    (consumer,) = (c for c in calibration.consumers if c.weight == "3.weight")
    alive = np.ones(blueprint.coupling.units + 1, dtype=bool)
    alive[blueprint.coupling.groups[0].labels[[1, 4, 6]]] = False
    weight = net[3].weight.detach()[:, [0, 2, 3, 5, 7]]
    rows, columns = np.array([0, 1, 0, 1, 0, 1]), np.array([1, 0, 0, 1, 0])
    new, constant = refit(weight, rows, columns, calibration, consumer, alive)
    kept = net[:3](x)[:, [0, 2, 3, 5, 7]].detach()
    conv = lambda w: nn.functional.conv2d(kept, w)  # noqa: E731
    inside = torch.from_numpy(rows[:, None] == columns)[:, :, None, None]
    target = conv(weight)
    error = lambda out: (target - out).square().sum((0, 2, 3))  # noqa: E731
    assert (error(conv(new) + constant[:, None, None]) < error(conv(weight * inside))).all()
    assert not (new * ~inside).any()


def test_calibrated_networks_are_nearer_to_the_dense_one():
    net, _ = layers_net()
    x = torch.randn(256, 3, 6, 6).double()
    batches = [((x,), {})]
    spaces = {
        None: trace(net, x[:4]).space("group"),
        "once": trace(net, x[:4]).space("group", calibration=batches, repair="once"),
        True: trace(net, x[:4]).space("group", calibration=batches),
    }
    errors = {}
    for repair, space in spaces.items():
        with torch.no_grad():
            out = space.build(space.candidate(space.counts - 1))(x)
            errors[repair] = float((out - net(x)).square().mean())
    assert errors[True] < errors["once"] < errors[None]


def test_what_is_no_dense_layer_says_why():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight
            self.c, self.scale = nn.Linear(6, 6), nn.Parameter(torch.rand(6, 1))

        def forward(self, x):
            x = torch.relu(self.b(torch.relu(self.a(x))))
            return nn.functional.linear(x, self.c.weight * self.scale, self.c.bias)

    captured = trace(Tied(), torch.randn(3, 6)).captured
    blueprint = trace(Tied(), torch.randn(3, 6))
    layers, reasons = dense_layers(captured.graph_module.graph, blueprint.coupling)
    assert layers == []
    assert set(reasons.values()) == {"shares its weights", "its weights are computed"}
    with pytest.raises(ValueError, match="nothing in this model may be grouped"):
        blueprint.space("group")


def test_a_layer_whose_weight_norm_is_folded_is_dense():
    torch.manual_seed(0)
    net = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), nn.ReLU())
    blueprint = trace(net, torch.randn(3, 6))
    layers, _ = dense_layers(blueprint.captured.graph_module.graph, blueprint.coupling)
    assert [layer.name for layer in layers] == ["0"]


def test_bad_options_are_refused():
    net, x = layers_net(torch.float32)
    blueprint = trace(net, x)
    for wrong in ((), (1, 2), (4, 2), (2.5,)):
        with pytest.raises(ValueError, match="rising whole numbers from 2"):
            blueprint.space("group", groups=wrong)
    with pytest.raises(ValueError, match="group and mask cannot be searched together"):
        blueprint.space("group", "mask")


@pytest.mark.slow
def test_digits_after_refit():
    """All 3x3 convolutions but the first in 4 groups: 27 % of the parameters."""
    from netcarve.evaluators.digits import task

    digits = task()
    images, targets = (torch.cat([b[i][0] if i == 0 else b[i] for b in digits.batches]) for i in (0, 2))

    def accuracy(model):
        with torch.no_grad():
            return float((model(images).argmax(1) == targets).double().mean())

    found = {}
    for fitted in (False, True):
        blueprint = trace(digits.model, digits.example)
        space = blueprint.space("group", calibration=digits.calibration_batches if fitted else None)
        for groups in (2, 4):
            values = {c.name: groups if ".conv" in c.name else 1 for c in space.choices}
            built = space.build(space.from_values(values))
            reestimate_batchnorm(built, digits.calibration_batches)
            found[groups, fitted] = accuracy(built)
    assert found[2, True] > 0.97
    assert found[4, True] > 0.92
    assert found[2, False] < found[2, True] - 0.1
    assert found[4, False] < found[4, True] - 0.4
