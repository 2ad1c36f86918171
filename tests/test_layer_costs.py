"""Costs by layer: their sum is the search's figure and the counted one, and each is its closed form."""

from __future__ import annotations

import pytest
import torch
from netcarve import trace
from netcarve.evaluators.inspection import layer_costs
from netcarve.evaluators.quality import count
from netcarve.model.counter import counted
from torch import nn
from torch.nn import functional

STEPS = 5


def two_layers(outputs):
    """What may be pruned in every case."""
    return nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, outputs))


class Speaker(nn.Module):
    """A recurrent encoder: what an embedding of a speaker is made with."""

    def __init__(self, make=nn.LSTM, **options):
        super().__init__()
        self.rnn = make(6, 8, batch_first=True, **options)
        self.head = two_layers(3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Shared(nn.Module):
    """One layer called twice, children called past their parent, and a weight applied as a function."""

    def __init__(self):
        super().__init__()
        self.body = nn.Module()
        self.body.twice, self.body.once = nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.body.twice(torch.relu(self.body.twice(x))) + self.body.once(x)
        return functional.linear(self.head(x.mean(1)), self.head.weight.T)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(6, 24), nn.Linear(8, 4)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return self.head(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)[:, 0])


class Frozen(nn.Module):
    """Operators that no rule follows: their work is counted all the same."""

    def __init__(self):
        super().__init__()
        self.bilinear, self.vector = nn.Bilinear(6, 6, 3), nn.Parameter(torch.randn(3))
        self.head = two_layers(1)

    def forward(self, x):
        return self.head(x).flatten() + self.bilinear(x, x).flatten(0, 1) @ self.vector


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 6), nn.Linear(6, 6)
        self.outer.weight = self.inner.weight
        self.head, self.unused = two_layers(3), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.outer(torch.relu(self.inner(x))))


CASES = {
    "lstm": (
        lambda: Speaker(num_layers=3),
        {"rnn": STEPS * (32 * 6 + 5 * 32 * 8), "head.0": 8 * 5, "head.2": 15},
    ),
    "bidirectional": (
        lambda: Speaker(nn.GRU, num_layers=2, bidirectional=True),
        {"rnn": STEPS * 2 * (24 * 6 + 24 * 8 + 24 * 16 + 24 * 8), "head.0": 16 * 5, "head.2": 15},
    ),
    "projected": (
        lambda: Speaker(proj_size=3),
        {"rnn": STEPS * (32 * 6 + 32 * 3 + 8 * 3), "head.0": 3 * 5, "head.2": 15},
    ),
    "rnn": (lambda: Speaker(nn.RNN), {"rnn": STEPS * (8 * 6 + 8 * 8), "head.0": 8 * 5, "head.2": 15}),
    "shared": (
        Shared,
        {"body.twice": 2 * STEPS * 36, "body.once": STEPS * 36, "head": 24, "": 24},
    ),
    "attention": (Attention, {"qkv": STEPS * 6 * 24, "": 2 * 2 * STEPS * STEPS * 4, "head": 8 * 4}),
    "frozen": (
        Frozen,
        {"bilinear": STEPS * (3 * 36 + 3 * 6), "": STEPS * 3, "head.0": STEPS * 30, "head.2": STEPS * 5},
    ),
    "tied": (Tied, {"inner": STEPS * 36, "outer": STEPS * 36, "head.0": STEPS * 30, "head.2": STEPS * 15}),
}


@pytest.mark.quick("projected", "shared", "tied", "rnn")
@pytest.mark.parametrize("name", CASES)
def test_the_table_adds_up_to_the_searchs_figures_and_to_those_counted(name):
    torch.manual_seed(0)
    make, expected = CASES[name]
    model, x = make(), torch.randn(2, STEPS, 6)
    with torch.no_grad():
        model(x)  # lazy layers take their size
    blueprint = trace(model.eval(), x)
    layers = layer_costs(blueprint)
    assert {layer.name: layer.macs for layer in layers if layer.macs} == expected
    space = blueprint.space("prune")
    costs = space.costs([space.baseline]).iloc[0]
    built = count(space.build(space.baseline), ((x,), {}))
    for metric in ("macs", "params"):
        assert sum(getattr(layer, metric) for layer in layers) == costs[metric] == built[metric]


def test_counting_does_not_change_what_is_computed():
    model, x = Attention().eval(), torch.randn(2, STEPS, 6)
    with torch.no_grad():
        assert torch.equal(counted(model, x)[0], model(x))


def test_inputs_that_do_not_say_how_many_samples_they_are_are_named(caplog):
    """States of an LSTM are [layers, batch, hidden]."""

    class Stateful(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(6, 8, batch_first=True)

        def forward(self, x, h, c):
            return self.lstm(x, (h, c))[0]

    state = torch.zeros(1, 4, 8)
    blueprint = trace(Stateful(), (torch.randn(4, 5, 6), state, state))
    assert "(1, 4, 8) float32, (1, 4, 8) float32; costs are of the whole call" in caplog.text
    gates = 4 * 8 * (6 + 8)  # of one step of one sample
    assert sum(layer.macs for layer in layer_costs(blueprint)) == 4 * 5 * gates
