"""Reading what people hand over as data: loaders, datasets, lists of batches, tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from .batches import (
    CALIBRATION_BATCH,
    CALIBRATION_SAMPLES,
    SCORING_BATCH,
    Batch,
    Inputs,
    Targets,
    batch_size,
    call_of,
    describe,
    describe_call,
    on_cpu,
    spaced,
    spread,
)
from .errors import TaskError, first_line
from .seeding import seeded

_FORMS = (
    "give a DataLoader, a Dataset of (input, target) pairs, a list of (inputs, targets) batches, "
    "or a tuple of two tensors (inputs, targets)"
)
_Array = Tensor | np.ndarray
Data = DataLoader[Any] | Dataset[Any] | Iterable[Any]  # see `_FORMS`; two tensors are a tuple


def read(source: Data, what: str) -> list[Batch]:
    """All batches of ``source``, in memory. Repeatable: shuffling and augmentation are seeded.

    Raises:
        TaskError: not one of the accepted forms, empty, or reading it raises.
    """
    with seeded(0):
        batches = list(batches_of(source, what))
    if not batches:
        raise TaskError(f"{what} is empty: it yields no batch; {_FORMS}")
    return batches


def sample_inputs(source: Data, what: str, takes: int = 1) -> list[Inputs]:
    """Inputs of about :data:`CALIBRATION_SAMPLES` samples spread over ``source``; targets are not used.

    An indexable dataset is read at evenly spaced indices, because the first samples of one that is
    sorted by class would give the statistics of that class. Repeatable, as :func:`read` is.

    Args:
        takes: positional inputs of the model; where it takes two, a pair of tensors is its inputs.

    Raises:
        TaskError: as :func:`read`.
    """
    if isinstance(source, Tensor | np.ndarray):
        source = (source, source)
    taken: list[Batch] = []
    seen = 0
    with seeded(0):
        for batch in batches_of(_thinned(source), what, needs_targets=False, takes=takes):
            taken.append(batch)
            seen += batch_size(batch[:2]) or 1
            if seen >= CALIBRATION_SAMPLES:
                break
    if not taken:
        raise TaskError(f"{what} is empty: it yields no batch; {_FORMS}")
    return spread(taken)


def _thinned(source: Data) -> Any:
    """A loader over evenly spaced samples, where the data can be indexed."""
    dataset = source.dataset if isinstance(source, DataLoader) else source
    if not isinstance(dataset, Dataset) or isinstance(dataset, IterableDataset):
        return source
    try:
        count = len(dataset)  # type: ignore[arg-type]
    except TypeError:
        return source
    picked = Subset(dataset, spaced(count, CALIBRATION_SAMPLES) if count else [])
    collate = source.collate_fn if isinstance(source, DataLoader) else None
    return DataLoader(picked, batch_size=CALIBRATION_BATCH, collate_fn=collate)


def batches_of(source: Data, what: str, *, needs_targets: bool = True, takes: int = 1) -> Iterator[Batch]:
    """The batches of ``source``, read one at a time.

    Raises:
        TaskError: as :func:`read`; a source that can be read in two ways.
    """
    if _is_whole(source, what, needs_targets):
        source = [source]
    elif isinstance(source, Dataset) and not isinstance(source, IterableDataset):
        source = DataLoader(source, batch_size=SCORING_BATCH)
    try:
        if isinstance(source, str | bytes | Tensor | np.ndarray):
            raise TypeError("not batches")
        items = iter(source)
    except TypeError:
        raise TaskError(f"{what} is {describe(source)}: {_FORMS}") from None
    number = 0
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except Exception as error:
            raise TaskError(f"reading {what} failed at batch {number}: {first_line(error)}") from error
        yield _batch(item, f"{what} batch {number}", needs_targets, takes)
        number += 1


def _is_whole(source: Data, what: str, needs_targets: bool) -> bool:
    """Is this all the data at once: ``(inputs, targets)``, or a dict of tensors?

    Raises:
        TaskError: it may as well be two batches without targets.
    """
    if isinstance(source, Mapping):
        return True
    if not isinstance(source, tuple | list) or len(source) != 2:
        return False
    first, second = source
    if isinstance(source, list) and _alike(first, second, needs_targets):
        cure = "a list of (inputs, targets) batches" if needs_targets else "a list of batches [(a,), (b,)]"
        raise TaskError(
            f"{what} is a list of two tensors, {describe(first)} and {describe(second)}, which may be two "
            f"batches or inputs and targets; write a tuple (inputs, targets), or {cure}"
        )
    if isinstance(second, _Array):
        return True
    if isinstance(first, Mapping):
        return isinstance(source, tuple) and isinstance(second, Mapping) and "labels" not in first
    return isinstance(first, _Array) and isinstance(second, Mapping | tuple | list)


def _alike(first: object, second: object, needs_targets: bool) -> bool:
    """Could the second be a batch of inputs, as the first is?"""
    if not (isinstance(first, _Array) and isinstance(second, _Array)) or first.dtype != second.dtype:
        return False
    return first.shape[1:] == second.shape[1:] or (not needs_targets and first.ndim == second.ndim)


def _batch(item: object, where: str, needs_targets: bool, takes: int) -> Batch:
    inputs, targets = _pair(item, where, needs_targets, takes)
    if needs_targets and targets is None:
        raise TaskError(f"{where} has no targets: give (inputs, targets), or a dict with 'labels'")
    args, kwargs = call_of(inputs)
    targets = _targets(targets)
    length = batch_size((args, kwargs))
    if length == 0:
        raise TaskError(f"{where} holds no samples: {describe_call((args, kwargs))}")
    if isinstance(targets, Tensor) and targets.dim() and length and len(targets) % length:
        raise TaskError(f"{where}: {length} inputs but {len(targets)} targets; each input needs its target")
    return args, kwargs, targets


def _pair(item: object, where: str, needs_targets: bool, takes: int) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        return {k: v for k, v in item.items() if k != "labels"}, item.get("labels")
    if isinstance(item, tuple | list) and len(item) == 2:
        unlabelled = not needs_targets and takes == 2 and all(isinstance(part, _Array) for part in item)
        return (item, None) if unlabelled else (item[0], item[1])
    if not needs_targets:
        return item, None
    if isinstance(item, tuple | list):
        raise TaskError(
            f"{where} is {len(item)} things, not a pair (inputs, targets); "
            "write several inputs as ((x1, x2), targets)"
        )
    raise TaskError(f"{where} is {describe(item)}, not a pair (inputs, targets)")


def _targets(targets: Targets) -> Any:
    numbers = targets if isinstance(targets, list | tuple) else [targets]
    if all(isinstance(t, bool | int | float) for t in numbers):
        targets = np.asarray(targets)
    return on_cpu(targets)
