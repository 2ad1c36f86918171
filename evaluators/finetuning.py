"""The training of subnetworks: a few epochs after surgery."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from .batches import on_cpu
from .data import batches_of
from .errors import TaskError
from .metrics import IGNORED, Classification, classes_second, tensor_of

BATCH = 64
LEARNING_RATE = 1e-3  # top of the cycle; a repaired network is near its optimum, higher rates undo the repair
WEIGHT_DECAY = 0.01


def finetune(
    model: nn.Module, train: Any, *, epochs: int, learning_rate: float = LEARNING_RATE, seed: int = 0
) -> None:
    """Train ``model`` in place, in train mode, and put it back into eval mode.

    AdamW under one cycle of learning rates (Smith & Topin 2019, arXiv 1708.07120), cross-entropy. What is
    exactly zero in weights [out, in, ...] stays zero: momentum and weight decay would revive masked numbers.

    Args:
        train: the task's training data. A DataLoader is read as it is; of other data, batches of 64 are drawn
            in a new order each epoch.
        epochs: at least 1.
        learning_rate: the highest of the cycle.
        seed: of the order, dropout and whatever the data draw from torch's generator.

    Raises:
        TaskError: no training data, or targets that are not class indices.
    """
    if train is None:
        raise TaskError("fine-tuning needs training data: Task(..., train=...)")
    weights = [p for p in model.parameters() if p.requires_grad]
    if not weights:
        raise TaskError("nothing to fine-tune: all parameters of the model are frozen (requires_grad=False)")
    masks = [(p, p != 0) for p in weights if p.dim() > 1 and not p.all()]
    loader = _shuffled(train)
    steps = epochs * _length(loader)
    optimizer = torch.optim.AdamW(weights, learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, max(steps, 2))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        model.train()
        try:
            for _ in range(epochs):
                for args, kwargs, targets in batches_of(loader, "train"):
                    optimizer.zero_grad()
                    _loss(model(*args, **kwargs), targets).backward()
                    optimizer.step()
                    with torch.no_grad():
                        for weight, mask in masks:
                            weight.mul_(mask)
                    schedule.step()
        finally:
            model.eval()


def _loss(raw: Any, targets: Any) -> torch.Tensor:
    outputs = tensor_of(raw)
    if why := Classification.refusal(outputs, targets):
        raise TaskError(f"fine-tuning minimises cross-entropy, which this task has not: {why}")
    scores = classes_second(outputs, targets)
    assert scores is not None
    return cross_entropy(scores, targets.long(), ignore_index=IGNORED)


def _shuffled(train: Any) -> Any:
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
