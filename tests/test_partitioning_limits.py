"""Limits by closed form, and the MinCutPool objective at partitions whose loss is known."""

import math

import numpy as np
import pytest
from netcarve.deployment.partitioners import CostedDevice, Graph, Node
from netcarve.deployment.partitioners.graph import limits
from netcarve.deployment.partitioners.spectral import _objective


def test_work_is_shared_by_speed_and_memory_as_the_devices_say():
    graph = Graph((Node("a", 4.0, 10.0), Node("b", 8.0, 30.0)), ())
    bound = limits(graph, [CostedDevice("slow", 1.0, 25.0), CostedDevice("fast", 3.0)], 0.5)
    assert bound.caps.tolist() == [[4.5, 25.0], [13.5, np.inf]]
    assert bound.loads([0, 1]).tolist() == [[4, 10], [8, 30]]
    assert bound.fits([0, 1])
    assert not bound.fits([1, 0])
    assert limits(graph, 3, None).caps.tolist() == [[np.inf, np.inf]] * 3


def test_the_objective_of_hard_assignments():
    import torch

    # Two pairs of nodes, joined within each pair alone: normalised, every entry of A and every degree is 1.
    adjacent = torch.kron(torch.eye(2), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))

    def loss(parts):
        features = 100 * torch.nn.functional.one_hot(torch.tensor(parts), 2).float()
        value, soft = _objective(adjacent, torch.eye(4), features, torch.eye(2), torch.eye(2))
        assert soft.argmax(dim=1).tolist() == parts
        return float(value)

    assert loss([0, 0, 1, 1]) == pytest.approx(-1, abs=1e-5)  # nothing cut, even parts
    assert loss([0, 1, 0, 1]) == pytest.approx(0, abs=1e-5)  # everything cut, even parts
    uneven = math.sqrt((1 - 1 / math.sqrt(2)) ** 2 + 1 / 2)
    assert loss([0, 0, 0, 0]) == pytest.approx(-1 + uneven, abs=1e-5)  # nothing cut, one part empty
