"""Quality, costs, latency and the repair of BatchNorm."""

from __future__ import annotations

import gc

import pytest
import torch
from netcarve import Task
from netcarve.evaluators import (
    Counted,
    Lane,
    Latency,
    Quality,
    measure_latency,
    reestimate_batchnorm,
)
from netcarve.spaces import Candidate, Choice, ModelSide, Space
from torch import Tensor, nn

CHANGED = Candidate((0,))


class Net(nn.Module):
    """Two convolutions with BatchNorm and dropout; 4 channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.bn(self.conv(x)).relu().mean((2, 3))))


class Side(ModelSide):
    """A model side that gives the same network for every candidate."""

    def build(self, candidate: Candidate, *, repair: object = None) -> nn.Module:
        return Net()

    def cost_arrays(self, choices: object, indices: object) -> dict[str, object]:
        return {}


@pytest.fixture
def task() -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(250, 1, 6, 6, generator=generator) * 3 + 1
    return Task(Net(), torch.zeros(1, 1, 6, 6), (x, torch.arange(250) % 3))


def test_quality(task: Task) -> None:
    x = torch.cat([args[0] for args, _, _ in task.batches])
    scores = Quality()(task, task.model, CHANGED)
    assert scores["accuracy"] == pytest.approx(
        (task.model(x).argmax(1) == torch.arange(250) % 3).double().mean().item()
    )
    assert Quality().gives(task) == tuple(scores) == ("accuracy", "loss")


def test_counted_costs_equal_the_formula(task: Task) -> None:
    scores = Counted()(task, task.model, CHANGED)
    assert scores["macs"] == 36 * 4 * 9 + 4 * 3
    assert scores["params"] == (4 * 9 + 4) + 8 + (4 * 3 + 3)


def test_counted_attention_is_not_zero() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x).mean((1, 2))

    x = torch.randn(2, 4, 5, 3)
    task = Task(Attention(), x, (x, torch.zeros(2, dtype=torch.long)))
    assert Counted()(task, task.model, CHANGED)["macs"] == 2 * 4 * 5 * 5 * 3


def test_batchnorm_statistics_become_those_of_the_data(task: Task) -> None:
    model = task.model
    x = torch.cat([args[0] for args, _ in task.calibration_batches])
    bn = model.bn
    bn.running_mean.fill_(7.0)
    reestimate_batchnorm(model, [((x,), {})])
    features = model.conv(x)
    torch.testing.assert_close(bn.running_mean, features.mean((0, 2, 3)))
    torch.testing.assert_close(bn.running_var, features.var((0, 2, 3)))


def test_batches_of_unequal_size_weigh_by_their_samples(task: Task) -> None:
    x = torch.cat([args[0] for args, _ in task.calibration_batches])
    reestimate_batchnorm(task.model, [((x[:10],), {}), ((x[10:],), {})])
    torch.testing.assert_close(task.model.bn.running_mean, task.model.conv(x).mean((0, 2, 3)))


def test_reestimation_leaves_all_else_alone(task: Task) -> None:
    model = task.model
    before = {
        k: v.clone() for k, v in model.state_dict().items() if "running" not in k and "tracked" not in k
    }
    reestimate_batchnorm(model, task.calibration_batches)
    assert not any(m.training for m in model.modules())
    assert model.bn.momentum == 0.1
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert not any(p.requires_grad is False or p.grad is not None for p in model.parameters())
    first = model.bn.running_var.clone()
    reestimate_batchnorm(model, task.calibration_batches)
    torch.testing.assert_close(model.bn.running_var, first)  # dropout was off: nothing random


def test_reestimation_restores_flags_after_an_error(task: Task) -> None:
    with pytest.raises(RuntimeError):
        reestimate_batchnorm(task.model, [((torch.zeros(2, 5, 6, 6),), {})])
    assert not task.model.bn.training
    assert task.model.bn.momentum == 0.1


def test_reestimation_without_batchnorm_runs_nothing() -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError

    reestimate_batchnorm(Never(), [((torch.zeros(1),), {})])


def test_reestimation_of_a_captured_graph_uses_its_switches() -> None:
    class Captured(nn.Module):
        batch_norm_training = False
        batch_norm_momentum = 0.1

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[bool, float]] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append((self.batch_norm_training, self.batch_norm_momentum))
            return x

    model = Captured()
    reestimate_batchnorm(model, [((torch.zeros(n, 2),), {}) for n in (4, 4, 8)])
    assert model.seen == [(True, 1.0), (True, 0.5), (True, 0.5)]
    assert (model.batch_norm_training, model.batch_norm_momentum) == (False, 0.1)


def test_latency_record_and_what_it_leaves_behind(task: Task) -> None:
    torch.set_num_threads(2)
    try:
        record = measure_latency(task.model, task.model, task.example, repeats=30)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert gc.isenabled()
    assert 0 < record.q25_ms <= record.median_ms <= record.q75_ms
    assert 0 < record.ratio_low <= record.ratio <= record.ratio_high
    assert record.drift >= 0
    assert record.repeats in (10, 20, 30)  # as soon as the ratio is known well enough
    assert (record.threads, record.runtime, record.batch) == (1, "eager", 1)
    assert record.device


def test_latency_calls_alternate_and_stop_when_time_is_up() -> None:
    order: list[str] = []

    class Call(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            order.append(self.name)
            return x

    record = measure_latency(Call("a"), Call("b"), ((torch.zeros(1),), {}), warmup=1, seconds=1e-9)
    assert record.repeats == 10
    assert order[2:] == ["b", "b", "a", "a"] * 10  # short calls are timed after one that warms the caches
    with pytest.raises(ValueError, match="unknown runtime 'tpu': known are eager"):
        measure_latency(Call("a"), Call("b"), ((torch.zeros(1),), {}), runtime="tpu")


def test_a_slower_model_reads_slower() -> None:
    class Loop(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.n = n

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.n):
                x = x @ x
            return x

    x = torch.eye(48)
    assert 1.5 < measure_latency(Loop(60), Loop(20), ((x,), {})).ratio < 6


def test_the_lane_gives_the_record_as_detail(task: Task) -> None:
    space = Space([Choice("c", (0, 1))], model=Side())  # type: ignore[arg-type]
    outcome = Lane(task, space, [Latency(batch=3, repeats=10)]).evaluate(5, space.baseline)
    assert outcome.error is None
    assert outcome.scores is not None
    assert outcome.scores["latency_ms"] == outcome.detail["median_ms"]
    assert outcome.detail["batch"] == 3
    assert outcome.detail["ratio"] > 0
    assert Latency.lane
