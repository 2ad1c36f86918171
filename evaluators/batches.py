"""One form for data in memory: batches ``(args, kwargs, targets)``, fit for ``model(*args, **kwargs)``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import TaskError

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Inputs = tuple[Args, Kwargs]  # one call of the model
Batch = tuple[Args, Kwargs, Any]  # one call and its targets

SCORING_BATCH = 100  # samples: larger batches leave a core's cache and are slower on CPUs
CALIBRATION_BATCH = 128  # samples: larger than for scoring, since BatchNorm averages over the batch
CALIBRATION_SAMPLES = 512


def call_of(inputs: Any) -> Inputs:
    """``inputs`` as ``(args, kwargs)``, on the CPU: a tensor, a tuple, a dict or ``(args, kwargs)``."""
    if isinstance(inputs, Mapping):
        return (), {str(k): on_cpu(v) for k, v in inputs.items()}
    if isinstance(inputs, tuple | list):
        if len(inputs) == 2 and isinstance(inputs[0], tuple | list) and isinstance(inputs[1], Mapping):
            return tuple(map(on_cpu, inputs[0])), {str(k): on_cpu(v) for k, v in inputs[1].items()}
        return tuple(map(on_cpu, inputs)), {}
    return (on_cpu(inputs),), {}


def on_cpu(value: Any) -> Any:
    """Tensors and arrays as CPU tensors without gradients; anything else as it is."""
    if isinstance(value, np.ndarray):
        value = torch.as_tensor(value)
    return value.detach().cpu() if isinstance(value, Tensor) else value


def arguments(inputs: Inputs) -> dict[str, Any]:
    """The arguments of a call under names fit for messages."""
    args, kwargs = inputs
    positional = {"input" if len(args) == 1 else f"input {i}": a for i, a in enumerate(args)}
    return positional | {f"input {k!r}": v for k, v in kwargs.items()}


def describe(value: Any) -> str:
    """``float32[64, 3, 8, 8]`` for a tensor, every argument of a call, the type's name for the rest."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return f"a {type(value).__name__}"


def describe_call(inputs: Inputs) -> str:
    """``input float32[64, 3, 8, 8]``."""
    return ", ".join(f"{name} {describe(v)}" for name, v in arguments(inputs).items()) or "no inputs"


def batch_size(inputs: Inputs) -> int | None:
    """Common length of the first axis of the tensor inputs; ``None`` where there is none."""
    tensors = [v for v in arguments(inputs).values() if isinstance(v, Tensor)]
    sizes = {v.shape[0] if v.dim() else None for v in tensors}
    return sizes.pop() if len(sizes) == 1 else None


def resize(inputs: Inputs, batch: int) -> Inputs:
    """The same call with ``batch`` samples: rows are dropped or repeated; no-op without a batch axis."""
    have = batch_size(inputs)
    if not have or have == batch:
        return inputs
    rows = torch.arange(batch) % have

    def turn(value: Any) -> Any:
        return value[rows] if isinstance(value, Tensor) else value

    args, kwargs = inputs
    return tuple(map(turn, args)), {k: turn(v) for k, v in kwargs.items()}


def recut(batches: list[Batch], size: int = SCORING_BATCH) -> list[Batch]:
    """The same samples in equal batches of at most ``size``.

    Batches that cannot be joined (ragged shapes, nested inputs, tensors without a batch axis) are
    returned as they are.
    """
    columns = _join(batches)
    return batches if columns is None else _cut(columns, batches[0], size)


def spread(batches: list[Batch], samples: int = CALIBRATION_SAMPLES) -> list[Inputs]:
    """Inputs of at most ``samples`` samples, evenly spaced over ``batches``."""
    columns = _join([(args, kwargs, None) for args, kwargs, _ in batches])
    if columns is None:
        wanted = -(-samples // (batch_size(batches[0][:2]) or 1))
        return [batches[i][:2] for i in spaced(len(batches), wanted)]
    rows = torch.tensor(spaced(_length(columns), samples))
    picked = [c[rows] if isinstance(c, Tensor) else c for c in columns]
    return [batch[:2] for batch in _cut(picked, batches[0], CALIBRATION_BATCH)]


def part(batches: list[Batch], share: float, seed: int = 0) -> list[Batch]:
    """A share of the samples drawn at random; a smaller share is a part of a larger one.

    Args:
        share: in (0, 1]; at least one sample, and of batches that cannot be joined at least one.
    """
    if share == 1.0:
        return batches
    columns = _join(batches)
    count = len(batches) if columns is None else _length(columns)
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    rows = drawn[: max(1, round(share * count))].sort().values
    if columns is None:
        return [batches[i] for i in rows.tolist()]
    picked = [c[rows] if isinstance(c, Tensor) else c for c in columns]
    return _cut(picked, batches[0], SCORING_BATCH)


def spaced(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` indices below ``count``, evenly spaced, ends included."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int)).tolist()


def check_like(inputs: Inputs, example: Inputs, where: str) -> None:
    """Refuse inputs that differ from the example in anything but the length of the batch axis.

    Raises:
        TaskError: other arguments, dtypes or shapes.
    """
    got, want = arguments(inputs), arguments(example)
    if got.keys() != want.keys():
        raise TaskError(
            f"{where}: the inputs are {describe_call(inputs)}, but the example is "
            f"{describe_call(example)}; both must call the model in the same way"
        )
    for name, value in got.items():
        if isinstance(value, Tensor) and isinstance(want[name], Tensor):
            _check_tensor(value, want[name], f"{where}: {name} is {describe(value)}")


def _check_tensor(got: Tensor, want: Tensor, found: str) -> None:
    found += f", but the example has {describe(want)}"
    if got.shape[1:] == want.shape and got.dim() == want.dim() + 1:
        raise TaskError(f"{found}; the example needs a batch axis: example.unsqueeze(0)")
    if got.shape == want.shape[1:] and got.dim() == want.dim() - 1:
        raise TaskError(
            f"{found}; these are single samples, not batches: wrap the dataset in "
            "torch.utils.data.DataLoader(dataset, batch_size=100)"
        )
    if got.dim() != want.dim() or got.shape[1:] != want.shape[1:]:
        raise TaskError(f"{found}; only the first axis (the batch) may differ")
    if got.dtype != want.dtype:
        kind = str(want.dtype).removeprefix("torch.")
        raise TaskError(f"{found}; convert the data with .to(torch.{kind})")


def _join(batches: list[Batch]) -> list[Any] | None:
    """Each argument, then the targets, joined over all batches; ``None`` where that cannot be."""
    if len({(len(args), tuple(kwargs)) for args, kwargs, _ in batches}) != 1:
        return None
    lengths = [batch_size(batch[:2]) for batch in batches]
    rows = [[*args, *kwargs.values(), targets] for args, kwargs, targets in batches]
    joined = [_join_column(column, lengths) for column in zip(*rows, strict=True)]
    return None if any(c is _APART for c in joined) or None in lengths else joined


_APART = object()


def _join_column(column: tuple[Any, ...], lengths: list[int | None]) -> Any:
    first = column[0]
    if first is None or isinstance(first, bool | int | float | str):
        return first if all(v == first for v in column) else _APART
    for value, length in zip(column, lengths, strict=True):
        if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != length:
            return _APART
        if value.shape[1:] != first.shape[1:] or value.dtype != first.dtype:
            return _APART
    return torch.cat(column) if len(column) > 1 else first


def _cut(columns: list[Any], like: Batch, size: int) -> list[Batch]:
    """Equal parts of at most ``size`` rows: a last batch of one sample would break BatchNorm in training."""
    parts = -(-_length(columns) // size)
    split = [c.tensor_split(parts) if isinstance(c, Tensor) else [c] * parts for c in columns]
    positional = len(like[0])
    return [
        (row[:positional], dict(zip(like[1], row[positional:-1], strict=True)), row[-1])
        for row in zip(*split, strict=True)
    ]


def _length(columns: list[Any]) -> int:
    return next(len(c) for c in columns if isinstance(c, Tensor))
