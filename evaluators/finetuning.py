"""The training of subnetworks: a few epochs after surgery."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from .batches import on_cpu
from .data import Data, batches_of
from .errors import TaskError, first_line
from .judge import Judge
from .seeding import seeded

BATCH = 64
LEARNING_RATE = 1e-3  # top of the cycle; a repaired network is near its optimum, higher rates undo the repair
WEIGHT_DECAY = 0.01


def finetune(
    model: nn.Module,
    train: Data | None,
    *,
    epochs: int,
    loss: Callable[[Any, Any], Tensor] | None = None,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
) -> None:
    """Train ``model`` in place, in train mode, and put it back into eval mode.

    AdamW under one cycle of learning rates (Smith & Topin 2019, arXiv 1708.07120). What is exactly zero in
    weights [out, in, ...] stays zero: momentum and weight decay would revive masked numbers. Frozen
    parameters do not change, nor do the statistics of BatchNorm layers whose parameters are all frozen.

    Args:
        train: the task's training data. A DataLoader is read as it is; of other data, batches of 64 are drawn
            in a new order each epoch.
        epochs: at least 1.
        loss: of what the model returns and the targets of a batch, :meth:`Judge.training_loss`; by default
            cross-entropy.
        learning_rate: the highest of the cycle.
        seed: of the order, dropout and whatever the data draw from torch's generator.

    Raises:
        TaskError: no training data, data that can be read only once, or a loss that does not fit them or is
            not finite; then ``model`` is as the steps before have left it.
    """
    weights = _trainable(model, train)
    loss = loss or Judge.of("accuracy", None, None, None).training_loss
    masks = [(p, p != 0) for p in weights if p.dim() > 1 and not p.all()]
    loader = _shuffled(train)
    steps, step = epochs * _length(loader), 0
    if not steps:
        raise TaskError("train is empty: it yields no batch")
    optimizer = torch.optim.AdamW(weights, learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, max(steps, 2))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        model.train()
        for layer in _frozen_norms(model):
            layer.eval()
        try:
            for _ in range(epochs):
                for args, kwargs, targets in batches_of(loader, "train"):
                    optimizer.zero_grad()
                    value = loss(model(*args, **kwargs), targets)
                    step += 1
                    if not math.isfinite(found := float(value.detach())):
                        raise TaskError(
                            f"fine-tuning stopped at step {step} of {steps}: the loss is {found}; look for "
                            "numbers that are not finite in the training data, or train at a lower rate"
                        )
                    value.backward()
                    optimizer.step()
                    with torch.no_grad():
                        for weight, mask in masks:
                            weight.mul_(mask)
                    schedule.step()
        finally:
            model.eval()


def check_training(model: nn.Module, train: Data | None, loss: Callable[[Any, Any], Tensor]) -> None:
    """Fine-tuning would work: the loss of ``model``, as it stands, on the first batch has gradients.

    Raises:
        TaskError: why it would not, and the cure.
    """
    _trainable(model, train)
    with seeded(0), torch.enable_grad():
        for args, kwargs, targets in batches_of(_shuffled(train), "train"):
            try:
                outputs = model(*args, **kwargs)
            except Exception as error:
                raise TaskError(
                    f"the model does not run on the training data: {first_line(error)}"
                ) from error
            if not loss(outputs, targets).requires_grad:
                raise TaskError("the loss has no gradient; compute it with torch from the model's outputs")
            return
    raise TaskError("train is empty: it yields no batch")


def _trainable(model: nn.Module, train: Data | None) -> list[nn.Parameter]:
    if train is None:
        raise TaskError("fine-tuning needs training data: Task(..., train=...)")
    if isinstance(train, Iterator):
        raise TaskError(
            f"train is a {type(train).__name__}, which can be read only once; give a DataLoader, a Dataset "
            "or two tensors"
        )
    weights = [p for p in model.parameters() if p.requires_grad]
    if not weights:
        raise TaskError("nothing to fine-tune: all parameters of the model are frozen (requires_grad=False)")
    return weights


def _frozen_norms(model: nn.Module) -> list[nn.Module]:
    """BatchNorm layers with parameters, all of them frozen: their statistics are part of what is frozen."""
    norms = (layer for layer in model.modules() if isinstance(layer, BatchNorm) and layer.affine)
    return [layer for layer in norms if not any(p.requires_grad for p in layer.parameters())]


def _shuffled(train: Data | None) -> Any:
    if isinstance(train, tuple) and len(train) == 2:
        train = TensorDataset(*(torch.as_tensor(on_cpu(t)) for t in train))
    if isinstance(train, Dataset) and not isinstance(train, IterableDataset):
        # A last batch of one sample would break BatchNorm in training.
        count = len(train)  # type: ignore[arg-type]
        return DataLoader(train, batch_size=BATCH, shuffle=True, drop_last=count % BATCH == 1)
    return train


def _length(loader: Any) -> int:
    """Batches in an epoch, counted where the loader does not say."""
    try:
        return len(loader)
    except TypeError:
        return sum(1 for _ in batches_of(loader, "train"))
