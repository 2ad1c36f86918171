"""Rewrites: chains and parallel branches as one convolution, without loss, costed as they are built."""

from itertools import product

import numpy as np
import onnxruntime
import pytest
import torch
from netcarve import trace
from netcarve.model.linear_maps import LinearMap, compose, mean, summed
from netcarve.model.operators.counting import count
from netcarve.spaces.testing import counted_costs
from torch import nn
from torch.nn import functional

BIAS = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=torch.float64)


def _map(rng, outputs, inputs, kernel, stride=1, padding=0, bias=True):
    weight = torch.randn(outputs, inputs, kernel, kernel, dtype=torch.float64, generator=rng)
    return LinearMap(weight, BIAS[:outputs] if bias else None, (stride,) * 2, (padding,) * 2)


def _run(m, x):
    weight = m.dense(x.shape[1]).weight
    return functional.conv2d(x, weight, m.bias, m.stride, m.padding)


def _close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def x(rng):
    return torch.randn(2, 3, 13, 12, dtype=torch.float64, generator=rng)


def test_a_convolution_and_an_average_pool_are_one_convolution(rng, x):
    for k, s, p, pool, step in product((1, 2, 3, 5), (1, 2, 3), (0, 1, 2), (2, 3), (1, 2, 3)):
        first = _map(rng, 4, 3, k, s, p)
        found = compose(first, mean((pool, pool), (step, step), (0, 0)))
        expected = functional.avg_pool2d(_run(first, x), pool, step)
        assert found.kernel == (k + (pool - 1) * s,) * 2
        assert found.stride == (s * step,) * 2
        assert found.size(x.shape[2:]) == tuple(expected.shape[2:])
        _close(_run(found, x), expected)


def test_two_convolutions_are_one(rng, x):
    for k, s, p, after, step in product((1, 2, 3), (1, 2), (0, 1), (1, 2, 3), (1, 2)):
        first, then = _map(rng, 4, 3, k, s, p), _map(rng, 2, 4, after, step)
        _close(_run(compose(first, then), x), _run(then, _run(first, x)))


def test_a_pointwise_convolution_without_bias_takes_what_is_padded_behind_it(rng, x):
    for s, after, p in product((1, 2), (2, 3), (1, 2)):
        first, then = _map(rng, 4, 3, 1, s, bias=False), _map(rng, 2, 4, after, 1, p)
        _close(_run(compose(first, then), x), _run(then, _run(first, x)))
    with pytest.raises(ValueError, match="padded between"):
        compose(_map(rng, 4, 3, 1), _map(rng, 2, 4, 3, padding=1))


def test_parallel_branches_are_one_convolution(rng, x):
    """1x1, 3x3 and (average pool, then 1x1), and the input itself (ACNet, RepVGG)."""
    pool, after = mean((3, 3), (1, 1), (1, 1)), _map(rng, 3, 3, 1)
    parts = [
        _map(rng, 3, 3, 1),
        _map(rng, 3, 3, 3, padding=1),
        compose(pool, after),
        mean((1, 1), (1, 1), (0, 0)),
    ]
    found = parts[0]
    for part in parts[1:]:
        found = summed(found, part)
    expected = _run(parts[0], x) + _run(parts[1], x) + x
    expected += _run(after, functional.avg_pool2d(x, 3, 1, 1))
    assert found.kernel == (3, 3)
    _close(_run(found, x), expected)


def _norm(channels):
    norm = nn.BatchNorm2d(channels)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


class Rewritable(nn.Module):
    """A RepVGG block, a convolution and its pool, a 1x1 and its pool, and two 1x1 around a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), _norm(8))
        self.narrow = nn.Sequential(nn.Conv2d(8, 8, 1), _norm(8))
        self.norm = _norm(8)
        self.down = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.AvgPool2d(2))
        self.transition = nn.Sequential(nn.Conv2d(12, 16, 1), nn.AvgPool2d(2, ceil_mode=True))
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1))
        self.last = nn.Sequential(nn.Conv2d(16, 24, 1), nn.Conv2d(24, 6, 1), _norm(6))
        self.out = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu_(self.wide(x) + self.narrow(x) + self.norm(x))
        x = torch.relu(self.transition(torch.relu(self.down(x))))
        x = torch.relu(x + self.block(x))
        return self.out(torch.relu(self.last(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    net, x = Rewritable().eval(), torch.randn(4, 3, 16, 16)
    blueprint = trace(net, x)
    return net, x, blueprint, blueprint.space("rewrite", "prune", "drop", ratios=3)


def _rewritten(space, rest=()):
    """The candidate of all last rewrites, other choices as in ``rest``."""
    rest = rest or [0] * len(space)
    indices = [
        len(c.options) - 1 if c.name.startswith("rewrite:") else i
        for c, i in zip(space.choices, rest, strict=True)
    ]
    return space.candidate(indices)


def test_what_may_be_rewritten_is_found(made):
    space = made[-1]
    assert {c.name: c.options for c in space.choices if c.name.startswith("rewrite:")} == {
        "rewrite:wide.0": ("keep", "merge"),
        "rewrite:down.0": ("keep", "merge"),
        "rewrite:transition.0": ("keep", "pool-first"),
        "rewrite:last.0": ("keep", "merge"),
    }


def test_rewritten_networks_give_the_same(made):
    x = made[1]
    torch.manual_seed(0)
    net = Rewritable().eval().double()
    space = trace(net, x.double()).space("rewrite", "prune", "drop", ratios=3)
    for candidate in [space.baseline, *space.sample(np.random.default_rng(0), 6)]:
        kept = [
            0 if c.name.startswith("rewrite:") else i
            for c, i in zip(space.choices, candidate.indices, strict=True)
        ]
        with torch.no_grad():
            plain = space.build(space.candidate(kept))(x.double())
            _close(space.build(_rewritten(space, kept))(x.double()), plain)
            _close(space.build(candidate)(x.double()), plain)


def test_costs_are_those_of_a_new_trace_of_the_built_network(made):
    _, x, _, space = made
    for candidate in [_rewritten(space), *space.sample(np.random.default_rng(1), 10)]:
        network = space.build(candidate)
        traced, run = counted_costs(network, x), count(network, x[:1])
        costs = {name: float(v[0]) for name, v in space.cost_arrays([candidate]).items()}
        for name in ("macs", "params", "size_mb", "activation_mb", "memory_mb"):
            assert costs[name] == pytest.approx(traced[name], rel=1e-9), (name, candidate.values)
        assert costs["macs"] == pytest.approx(run.macs, rel=1e-9)


def test_a_rewritten_network_has_fewer_calls_and_is_exported_alike(made, tmp_path):
    _, x, _, space = made
    calls = []
    for candidate in (space.candidate([0] * (len(space) - 1) + [1]), _rewritten(space)):
        network = space.build(candidate)
        calls.append(len(list(torch.export.export(network, (x,)).graph.nodes)))
    assert calls[1] < calls[0] - 10
    torch.onnx.export(network, (x,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (given,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    loaded = torch.export.export(network, (x,)).module()
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), network(x))
        np.testing.assert_allclose(given, network(x).numpy(), rtol=1e-4, atol=1e-5)


def test_reasons_are_given_before_work(made):
    with pytest.raises(ValueError, match="rewrite and operators cannot be searched together"):
        made[2].space("rewrite", "operators")

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 9, 1), nn.Conv2d(9, 2, 3, padding=1), nn.Conv2d(2, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.b(self.a(x)))

    blueprint = trace(Padded().eval(), torch.randn(2, 3, 8, 8))
    space = blueprint.space("prune", "rewrite")
    assert not any(c.name.startswith("rewrite:") for c in space.choices)
    assert "padded between" in space.side.left_out["rewrite:a"]


def test_what_only_looks_linear_is_left_alone():
    """A norm by the batch's own statistics, and one channel that is added to all."""

    class Alike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Conv2d(1, 9, 3), nn.BatchNorm2d(9), nn.Conv2d(9, 2, 1)
            self.c, self.d = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            norm = self.norm
            y = nn.functional.batch_norm(
                self.a(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, training=True
            )
            z = torch.relu(self.c(x) + self.d(x) + x)
            return torch.relu(self.b(y)).mean((2, 3)) + z.mean((2, 3))[:, :2]

    net, x = Alike().eval(), torch.randn(4, 1, 8, 8)
    space = trace(net, x).space("prune", "rewrite")
    assert [c.name for c in space.choices if c.name.startswith("rewrite:")] == ["rewrite:c"]  # c and d alone
    assert "rewrite:a" in space.side.left_out
    with torch.no_grad():
        torch.testing.assert_close(space.build(_rewritten(space))(x), net(x))
