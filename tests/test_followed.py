"""Operators beyond the common layers: followed exactly, or left alone with no more than themselves."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from netcarve import trace
from netcarve.model.proof import relative_difference
from netcarve.spaces.testing import counted_costs, zeroed_consumers
from torch import nn


class Steps(nn.Module):
    """A recurrent cell, step by step, between two linear layers; its state may be an input."""

    def __init__(self, cell):
        super().__init__()
        self.e, self.cell, self.f, self.h = nn.Linear(6, 8), cell(8, 12), nn.Linear(12, 10), nn.Linear(10, 3)

    def forward(self, x, *state):
        state = (state if len(state) > 1 else state[0]) if state else None
        for t in range(x.shape[1]):
            state = self.cell(torch.relu(self.e(x[:, t])), state)
        return self.h(torch.relu(self.f(state[0] if isinstance(state, tuple) else state)))


class Layer(nn.Module):
    """A recurrent layer; the same."""

    def __init__(self, layer):
        super().__init__()
        self.e, self.cell = nn.Linear(6, 8), layer(8, 12, batch_first=True)
        self.f, self.h = nn.Linear(12, 10), nn.Linear(10, 3)

    def forward(self, x, *state):
        state = tuple(s.unsqueeze(0) for s in state)
        state = (state if len(state) > 1 else state[0]) if state else None
        return self.h(torch.relu(self.f(self.cell(torch.relu(self.e(x)), state)[0][:, -1])))


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 10), nn.Linear(6, 12)
        self.both, self.h = nn.Bilinear(10, 12, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.h(torch.relu(self.both(torch.relu(self.a(x)), torch.relu(self.b(x)))))


class ByVector(nn.Module):
    """Products with vectors, from the right and from the left."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.h = nn.Linear(6, 8), nn.Linear(6, 10), nn.Linear(10, 3)
        self.right, self.left = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(10))

    def forward(self, x):
        y = torch.relu(self.b(x))
        return self.h(y) + (torch.relu(self.a(x)) @ self.right)[:, None] + (self.left @ y.mT)[:, None]


class GlobalFilter(nn.Module):
    """Multiplied in the frequency domain, as in GFNet."""

    def __init__(self):
        super().__init__()
        self.e, self.f, self.h = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 1), nn.Linear(12, 3)
        self.w = nn.Parameter(torch.randn(8, 5, 16, 2) * 0.1)

    def forward(self, x):
        x = self.e(x).permute(0, 2, 3, 1)
        y = torch.fft.rfft2(x, dim=(1, 2), norm="ortho") * torch.view_as_complex(self.w)
        y = torch.fft.irfft2(y, s=x.shape[1:3], dim=(1, 2), norm="ortho")
        return self.h(torch.relu(self.f((x + y).permute(0, 3, 1, 2))).mean((2, 3)))


class PerSample(nn.Module):
    """A kernel for each sample, mixed from experts, in one grouped convolution (CondConv)."""

    def __init__(self):
        super().__init__()
        self.stem, self.r = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.w = nn.Parameter(torch.randn(4, 12, 8, 3, 3) * 0.1)
        self.f, self.h = nn.Conv2d(12, 10, 1), nn.Linear(10, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        b, c, *size = x.shape
        mix = torch.sigmoid(self.r(x.mean((2, 3))))
        kernels = (mix @ self.w.flatten(1)).view(b * 12, 8, 3, 3)
        y = F.conv2d(x.reshape(1, b * c, *size), kernels, padding=1, groups=b).view(b, 12, *size)
        return self.h(torch.relu(self.f(torch.relu(y))).mean((2, 3)))


SEQUENCE, IMAGE = (4, 5, 6), (2, 3, 8, 8)
FOLLOWED = {
    **{c.__name__: (lambda c=c: Steps(c), SEQUENCE, {"e", "cell", "f"}) for c in (nn.LSTMCell, nn.GRUCell)},
    "RNNCell": (lambda: Steps(nn.RNNCell), SEQUENCE, {"e", "cell", "f"}),
    "RNN": (lambda: Layer(nn.RNN), SEQUENCE, {"e", "cell", "f"}),
    "Bilinear": (Bilinear, (4, 6), {"a", "b", "both"}),
    "products with vectors": (ByVector, (4, 6), {"a", "b"}),
    "a filter of frequencies": (GlobalFilter, IMAGE, {"e", "f"}),
    "kernels per sample": (PerSample, IMAGE, {"r", "w", "f"}),  # two axes of w are laid in one, and one goes
}


@pytest.mark.quick("RNN", "GRUCell", "a filter of frequencies")
@pytest.mark.parametrize("name", FOLLOWED)
def test_followed_and_equal_to_the_masked_original(name):
    torch.manual_seed(0)
    make, shape, groups = FOLLOWED[name]
    net = make()
    blueprint = trace(net, torch.randn(shape))
    space = blueprint.space(ratios=[0, 0.5])
    assert not blueprint.prove().left_out
    assert {g.name for g in blueprint.groups} == groups
    states = {g.name for g in blueprint.groups if g.kind == "recurrent state"}
    assert states == groups & {"cell"}
    assert not any("heads" in g.kind for g in blueprint.groups)
    for candidate in (space.candidate([1] * len(space)), *space.sample(np.random.default_rng(0), 2)):
        built, masked = space.build(candidate), zeroed_consumers(net, blueprint, candidate)
        x = torch.randn(shape[0] + 1, *shape[1:])
        with torch.no_grad():
            assert relative_difference([built(x)], [masked(x)])[0] < 1e-5
        costs, found = space.costs([candidate]).iloc[0], counted_costs(built, x)
        assert costs["macs"] == pytest.approx(found["macs"])
        assert costs["params"] == found["params"]
    assert costs["params"] <= sum(p.numel() for p in net.parameters())


@pytest.mark.quick("RNN", "GRU")
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, nn.LSTM, nn.GRU, nn.RNN])
def test_a_state_that_is_an_input_fixes_its_own_units_alone(kind):
    net = (Steps if issubclass(kind, nn.RNNCellBase) else Layer)(kind)
    states = [torch.randn(4, 12) for _ in range(2 if "LSTM" in kind.__name__ else 1)]
    x = (torch.randn(4, 5, 6), *states)
    blueprint = trace(net, x)
    space = blueprint.space(ratios=[0, 0.5])
    assert {g.name for g in blueprint.groups} == {"e", "f"}
    assert blueprint.left_out.keys() == {"cell", "h"}
    with torch.no_grad():
        assert space.build(space.candidate([1, 1]))(*x).shape == (4, 3)


class Fourier(nn.Module):
    """Tokens mixed by a Fourier transform, over channels too, as in FNet."""

    def __init__(self, dims):
        super().__init__()
        self.e, self.n, self.dims = nn.Linear(6, 16), nn.LayerNorm(16), dims
        self.f1, self.f2, self.h = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.e(x)
        x = self.n(x + torch.fft.fftn(x, dim=self.dims).real)
        return self.h((x + self.f2(F.gelu(self.f1(x)))).mean(1))


@pytest.mark.parametrize(("dims", "groups"), [((1,), {"e", "f1"}), ((1, 2), {"f1"})])
def test_a_fourier_transform_fixes_what_it_runs_along(dims, groups):
    torch.manual_seed(0)
    blueprint = trace(Fourier(dims), torch.randn(2, 5, 6))
    assert not blueprint.prove().left_out
    assert {g.name for g in blueprint.groups} == groups
    assert ("e" in groups) != ("runs along it" in blueprint.left_out.get("e", ""))


class ECA(nn.Module):
    """Channel attention by a convolution along the channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)
        self.k, self.c, self.h = nn.Conv1d(1, 1, 3, padding=1), nn.Conv2d(12, 8, 3), nn.Linear(8, 3)

    def forward(self, x):
        y = self.b(torch.relu(self.a(x)))
        y = y * torch.sigmoid(self.k(y.mean((2, 3)).unsqueeze(1))).squeeze(1)[:, :, None, None]
        return self.h(torch.relu(self.c(torch.relu(y))).mean((2, 3)))


def test_a_convolution_along_channels_fixes_these_alone():
    blueprint = trace(ECA(), torch.randn(IMAGE))
    assert {g.name for g in blueprint.groups} == {"a", "c"}
    assert "the kernel of conv1d moves" in blueprint.left_out["b"]
    assert blueprint.left_out["k"] == "makes one channel alone"
