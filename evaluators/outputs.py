"""Outputs of a model: which tensor of them is judged, and the outputs of all batches joined into one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .batches import Outputs, describe
from .errors import TaskError, first_line

Choice = (
    str | int | Callable[[Any], Any]
)  # names one tensor of the outputs: "logits", "heads.0", 1, a function

LISTED = 8  # tensors that a message names


def named_tensors(outputs: Outputs) -> dict[str, Tensor]:
    """The tensors in nested tuples, lists, mappings and dataclasses, by path: ``"logits"``, ``"heads.0"``."""
    return dict(_walk(outputs, ""))


def pick(outputs: Outputs, choice: Choice | None) -> Tensor:
    """The tensor of ``outputs`` that ``choice`` names.

    Args:
        choice: a path of :func:`named_tensors`; a position; a function of the outputs; ``None`` where the
            model returns a tensor.

    Raises:
        TaskError: there is no such tensor; the message lists those that there are.
    """
    if choice is None:
        found = outputs
    elif callable(choice):
        try:
            found = choice(outputs)
        except Exception as error:
            raise TaskError(
                f"output={_named(choice)} raises {first_line(error)}, given {listed(outputs)}"
            ) from error
    elif isinstance(outputs, Tensor):
        raise TaskError(
            f"output={choice!r} names one of several outputs, but the model returns {describe(outputs)}; "
            "leave output out"
        )
    else:
        found = named_tensors(outputs).get(str(choice))
        if found is None and isinstance(choice, int):
            found = _at(outputs, choice)
    if isinstance(found, Tensor):
        return found
    if callable(choice):
        raise TaskError(f"output={_named(choice)} must return a tensor, got {describe(found)}")
    if choice is not None:
        raise TaskError(f"output={choice!r} is not among what the model returns: {listed(outputs)}")
    raise TaskError(f"the model returns {listed(outputs)}, no single tensor; {name_it(outputs)}")


def choose(outputs: Outputs, fits: Callable[[Tensor], bool]) -> Choice | None:
    """Which tensor is judged where the task does not say: the only one, ``"logits"``, the only one that fits.

    Args:
        outputs: what the model returns for a batch.
        fits: whether a tensor can be judged at all (class scores for the targets, say).

    Raises:
        TaskError: no tensor, or several that it could be; the message lists them with their shapes.
    """
    if isinstance(outputs, Tensor):
        return None
    found = {name: t for name, t in named_tensors(outputs).items() if t.is_floating_point() and t.dim()}
    if len(found) == 1:
        return next(iter(found))
    if isinstance(outputs, Mapping) and "logits" in found:  # transformers' name for class scores
        return "logits"
    fitting = [name for name, t in found.items() if fits(t)]
    if len(fitting) == 1:
        return fitting[0]
    if not found:
        raise TaskError(
            f"the model returns {listed(outputs)} without a tensor of scores in it; it must return a tensor, "
            "or tensors in a tuple or dict"
        )
    raise TaskError(f"the model returns several tensors, {listed(outputs)}; {name_it(outputs)}")


def listed(outputs: Outputs) -> str:
    """``a tuple of 0: float32[8, 64], 1: float32[8, 10]``, for messages."""
    if isinstance(outputs, Tensor):
        return describe(outputs)
    names = [f"{name}: {describe(t)}" for name, t in named_tensors(outputs).items()]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return describe(outputs) + (f" of {', '.join(names[:LISTED])}{more}" if names else "")


def name_it(outputs: Outputs) -> str:
    """The cure for outputs of several tensors."""
    names = list(named_tensors(outputs))
    example = names[-1] if names else "logits"
    said = example if example.isdigit() else repr(example)
    return f"say which one is judged, Task(output={said}), or give a function, output=lambda outputs: ..."


def check_finite(outputs: Outputs, where: str) -> None:
    """
    Raises:
        TaskError: NaN in a model's outputs, or infinities where it returns one tensor.
    """
    tensors = named_tensors(outputs)
    for name, tensor in tensors.items():
        # Beside others a tensor may be a mask, of which infinities are a part.
        wrong = ~tensor.isfinite() if len(tensors) == 1 else tensor.isnan()
        bad = int(wrong.sum()) if tensor.is_floating_point() else 0
        if bad:
            which = f"{name!r} of the model's output" if name else "the model's output"
            raise TaskError(
                f"{which} on {where} holds {bad} NaN or infinite values of {tensor.numel()}; "
                "check that the trained weights were loaded and that the inputs are scaled as in training"
            )


def detached(outputs: Outputs) -> Any:
    """The same structure, its tensors without gradients."""
    return pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, outputs)


def joined(values: Sequence[Any], counts: Sequence[int | None]) -> Any:
    """What a model gives, or should give, for all samples at once, from what stands for each batch.

    The structure stays. Tensors with a sample axis are concatenated along it; those whose other axes differ
    between batches become a list of one tensor a sample. A list of one item a sample (boxes of an image)
    becomes one such list. What has no sample axis stays where it is the same in all batches, and is else a
    list of one value a batch.

    Args:
        values: one per batch.
        counts: samples of each batch; ``None`` where that cannot be told, and then the first axis is taken.
    """
    first = values[0]
    if len(values) == 1:
        return first
    if all(isinstance(v, Tensor) for v in values):
        return _joined_tensors(values, counts)
    if all(isinstance(v, list | tuple) for v in values) and _one_a_sample(values, counts):
        return [item for value in values for item in value]
    flat = [_children(value) for value in values]
    if not flat[0][1].is_leaf() and all(spec == flat[0][1] for _, spec in flat):
        children = [joined(column, counts) for column in zip(*(leaves for leaves, _ in flat), strict=True)]
        return pytree.tree_unflatten(children, flat[0][1])
    return first if _equal(values) else list(values)


def rows_of(tree: Outputs, rows: Tensor, count: int) -> Any:
    """Some samples of what :func:`joined` gave for ``count`` samples; ``rows`` may repeat.

    A sample may own several rows of a tensor, equally many each: tokens that were flattened.
    """
    if isinstance(tree, Tensor):
        if not tree.dim() or not len(tree) or len(tree) % count:
            return tree
        return tree[rows] if len(tree) == count else tree.unflatten(0, (count, -1))[rows].flatten(0, 1)
    if isinstance(tree, list) and len(tree) == count and not _heads([tree], [count]):
        return [tree[i] for i in rows.tolist()]
    leaves, spec = _children(tree)
    return (
        tree
        if spec.is_leaf()
        else pytree.tree_unflatten([rows_of(leaf, rows, count) for leaf in leaves], spec)
    )


def _children(value: object) -> tuple[list[Any], Any]:
    """A container's own items, and the structure to put them back into; a leaf's only item is itself."""
    return pytree.tree_flatten(value, is_leaf=lambda part: part is not value)


def _walk(value: object, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
        return
    parts: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        parts = list(value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = list(zip(value._fields, value, strict=True))
    elif isinstance(value, tuple | list):
        parts = list(enumerate(value))
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [(f.name, getattr(value, f.name)) for f in fields(value)]
    for key, part in parts:
        yield from _walk(part, f"{path}.{key}" if path else str(key))


def _at(outputs: Outputs, position: int) -> Any:
    parts = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
    try:
        return parts[position]
    except (TypeError, IndexError, KeyError):
        return None


def _named(choice: object) -> str:
    return getattr(choice, "__name__", type(choice).__name__)


def _joined_tensors(values: Sequence[Tensor], counts: Sequence[int | None]) -> Any:
    if all(v.dim() for v in values) and _rows_each(values, counts):
        if len({(v.shape[1:], v.dtype) for v in values}) == 1:
            return torch.cat(list(values))
        return [row for value in values for row in value]
    return values[0] if _equal(values) else list(values)


def _rows_each(values: Sequence[Tensor], counts: Sequence[int | None]) -> bool:
    """Is the first axis that of the samples, with equally many rows for each?"""
    known = [(len(v), n) for v, n in zip(values, counts, strict=True) if n]
    return len({rows / n for rows, n in known}) <= 1 and all(rows % n == 0 for rows, n in known)


def _one_a_sample(values: Sequence[Any], counts: Sequence[int | None]) -> bool:
    """Is each of these lists one of the samples' items, not one of the model's heads?"""
    lengths = [len(v) for v in values]
    if None in counts:
        return len(set(lengths)) > 1
    return lengths == list(counts) and (len(set(lengths)) > 1 or not _heads(values, counts))


def _heads(values: Sequence[Any], counts: Sequence[int | None]) -> bool:
    """Is every item of every list a tensor with a row for each sample?"""
    return all(
        isinstance(item, Tensor) and item.dim() and len(item) == n and n > 1
        for value, n in zip(values, counts, strict=True)
        for item in value
    )


def _equal(values: Sequence[Any]) -> bool:
    first = values[0]
    try:
        if isinstance(first, Tensor):
            return all(isinstance(v, Tensor) and torch.equal(v, first) for v in values)
        return all(type(v) is type(first) and bool(v == first) for v in values)
    except (RuntimeError, TypeError, ValueError):
        return False
