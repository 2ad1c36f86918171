"""What travels to workers although it cannot be pickled as it is."""

import netcarve
import torch
from netcarve.evaluators.pool import Job
from netcarve.evaluators.shipping import pack, unpack
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
    assert built[0].parametrizations.weight.original0.grad is not None
