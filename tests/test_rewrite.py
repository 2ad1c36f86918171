"""Edits that change built networks: order, artifact, costs, travel to workers, data for heads."""

import pickle
from dataclasses import dataclass

import netcarve
import numpy as np
import pytest
import torch
from netcarve.evaluators.pool import Job
from netcarve.model.captured_module import CapturedModule
from netcarve.spaces import Choice, Space
from netcarve.spaces.builder import Builder
from netcarve.spaces.kinds.base import Found, Kind
from torch import nn

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU()]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(6 * 36, 10)).eval()


@dataclass(frozen=True, kw_only=True)
class Scale(Kind):
    """Multiplies the first convolution's output by the option; parameters: one more."""

    done = "scaled"
    rewrites = True

    def find(self, facts, making):
        return Found([Choice("scale", (1, 3, 5), self)])

    def edit(self, network, taken, context):
        ((choice, index),) = taken
        graph = context.facts.surgeon.module.graph
        conv = next(n for n in graph.nodes if "conv" in n.name)
        node = next(n for n in network.graph.nodes if n.name == conv.name)
        network.register_parameter("scale", nn.Parameter(torch.tensor(float(choice.options[index]))))
        with network.graph.inserting_after(node):
            factor = network.graph.get_attr("scale")
        with network.graph.inserting_after(factor):
            product = network.graph.call_function(torch.ops.aten.mul.Tensor, (node, factor))
        node.replace_all_uses_with(product, delete_user_cb=lambda user: user is not product)

    def costs(self, many, costs, tables):
        ((choice, column),) = many
        conv = next(name for name, _ in tables.coupling.macs)
        options = np.array(choice.options, dtype=np.float64)[column]
        costs["macs"] += np.where(column > 0, tables.macs(conv) * options, 0)
        costs["params"] += column > 0


@dataclass(frozen=True, kw_only=True)
class Double(Kind):
    """Wraps: twice the output; ``refit`` notes what it was given."""

    done = "doubled"
    rewrites = True

    def find(self, facts, making):
        return Found([Choice("double", (False, True), self)])

    def wrap(self, network, taken, context):
        return Doubled(network) if any(index for _, index in taken) else network

    def costs(self, many, costs, tables):
        ((_, column),) = many
        costs["macs"][column > 0] *= 2


class Doubled(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network, self.given = network, 0

    def forward(self, x):
        return 2 * self.network(x)

    def refit(self, batches):
        self.given += len(batches)


@pytest.fixture(scope="module")
def blueprint():
    return netcarve.trace(net(), X)


@pytest.fixture(scope="module")
def space(blueprint):
    pruned = blueprint.space(ratios=2)
    extra = [choice for kind in (Scale(), Double()) for choice in kind.find(blueprint, None).choices]
    return pruned + Space(extra, model=Builder(blueprint, graph=True))


def candidate(space, prune=0, scale=0, double=0):
    return space.candidate([prune] * (len(space) - 2) + [scale, double])


def test_the_first_option_changes_nothing(space):
    made = space.build(candidate(space, prune=1))
    assert type(made) is nn.Sequential
    assert space.model.decoder.keys(candidate(space, prune=1)) == []


@pytest.mark.parametrize("prune", [0, 1])
def test_graph_and_wrap_apply_to_the_pruned_network(space, prune):
    plain = space.build(candidate(space, prune))
    made = space.build(candidate(space, prune, scale=2, double=1))
    with torch.no_grad():
        plain[0].weight *= 5
        plain[0].bias *= 5
        expected = 2 * plain(X)
    assert torch.allclose(made(X), expected, atol=1e-4)
    assert isinstance(made.network, CapturedModule)
    names = set(dict(made.network.named_parameters()))
    assert names == {n for n, _ in plain.named_parameters()} | {"scale"}
    assert set(made.network.state_dict()) >= {"1.num_batches_tracked"}  # state that nothing reads stays


def test_a_rewritten_network_trains(space):
    made = space.build(candidate(space, 1, scale=1)).train()
    before = made.state_dict()["1.running_mean"].clone()
    made(X).sum().backward()
    assert made.scale.grad is not None
    assert not torch.equal(before, made.state_dict()["1.running_mean"])


def test_costs_are_corrected_where_the_option_is_taken(space):
    picks = [candidate(space, p, s, d) for p, s, d in [(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 2, 1), (0, 2, 0)]]
    costs = space.cost_arrays(picks)
    first = np.array([8 * 27 * 64, 4 * 27 * 64])  # MACs of the first convolution, whole and halved
    whole, half = costs["macs"][:2]
    expected = [half + 3 * first[1], 2 * (half + 5 * first[1]), whole + 5 * first[0]]
    assert costs["macs"][2:].tolist() == expected
    assert (costs["params"] - costs["params"][[0, 1, 1, 1, 0]]).tolist() == [0, 0, 1, 1, 1]
    for one, pick in enumerate(picks):
        alone = space.cost_arrays([pick])
        assert {k: v[0] for k, v in alone.items()} == {k: v[one] for k, v in costs.items()}


def test_rewritten_candidates_are_built_and_not_switched(space):
    elastic = space.model.elastic(space.choices)
    assert elastic.switches(candidate(space, 1))
    assert not elastic.switches(candidate(space, 1, scale=1))
    with pytest.raises(ValueError, match="build it instead"):
        elastic.switch(candidate(space, 1, double=1))


def test_a_copy_that_travels_builds_the_same(space):
    copy = pickle.loads(pickle.dumps(space))
    pick = candidate(space, 1, scale=2, double=1)
    assert torch.equal(copy.build(pick)(X), space.build(pick)(X))


def test_heads_get_the_calibration_batches(space):
    labels = torch.arange(4)
    task = netcarve.Task(net(), X, [(X, labels)], calibration=[(X,), (X,)])
    given = []
    job = Job(task, space, [lambda task, model, candidate: given.append(model.given) or {"n": 1.0}])
    assert job.evaluate(0, candidate(space, 1, double=1)).error is None
    assert given == [len(task.calibration_batches)]
    assert given[0] > 0
