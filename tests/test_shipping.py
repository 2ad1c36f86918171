"""What travels to workers although it cannot be pickled as it is, and what is refused in words."""

import pickle
import subprocess
import sys
import threading
import time

import netcarve
import pytest
import torch
from netcarve.evaluators.errors import PoolError
from netcarve.evaluators.pool import Job
from netcarve.evaluators.resolve import module_of, resolve_task
from netcarve.evaluators.shipping import Rehearsal, check_sendable, pack, unpack
from netcarve.spaces import Choice, Space
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


NEEDY = """
import sys, torch
from netcarve import Task

sys.path.insert(0, NEIGHBOURS)
import neighbour_of_mine

@torch.library.custom_op("needy::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x

LIBRARY = torch.library.Library("needy_too", "DEF")
LIBRARY.define("thrice(Tensor x) -> Tensor")
LIBRARY.impl("thrice", lambda x: 3 * x, "CompositeExplicitAutograd")
torch.nn.Linear.patched = True
FACTOR, ANSWER = 1.0, "yes"

class Asks:
    def __reduce__(self):
        return asked, (ANSWER,)

def asked(answer):
    assert torch.nn.Linear.patched and "neighbour_of_mine" in sys.modules
    if answer == "no":
        raise OSError("no such disk here")
    return Asks()

class Net(torch.nn.Linear):
    def forward(self, x):
        return FACTOR * twice(super().forward(torch.ops.needy_too.thrice(x)))

def build():
    global FACTOR
    FACTOR = 0.5  # state of this process, which travels too
    torch.manual_seed(0)
    net, x = Net(4, 3), torch.ones(9, 4)
    net.asks = Asks()
    return Task(net, x[:2], (x, torch.arange(9) % 3))
"""
WORKER = """
import pickle, sys
from netcarve.evaluators.shipping import unpack
model = unpack(pickle.load(open(sys.argv[1], "rb"))).task.model
import torch
print(model(torch.ones(1, 4)).tolist())
"""


def test_a_worker_imports_the_file_of_a_task_before_it_rebuilds_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delattr(nn.Linear, "patched", raising=False)
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "neighbour_of_mine.py").write_text("")
    (tmp_path / "needy.py").write_text(NEEDY.replace("NEIGHBOURS", repr(str(tmp_path / "beside"))))
    task = resolve_task(f"{tmp_path / 'needy.py'}:build")
    expected = task.model(torch.ones(1, 4)).tolist()
    parcel = pack(Job(task, Space([Choice("a", (0, 1))]), ()))
    (tmp_path / "parcel").write_bytes(pickle.dumps(parcel))
    command = [sys.executable, "-c", WORKER, str(tmp_path / "parcel")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == f"{expected}\n", done.stderr

    monkeypatch.setattr(module_of(task.spec), "ANSWER", "no")  # what fails in a worker alone
    with Rehearsal(task) as rehearsal:
        end = time.monotonic() + 60
        while rehearsal._process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        with pytest.raises(
            PoolError, match=r"^workers cannot load the task: OSError: no such disk"
        ) as caught:
            rehearsal.check()
    assert "in asked" in caught.value.detail
    assert "shipping.py" not in caught.value.detail
