"""One form for data in memory: batches ``(args, kwargs, targets)``, fit for ``model(*args, **kwargs)``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .errors import TaskError

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Inputs = tuple[Args, Kwargs]  # one call of the model
Batch = tuple[Args, Kwargs, Any]  # one call and its targets
Outputs = Any  # what a model returns: a tensor, or tuples, lists, mappings and dataclasses of tensors
Targets = Any  # of a batch: what the metric takes, a tensor for the built-in ones

SCORING_BATCH = 100  # samples: larger batches leave a core's cache and are slower on CPUs
CALIBRATION_BATCH = 128  # samples: larger than for scoring, since BatchNorm averages over the batch
CALIBRATION_SAMPLES = 512


def call_of(inputs: object) -> Inputs:
    """``inputs`` as ``(args, kwargs)``, on the CPU: a tensor, a tuple, a dict or ``(args, kwargs)``."""
    if isinstance(inputs, Mapping):
        return (), {str(k): on_cpu(v) for k, v in inputs.items()}
    if isinstance(inputs, tuple | list):
        if len(inputs) == 2 and isinstance(inputs[0], tuple | list) and isinstance(inputs[1], Mapping):
            return tuple(map(on_cpu, inputs[0])), {str(k): on_cpu(v) for k, v in inputs[1].items()}
        return tuple(map(on_cpu, inputs)), {}
    return (on_cpu(inputs),), {}


def on_cpu(value: object) -> Any:
    """Tensors and arrays, nested ones too, as CPU tensors without gradients; anything else as it is."""

    def turn(leaf: object) -> Any:
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
            leaf = torch.as_tensor(leaf)
        return leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf

    return pytree.tree_map(turn, value)


def arguments(inputs: Inputs) -> dict[str, Any]:
    """The arguments of a call under names fit for messages."""
    args, kwargs = inputs
    positional = {"input" if len(args) == 1 else f"input {i}": a for i, a in enumerate(args)}
    return positional | {f"input {k!r}": v for k, v in kwargs.items()}


def describe(value: object) -> str:
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


def count_samples(batches: Iterable[Batch]) -> int:
    """Samples in all; a batch without a common length of its inputs counts as one."""
    return sum(batch_size(batch[:2]) or 1 for batch in batches)


def resize(inputs: Inputs, batch: int) -> Inputs:
    """The same call with ``batch`` samples: rows are dropped or repeated; no-op without a batch axis."""
    have = batch_size(inputs)
    if not have or have == batch:
        return inputs
    rows = torch.arange(batch) % have

    def turn(value: object) -> Any:
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


def spread(
    batches: list[Batch], samples: int = CALIBRATION_SAMPLES, like: Inputs | None = None
) -> list[Inputs]:
    """Inputs of at most ``samples`` samples, evenly spaced over ``batches``.

    Args:
        like: a call; batches of its lengths go first, where the batches cannot be joined and not all fit.
    """
    columns = _join([(args, kwargs, None) for args, kwargs, _ in batches])
    if columns is None:
        wanted = -(-samples // (batch_size(batches[0][:2]) or 1))
        alike = [i for i, b in enumerate(batches) if like is not None and not free_lengths([like, b[:2]])]
        others = [i for i in range(len(batches)) if i not in set(alike)]
        first = [alike[i] for i in spaced(len(alike), wanted)] if alike else []
        rest = [others[i] for i in spaced(len(others), wanted - len(first))] if others else []
        return [batches[i][:2] for i in sorted(first + rest)]
    rows = torch.tensor(spaced(_length(columns), samples))
    picked = [c[rows] if isinstance(c, Tensor) else c for c in columns]
    form = (*batches[0][:2], None)
    return [batch[:2] for batch in _cut(picked, form, CALIBRATION_BATCH)]


def part(batches: list[Batch], share: float, seed: int = 0) -> list[Batch]:
    """A share of the samples drawn at random; a smaller share is a part of a larger one.

    Args:
        share: in (0, 1]; at least one sample, and of batches that cannot be joined at least one.
    """
    return batches if share == 1.0 else held_back(batches, share, seed, least=1)[1]


def held_back(
    batches: list[Batch], share: float, seed: int = 0, *, least: int = 0
) -> tuple[list[Batch], list[Batch]]:
    """The batches without a share of their samples, and with these alone; drawn at random.

    Args:
        share: in (0, 1]; of the batches, where they cannot be joined.
        least: samples (or batches) that are drawn.
    """
    columns = _join(batches)
    count = len(batches) if columns is None else _length(columns)
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    most = max(least, round(share * count))

    def picked(rows: Tensor) -> list[Batch]:
        if columns is None or not len(rows):
            return [batches[i] for i in rows.tolist()]
        return _cut([c[rows] if isinstance(c, Tensor) else c for c in columns], batches[0], SCORING_BATCH)

    return picked(drawn[most:].sort().values), picked(drawn[:most].sort().values)


def spaced(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` indices below ``count``, evenly spaced, ends included."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int)).tolist()


Lengths = frozenset[tuple[str, int]]  # (argument, axis) whose length differs between the batches of a task


def free_lengths(batches: Sequence[Inputs]) -> Lengths:
    """Axes besides the first whose length differs between batches: sequences of several lengths."""
    seen: dict[tuple[str, int], set[int]] = {}
    for inputs in batches:
        for name, value in arguments(inputs).items():
            for axis, length in enumerate(value.shape) if isinstance(value, Tensor) else ():
                seen.setdefault((name, axis), set()).add(length)
    return frozenset(place for place, lengths in seen.items() if place[1] and len(lengths) > 1)


def check_like(inputs: Inputs, example: Inputs, where: str, free: Lengths = frozenset()) -> None:
    """Refuse inputs that differ from the example in anything but the length of the batch axis.

    Args:
        free: axes whose length may differ too.

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
            axes = frozenset(axis for argument, axis in free if argument == name)
            _check_tensor(value, want[name], f"{where}: {name} is {describe(value)}", axes)


def _check_tensor(got: Tensor, want: Tensor, found: str, free: frozenset[int]) -> None:
    found += f", but the example has {describe(want)}"
    if got.shape[1:] == want.shape and got.dim() == want.dim() + 1:
        raise TaskError(f"{found}; the example needs a batch axis: example.unsqueeze(0)")
    if got.shape == want.shape[1:] and got.dim() == want.dim() - 1:
        raise TaskError(
            f"{found}; these are single samples, not batches: wrap the dataset in "
            "torch.utils.data.DataLoader(dataset, batch_size=100)"
        )
    pairs = zip(got.shape[1:], want.shape[1:], strict=False)
    if got.dim() != want.dim() or any(a != b and i not in free for i, (a, b) in enumerate(pairs, 1)):
        raise TaskError(f"{found}; only the first axis (the batch) may differ")
    if got.dtype != want.dtype:
        kind = str(want.dtype).removeprefix("torch.")
        raise TaskError(f"{found}; convert the data with .to(torch.{kind})")


def _join(batches: list[Batch]) -> list[Any] | None:
    """Each argument, then each tensor of the targets, over all batches; ``None`` where they do not join."""
    lengths = [batch_size(batch[:2]) for batch in batches]
    rows, forms = [], []
    for args, kwargs, targets in batches:
        leaves, spec = pytree.tree_flatten(targets)
        if not spec.is_leaf() and not all(isinstance(leaf, Tensor) for leaf in leaves):
            return None  # a list of names, one a sample, cannot be told from a list of settings
        rows.append([*args, *kwargs.values(), *leaves])
        forms.append((len(args), tuple(kwargs), spec))
    if None in lengths or any(form != forms[0] for form in forms):
        return None
    joined = [_join_column(column, lengths) for column in zip(*rows, strict=True)]
    return None if any(c is _APART for c in joined) else joined


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
    args, kwargs, targets = like
    spec = pytree.tree_structure(targets)
    inputs = len(args) + len(kwargs)
    return [
        (
            row[: len(args)],
            dict(zip(kwargs, row[len(args) : inputs], strict=True)),
            pytree.tree_unflatten(row[inputs:], spec),
        )
        for row in zip(*split, strict=True)
    ]


def _length(columns: list[Any]) -> int:
    return next(len(c) for c in columns if isinstance(c, Tensor))


def sample_digests(batches: Iterable[Batch]) -> set[bytes]:
    """Digests of the first tensor input of every sample."""
    found = set()
    for args, kwargs, _ in batches:
        tensors = [v for v in arguments((args, kwargs)).values() if isinstance(v, Tensor) and v.dim()]
        for row in tensors[0] if tensors else ():
            digest = hashlib.sha256()
            hash_into(digest, "", row)
            found.add(digest.digest())
    return found


def hash_into(digest: hashlib._Hash, key: str, value: object) -> None:
    """Add a named value to a digest: tensors, nested ones too, by their bytes."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        digest.update(f"{key}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
        return
    leaves = pytree.tree_leaves(value)
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        digest.update(f"{key}|{value!r}|".encode())
        return
    digest.update(f"{key}|{pytree.tree_structure(value)}|".encode())  # the repr of tensors leaves out numbers
    for leaf in leaves:
        hash_into(digest, key, leaf)
