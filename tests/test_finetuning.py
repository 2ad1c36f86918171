"""Fine-tuning: what it must not change, and what stops it."""

import pytest
import torch
from netcarve.evaluators.errors import TaskError
from netcarve.evaluators.finetuning import check_training, finetune
from torch import nn

X, Y = torch.randn(128, 3, generator=torch.Generator().manual_seed(0)), torch.arange(128) % 2


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
    )


def test_what_is_frozen_is_bit_identical_and_the_rest_moves() -> None:
    model = net().eval()
    for layer in (model[0], model[1]):
        layer.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    finetune(model, (X, Y), epochs=2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(("0.", "1.")), name
    assert not any(module.training for module in model.modules())


def test_a_loss_that_is_not_finite_stops_and_leaves_the_steps_before() -> None:
    """The third batch is bad: the weights are those of two steps under the same cycle of rates."""
    good = [(X[:64], Y[:64]), (X[64:], Y[64:])]
    calls = []

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(len(targets))
        value = nn.functional.cross_entropy(outputs, targets)
        return value * float("nan") if len(calls) == 3 else value

    model, yardstick = net(), net()
    with pytest.raises(TaskError, match=r"stopped at step 3 of 4: the loss is nan"):
        finetune(model, good, epochs=2, loss=loss)
    assert len(calls) == 3
    assert not model.training
    start = [p.clone() for p in net().parameters()]
    assert all(p.isfinite().all() for p in model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True))

    def stops(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(len(targets))
        return nn.functional.cross_entropy(outputs, targets)

    with pytest.raises(KeyboardInterrupt):
        finetune(yardstick, good, epochs=2, loss=stops)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), yardstick.parameters(), strict=True))


def test_data_that_end_are_refused_unread() -> None:
    batches = iter([(X, Y)])
    for training in (
        lambda: finetune(net(), batches, epochs=1),
        lambda: check_training(net(), batches, nn.CrossEntropyLoss()),
    ):
        with pytest.raises(TaskError, match="read only once"):
            training()
    assert next(batches)[0] is X
    with pytest.raises(TaskError, match="yields no batch"):
        finetune(net(), [], epochs=1)
