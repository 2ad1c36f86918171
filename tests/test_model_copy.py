"""Private copies: whatever a model holds, it is traced or refused in words, and stays as it is."""

import ctypes
import functools
import pickle
import sqlite3
import threading
import weakref

import cloudpickle
import netcarve
import pytest
import torch
import torch.nn.functional as F
from netcarve import trace
from netcarve.model.model_copy import fold, plain_copy
from netcarve.model.proof import relative_difference
from netcarve.spaces.testing import zeroed_consumers
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune


class Net(nn.Module):
    """Three linear layers, and whatever a test puts between the first two."""

    def __init__(self, between=lambda net, x: x, **extra):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.between = between
        for name, value in extra.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.c(torch.relu(self.b(self.between(self, torch.relu(self.a(x))))))


class Refusing:
    def __deepcopy__(self, memo):
        raise RuntimeError("no copies")


def locked(net, x):
    with net.held:
        return x * 2


HELD = {
    "a computed tensor": lambda net: torch.relu(net.a.bias) + 1,
    "computed tensors in containers": lambda net: {"x": [net.a.weight * 2], "y": (net.b.weight + 1,)},
    "an open file": lambda net: open(__file__),  # noqa: SIM115
    "a generator": lambda net: (i for i in range(3)),
    "a random generator": lambda net: torch.Generator().manual_seed(0),
    "locks in containers": lambda net: {"a": threading.RLock(), "b": [threading.Condition()]},
    "a thread": lambda net: threading.Thread(target=print),
    "a connection": lambda net: sqlite3.connect(":memory:"),
    "a library": lambda net: ctypes.CDLL(None),
    "a module of Python": lambda net: functools,
    "what refuses copies": lambda net: Refusing(),
    "a weak reference": weakref.ref,
    "a proxy": weakref.proxy,
    "a function that refers to the model": lambda net: lambda x: net.b(x),
    "a partial of the model's method": lambda net: functools.partial(net.forward),
}


@pytest.mark.quick(
    "locks in containers", "a computed tensor", "an open file", "a weak reference", "what refuses copies"
)
@pytest.mark.parametrize("name", HELD)
def test_what_a_model_holds_does_not_stand_in_the_way(name):
    torch.manual_seed(0)
    net, x = Net(), torch.randn(4, 6)
    held = net.__dict__["held"] = HELD[name](net)
    space = trace(net, x).space(ratios=[0, 0.5])
    assert net.held is held
    with torch.no_grad():
        assert relative_difference([space.build(space.baseline)(x)], [net(x)])[0] < 1e-6
    assert sum(p.numel() for p in space.build(space.candidate([1, 1])).parameters()) == 112


def test_a_lock_is_taken_by_the_copy_alone_and_built_networks_are_the_graph():
    net, x = Net(locked, held=threading.Lock()), torch.randn(4, 6)
    with net.held:  # else waiting for it would never end
        blueprint = trace(net, x)
    space = blueprint.space(ratios=[0, 0.5])
    assert space.model.artifact == "graph"
    assert "'held' of Net holds a lock" in blueprint.artifact_reasons["prune"]
    there = cloudpickle.loads(cloudpickle.dumps(space))
    small = space.candidate([1, 1])
    assert torch.equal(there.build(small)(x), space.build(small)(x))


class Caching(Net):
    """Computes a weight once, as LeViT its attention biases."""

    def __init__(self):
        super().__init__(cache={})

    def forward(self, x):
        if "w" not in self.cache:
            self.cache["w"] = self.b.weight * 2
        self.last = F.linear(torch.relu(self.a(x)), self.cache["w"])
        return self.c(torch.relu(self.last))


@pytest.mark.parametrize("call", ["never", "with gradients", "without"])
def test_what_a_call_has_cached_is_computed_again(call):
    torch.manual_seed(0)
    net, x = Caching(), torch.randn(4, 6)
    if call != "never":
        with torch.set_grad_enabled(call == "with gradients"):
            net(x)
    kept = dict(net.cache)
    blueprint = trace(net, x)
    space = blueprint.space(ratios=[0, 0.5])
    assert space.model.artifact == "module"
    assert {g.name for g in blueprint.groups} == {"a", "b"}  # b's own weight, no constant in its place
    built = space.build(space.candidate([1, 1]))
    built(x).sum().backward()
    assert built.b.weight.grad.any()
    assert net.cache.keys() == kept.keys()
    assert all(net.cache[k] is v for k, v in kept.items())


def test_a_cache_that_no_longer_follows_from_the_weights_stays():
    """The model as given is what its stale cache makes of it."""
    torch.manual_seed(0)
    net, x = Caching(), torch.randn(4, 6)
    net(x)
    with torch.no_grad():
        net.b.weight.mul_(-1)
        expected = net(x)
        space = trace(net, x).space(ratios=[0, 0.5])
        torch.testing.assert_close(space.build(space.baseline)(x), expected)


def test_functions_that_refer_to_the_model_run_the_copy():
    """A function and a hook that close over the model: its own parameters are found, its lists untouched."""
    torch.manual_seed(0)
    net, x, seen = Net(lambda net, x: net.act(x), d=nn.Linear(12, 12)), torch.randn(4, 6), []
    net.act = lambda x: torch.relu(net.d(x))
    net.b.register_forward_hook(lambda module, args, out: seen.append(out))
    old = net.c.forward
    net.c.forward = lambda x: old(x) * 2
    blueprint = trace(net, x)
    space = blueprint.space(ratios=[0, 0.5])
    assert {g.name for g in blueprint.groups} == {"a", "d", "b"}
    assert not seen
    candidate = space.candidate([1, 1, 1])
    built = space.build(candidate)
    assert sum(p.numel() for p in built.parameters()) == 154
    with torch.no_grad():
        assert relative_difference([space.build(space.baseline)(x)], [net(x)])[0] < 1e-6


class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).T


def symmetric(layer):
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


NORMS = {
    "weight norm": parametrizations.weight_norm,
    "weight norm over inputs": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "weight norm of the whole": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "weight norm by hook": lambda layer: nn.utils.weight_norm(layer),
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm by hook": lambda layer: nn.utils.spectral_norm(layer),
    "orthogonal": parametrizations.orthogonal,
    "symmetric": symmetric,
    "mask": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.quick("weight norm-True", "spectral norm-True", "orthogonal-False", "mask-True")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("name", NORMS)
def test_computed_weights_are_folded(name, called):
    """All groups are there, built networks are exact, and the user's layers still compute their weights."""
    torch.manual_seed(0)
    x = torch.randn(5, 6)
    net = Net(lambda net, x: torch.relu(net.d(x)), d=NORMS[name](nn.Linear(12, 12)))
    net.b = NORMS[name](net.b)
    if called:
        net(x)
    net.eval()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    expected, kinds = net(x).detach(), {type(m) for m in net.modules()}
    blueprint = trace(net, x)
    space = blueprint.space(ratios=[0, 0.5])
    assert blueprint.folded.keys() == {"d.weight", "b.weight"}
    assert {g.name for g in blueprint.groups} == {"a", "d", "b"}
    assert space.model.artifact == "module"

    candidate = space.candidate([1, 1, 1])
    built = space.build(candidate)
    assert sum(p.numel() for p in built.parameters()) == 154
    with torch.no_grad():
        assert torch.equal(space.build(space.baseline)(x), expected)
        assert relative_difference([built(x)], [zeroed_consumers(net, blueprint, candidate)(x)])[0] < 1e-5
    pickle.dumps(built.state_dict())
    assert {type(m) for m in net.modules()} == kinds
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(net(x), expected)


def test_folding_leaves_alone_what_shares_the_original():
    """One tensor under weight norm in one layer and as it is in another."""
    torch.manual_seed(0)
    net, x = Net(lambda net, x: torch.relu(net.d(x)), d=nn.Linear(12, 12)), torch.randn(5, 6)
    net.d.weight = net.b.weight
    parametrizations.spectral_norm(net.d)
    net.eval()
    plain = plain_copy(net)
    with torch.no_grad():
        assert torch.equal(plain(x), net(x))
    assert fold(plain) == {}
    assert not torch.equal(plain.d.weight, plain.b.weight)


def test_a_folded_weight_trains_where_what_it_was_made_of_did():
    net = Net(d=parametrizations.weight_norm(nn.Linear(12, 12)))
    net.d.requires_grad_(False)
    parametrizations.weight_norm(net.b)
    trained = {name: p.requires_grad for name, p in plain_copy(net).named_parameters()}
    assert not trained["d.weight"]
    assert trained["b.weight"]


def test_recurrent_layers_with_weight_norm():
    torch.manual_seed(0)

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(6, 12, batch_first=True), nn.Linear(12, 3)
            parametrizations.weight_norm(self.lstm, "weight_hh_l0")

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    net, x = Last(), torch.randn(4, 5, 6)
    blueprint = trace(net, x)
    space = blueprint.space(ratios=[0, 0.5])
    assert [g.name for g in blueprint.groups] == ["lstm"]
    with torch.no_grad():
        torch.testing.assert_close(space.build(space.baseline)(x), net(x))


def test_netcarve_is_told_what_was_folded():
    from netcarve.evaluators.inspection import inspection

    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(10, 4)
    task = netcarve.Task(net, x[:2], (x, torch.randint(3, (10,))))
    assert inspection(task, trace(net, x[:2]))["folded"] == {"0.weight": "weight norm"}
