"""Importance criteria that run the network, and clusters, against values computed by hand."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from netcarve import trace
from netcarve.model.importance.activations import ActivationMean, ZeroFraction
from netcarve.model.importance.cluster import Cluster
from netcarve.model.importance.gradients import Fisher, Gradient, OwnOutputs, Taylor
from netcarve.model.importance.measured import Evidence
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

NAMES = ("taylor", "gradient", "fisher", "activation_mean", "zero_fraction", "cluster", "reconstruction")


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).double()


def labelled(n=10, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return [((x,), {}, torch.randint(3, (n,), generator=generator))]


def scores(net, measure, calibration=()):
    """Scores by group name."""
    example = calibration[0][0] if calibration else measure.batches[0][0]
    blueprint = trace(net, example)
    captured = blueprint.captured
    return measure.measure(Evidence(captured, blueprint.coupling, blueprint.groups, calibration)).by_group


# -- gradients ---------------------------------------------------------------------------------------------


def test_taylor_is_the_change_of_the_loss_to_first_order():
    net, batches = mlp(), labelled()
    got = scores(net, Taylor(batches=batches, loss=cross_entropy))["0"]
    (x,), _, y = batches[0]
    step = 1e-5
    with torch.no_grad():
        before = cross_entropy(net(x), y, reduction="none")
        for unit in range(6):
            weaker = copy.deepcopy(net)
            weaker[1].weight[:, unit] *= 1 - step  # what reads the unit
            change = (cross_entropy(weaker(x), y, reduction="none") - before) / step
            assert got[unit] == pytest.approx(float(change.square().mean()), rel=1e-3)


def test_taylor_of_a_loss_that_is_linear_is_the_change_when_the_unit_goes():
    net, batches = mlp(), labelled()
    got = scores(net, Taylor(batches=batches, loss=lambda z, y: z.sum()))["0"]
    (x,), _, _ = batches[0]
    gone = (net[0](x) * net[1].weight.sum(0)).detach()  # [samples, units]
    np.testing.assert_allclose(got, gone.square().mean(0).numpy(), rtol=1e-10)


def test_taylor_sums_all_layers_that_read_a_unit_before_the_square():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.make, self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)
            self.b.load_state_dict({k: -v for k, v in self.a.state_dict().items()})
            self.double()

        def forward(self, x):
            h = torch.relu(self.make(x))
            return self.a(h) + self.b(h)

    got = scores(Both(), Taylor(batches=labelled(), loss=lambda z, y: z.square().sum() + z.sum()))["make"]
    np.testing.assert_allclose(got, 0, atol=1e-30)


def test_fisher_and_gradient_by_hand():
    net, batches = mlp(), labelled()
    (x,), _, y = batches[0]
    square, product = torch.zeros(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    for i in range(len(x)):
        net.zero_grad()
        cross_entropy(net(x[i : i + 1]), y[i : i + 1]).backward()
        square += (net[0].weight.grad ** 2 * net[0].weight.detach() ** 2).sum(1) / len(x)
        product += (net[0].weight.grad * net[0].weight.detach()).abs().sum(1) / len(x)
    data = {"batches": batches, "loss": cross_entropy}
    np.testing.assert_allclose(scores(net, Fisher(**data))["0"], square / 2, rtol=1e-10)
    np.testing.assert_allclose(scores(net, Gradient(**data))["0"], product, rtol=1e-10)


def test_own_outputs_measure_the_squared_change_of_the_outputs():
    net = mlp()
    calibration = [((torch.randn(2000, 4, dtype=torch.float64),), {})]
    got = scores(net, Taylor(samples=2000), calibration)["0"]
    h = net[0](calibration[0][0][0]).detach()
    change = (h**2).mean(0) * net[1].weight.detach().square().sum(0)  # ||column * activation||^2
    np.testing.assert_allclose(got, change, rtol=0.3)
    np.testing.assert_array_equal(np.argsort(got)[[0, -1]], np.argsort(change.numpy())[[0, -1]])


def test_own_outputs_that_are_sure_still_rank():
    net = mlp()
    with torch.no_grad():
        net[1].weight *= 1e3  # a softmax of these is exactly one-hot: cross-entropy gives zero gradients
    x = labelled()[0][0][0]
    fitted = [((x,), {}, net(x).argmax(1))]
    assert scores(net, Taylor(batches=fitted, loss=cross_entropy))["0"].max() < 1e-2
    assert scores(net, Taylor(), [((x,), {})])["0"].min() > 1


def test_frozen_and_shared_weights_have_gradients_and_the_model_stays_as_it_was():
    net = mlp().requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    got = scores(net, Taylor(batches=labelled(), loss=cross_entropy))["0"]
    assert (got > 0).all()
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_samples_are_spread_over_the_batches_and_seen_one_by_one():
    seen = []

    def loss(z, y):
        seen.append((len(z), int(y)))
        return z.sum()

    batches = [(a, k, torch.arange(10) + 10 * i) for i in range(3) for a, k, _ in labelled()]
    scores(mlp(), Taylor(batches=batches, loss=loss, samples=4))
    assert seen == [(1, 0), (1, 10), (1, 19), (1, 29)]


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="give both batches"):
        Taylor(loss=cross_entropy)
    with pytest.raises(ValueError, match="at least one batch"):
        Fisher(batches=[], loss=cross_entropy)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        Gradient(samples=0)
    with pytest.raises(ValueError, match="must be one finite number"):
        scores(mlp(), Taylor(batches=labelled(), loss=lambda z, y: z))
    with pytest.raises(ValueError, match="does not depend on the network"):
        scores(mlp(), Taylor(batches=labelled(), loss=lambda z, y: torch.ones(())))
    blueprint = trace(mlp(), labelled()[0][0])
    for name in set(NAMES) - {"cluster"}:
        with pytest.raises(ValueError, match=f"importance '{name}' needs calibration data"):
            blueprint.space(importance=name)
    with pytest.raises(TypeError, match="got int"):
        blueprint.space(importance=3)


# -- activations -------------------------------------------------------------------------------------------


class HandMade(nn.Module):
    """Unit k is relu(x_k); read by two layers, one of them after a scale."""

    def __init__(self, activation=torch.relu):
        super().__init__()
        self.make, self.one, self.two = nn.Linear(3, 3, bias=False), nn.Linear(3, 2), nn.Linear(3, 2)
        self.activation = activation
        with torch.no_grad():
            self.make.weight.copy_(torch.eye(3))

    def forward(self, x):
        h = self.activation(self.make(x))
        return self.one(h) + self.two(10 * h)


def test_activation_mean_and_zero_fraction_of_a_hand_made_network():
    x = torch.tensor([[1.0, -1, -1], [3, 6, -1], [-1, 2, 1], [0, -4, 3]])
    inputs = [((x[:2],), {}), ((x[2:],), {})]
    mean = np.array([4, 8, 4]) / 4
    np.testing.assert_allclose(scores(HandMade(), ActivationMean(), inputs)["make"], mean / mean.mean())
    np.testing.assert_allclose(scores(HandMade(), ZeroFraction(), inputs)["make"], [0.5, 0.5, 0.5])
    x[1, 1] = -6
    np.testing.assert_allclose(scores(HandMade(), ZeroFraction(), inputs)["make"], [0.5, 0.25, 0.5])


def test_activations_that_are_never_zero_are_scored_by_their_mean():
    inputs = [((torch.randn(16, 3),), {})]
    net = HandMade(torch.sigmoid)
    zero, mean = (scores(net, c, inputs)["make"] for c in (ZeroFraction(), ActivationMean()))
    np.testing.assert_array_equal(zero, mean)
    assert len(set(zero)) == 3


# -- clusters ----------------------------------------------------------------------------------------------


def duplicated():
    """Units 0 to 3 twice, the copies shuffled: unit k and unit k + 4."""
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    torch.manual_seed(0)
    with torch.no_grad():
        net[0].weight[:4] = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0][:4]
        net[0].weight[4:] = net[0].weight[:4]
        net[0].bias[4:] = net[0].bias[:4]
        net[0].weight *= torch.tensor([3.0, 1, 4, 2]).repeat(2)[:, None]
    return net


def test_duplicates_end_in_one_cluster_and_go_together():
    net = duplicated()
    group = trace(net, torch.randn(2, 5, dtype=torch.float64)).groups[0]
    parameters = dict(net.named_parameters())
    pairs = Cluster(size=2)
    labels = pairs.clusters(group, parameters)
    assert len(set(labels)) == 4
    np.testing.assert_array_equal(labels[:4], labels[4:])
    gone = np.argsort(pairs(group, parameters))
    totals = parameters["0.weight"].detach().abs().sum(1).numpy()[:4]
    assert [set(pair % 4) for pair in gone.reshape(4, 2)] == [{k} for k in np.argsort(totals)]
    runs = np.argsort(Cluster(by="adjacent", size=2)(group, parameters)).reshape(4, 2)
    assert all(sorted(run) == [min(run), min(run) + 1] and min(run) % 2 == 0 for run in runs.tolist())


def test_one_of_each_cluster_kept_takes_over_the_outgoing_weights_of_its_duplicates():
    net = duplicated()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 5, generator=generator, dtype=torch.float64)
    blueprint = trace(net, x)
    data = blueprint.calibrate([((x,), {})], repair="once", ridge=0)
    space = blueprint.space(ratios=[0, 0.5], calibration=data, importance=Cluster(size=2, keep_one=True))
    candidate = space.candidate([1])
    assert sorted(blueprint.kept(candidate)["0"] % 4) == [0, 1, 2, 3]
    assert torch.allclose(space.build(candidate)(x), net(x), rtol=1e-8, atol=1e-8)


def test_mistaken_clusters():
    with pytest.raises(ValueError, match="'similar' or 'adjacent'"):
        Cluster(by="colour")
    with pytest.raises(ValueError, match="at least 2 units"):
        Cluster(size=1)


# -- every criterion on whole networks ---------------------------------------------------------------------


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.Conv2d(16, 12, 1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    ), (2, 3, 9, 9)


def encoder():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), (2, 5, 16)


def gru():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.head = nn.GRU(6, 10, batch_first=True), nn.Linear(10, 3)

        def forward(self, x):
            return {"logits": self.head(self.gru(x)[0][:, -1])}

    return Classifier(), (2, 4, 6)


@pytest.mark.slow
@pytest.mark.parametrize("make", [cnn, encoder, gru])
def test_every_criterion_gives_nested_orders_on_whole_networks(make):
    torch.manual_seed(0)
    net, shape = make()
    batches = [((torch.randn(8, *shape[1:]),), {}) for _ in range(2)]
    blueprint = trace(net, torch.randn(shape))
    data = blueprint.calibrate(batches, repair=False)
    orders = {}
    for name in (*NAMES, "l1"):
        space = blueprint.space(ratios=4, importance=name, calibration=data)
        ladder = [
            blueprint.kept(space.candidate([min(i, len(c) - 1) for c in space.choices])) for i in range(4)
        ]
        for more, less in itertools.pairwise(ladder):
            assert all(set(less[g]) <= set(more[g]) for g in more)
        order = {c.about.group: c.about.order for c in space.choices}
        assert all(sorted(order[g.name]) == list(range(g.size)) for g in blueprint.groups)
        orders[name] = np.concatenate([order[g.name] for g in blueprint.groups]).tolist()
        space.build(space.candidate([1] * len(space)))(torch.randn(shape))
    assert len({tuple(o) for o in orders.values()}) >= 5  # they are not all one


def test_names_follow_the_calibration_and_copies_travel_without_its_batches():
    net = mlp()
    x, other = (
        torch.randn(16, 4, dtype=torch.float64) * torch.tensor(s) for s in ([9, 1, 1, 1], [1, 1, 1, 9])
    )
    blueprint = trace(net, x)
    first, second = (
        blueprint.space(importance="activation_mean", calibration=[((data,), {})], repair=False)
        for data in (x, other)
    )
    assert first.choices[0].about.order.tolist() != second.choices[0].about.order.tolist()
    copied = pickle.loads(pickle.dumps(first))
    candidate = first.candidate([3])
    assert torch.equal(copied.build(candidate)(x), first.build(candidate)(x))
    assert not copied.model.mending.calibrated.batches


def test_own_outputs_work_with_any_structure_and_leave_integers_alone():
    z = torch.ones(2, requires_grad=True)
    loss = OwnOutputs()({"logits": z, "count": torch.tensor(3), "more": [z * 2]}, None)
    assert loss.requires_grad
    assert mse_loss(OwnOutputs()(z, None), OwnOutputs()(z, None)) == 0  # the same seed, the same noise
