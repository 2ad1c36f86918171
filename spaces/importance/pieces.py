"""Batches cut along their samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..capture import batch_length

Batch = tuple[tuple[Any, ...], dict[str, Any], Any]  # (args, kwargs, targets)


def pieces(batch: Batch, length: int) -> Iterator[Callable[[], Batch]]:
    """The batch in pieces of ``length`` samples, each made when called; a remainder is left out.

    A batch of fewer samples repeats some; inputs of which none or not all have a batch axis stay whole.
    """
    have = batch_length(batch[0], batch[1])
    if have is None or have == length:
        yield lambda: batch
        return
    for start in range(0, max(1, have - length + 1), length):
        yield partial(_rows, batch, torch.arange(start, start + length) % have, have)


def _rows(batch: Batch, rows: torch.Tensor, have: int) -> Batch:
    def cut(leaf: Any) -> Any:
        batched = isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and len(leaf) == have
        return leaf[rows] if batched else leaf

    return pytree.tree_map(cut, batch)
