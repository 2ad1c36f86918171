"""What travels to workers although it cannot be pickled as it is, and what is refused in words."""

import threading

import netcarve
import pytest
import torch
from netcarve.evaluators.errors import PoolError
from netcarve.evaluators.pool import Job
from netcarve.evaluators.shipping import check_sendable, pack, unpack
from torch import nn


def test_parametrised_layers_arrive() -> None:
    torch.manual_seed(0)
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    net = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 4))
    x = torch.randn(20, 3, 4, 4)
    task = netcarve.Task(net, x[:2], (x, torch.randint(4, (20,))))
    space = netcarve.trace(net, x[:2]).space()
    arrived = unpack(pack(Job(task, space, ())))
    assert arrived.task is not None
    assert torch.equal(arrived.task.model(x), net(x))
    deepest = space.candidate(space.counts - 1)
    built = arrived.build(deepest)
    assert torch.equal(built(x), space.build(deepest)(x))
    built.train()(x).sum().backward()
    assert built[0].weight.grad is not None  # folded: an ordinary layer


class Listed(nn.Module):
    """An attribute with the name of a part of torch that is no plain module."""

    def __init__(self) -> None:
        super().__init__()
        self.ops, self.head = nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 8)]), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for op in self.ops:
            x = torch.relu(op(x))
        return self.head(x)


def test_classes_of_a_script_with_an_attribute_called_ops_arrive() -> None:
    net, x = Listed(), torch.randn(20, 4)
    task = netcarve.Task(net, x[:2], (x, torch.randint(3, (20,))))
    space = netcarve.trace(net, x[:2]).space()
    arrived = unpack(pack(Job(task, space, ())))
    assert torch.equal(arrived.build(space.baseline)(x), net(x))


def test_a_lock_arrives_as_another_and_a_generator_is_refused_by_name() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(20, 4)
    net[1].held = {"lock": threading.Lock(), "again": [threading.RLock()]}
    task = netcarve.Task(net, x[:2], (x, torch.randint(3, (20,))))
    check_sendable(task)
    space = netcarve.trace(net, x[:2]).space()
    arrived = unpack(pack(Job(task, space, ())))
    assert arrived.task is not None
    assert arrived.task.model[1].held["lock"].acquire(blocking=False)
    assert torch.equal(arrived.task.model(x), net(x))
    deepest = space.candidate(space.counts - 1)
    assert torch.equal(arrived.build(deepest)(x), space.build(deepest)(x))
    net[1].numbers = (i for i in range(3))
    with pytest.raises(PoolError, match=r"its attribute 1\.numbers \(generator\): .*workers=0"):
        check_sendable(task)
