"""Calls of functional graphs whose names or sizes mislead."""

import pytest
import torch
from netcarve.evaluators.profiling import calls_of
from netcarve.model.capture import capture
from netcarve.model.stages import find_cuts, functionalise, run_stages, split
from torch import nn


class Odd(nn.Module):
    """A transposed weight, and rows that the data choose."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        y = x @ self.weight.t()
        return torch.tanh(y), torch.sigmoid(y[y[:, 0].nonzero()[:, 0]])


def test_what_is_made_of_weights_alone_moves_whole_and_data_decided_rows_count_once():
    calls = {c.operator: c for c in calls_of(functionalise(capture(Odd(), torch.randn(3, 4))))}
    assert calls["matmul 1"].moved == 4 * (4 + 5 * 4 + 5)
    assert calls["sigmoid"].moved == pytest.approx(2 * 4 * 5 / 3)


def test_an_input_with_the_name_of_an_operator():
    class Net(nn.Module):
        def forward(self, getitem, lstm, dropout):
            return torch.tanh(getitem + lstm).relu() * dropout

    inputs = tuple(torch.randn(2, 4) for _ in range(3))
    network = functionalise(capture(Net(), inputs))
    for stages in (split(network, [c]) for c in find_cuts(network)):
        assert torch.equal(run_stages(stages, *inputs), Net()(*inputs))


@pytest.mark.slow
def test_a_stage_may_be_cut_again():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.right = nn.Linear(4, 4)

        def forward(self, x):
            left, right = torch.tanh(x).chunk(2, 1)
            return torch.tanh(self.right(right)) * left

    x = torch.randn(2, 8)
    network = functionalise(capture(Net().eval(), x))
    cut = next(c for c in find_cuts(network) if c.after == "linear")
    first, second = split(network, [cut])
    received = first.module(x)
    again = functionalise(capture(second.module, received))
    for stages in (split(again, [c]) for c in find_cuts(again)):
        assert torch.equal(run_stages(stages, *received), second.module(*received))
