"""Batches of inputs as ``(args, kwargs)``: where their samples are counted, and how to take some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .error import ExportError

Inputs = tuple[tuple[Any, ...], dict[str, Any]]  # (args, kwargs)


def on_cpu(inputs: tuple[tuple[Any, ...], Mapping[str, Any]]) -> Inputs:
    args, kwargs = pytree.tree_map(
        lambda leaf: leaf.detach().cpu() if isinstance(leaf, torch.Tensor) else leaf,
        (tuple(inputs[0]), dict(inputs[1])),
    )
    return args, kwargs


def batch_length(inputs: Inputs) -> int:
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, torch.Tensor) and leaf.dim():
            return int(leaf.shape[0])
    raise ExportError("the inputs hold no tensor with a batch axis; give one batch of real inputs")


def batched(batches: Sequence[Inputs]) -> frozenset[int]:
    """Positions of the tensors whose first axis is as long as the batch, in all batches alike."""
    return frozenset.intersection(
        *(
            frozenset(
                position
                for position, leaf in enumerate(pytree.tree_leaves(one))
                if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == batch_length(one)
            )
            for one in batches
        )
    )


def resized(inputs: Inputs, length: int, positions: frozenset[int]) -> Inputs:
    """``inputs`` with ``length`` samples: the first ones, from the start again where there are too few.

    ``positions`` are those of the leaves that :func:`batched` found.
    """
    rows = torch.arange(length) % batch_length(inputs)
    leaves, structure = pytree.tree_flatten(inputs)
    args, kwargs = pytree.tree_unflatten(
        [leaf[rows] if position in positions else leaf for position, leaf in enumerate(leaves)], structure
    )
    return args, kwargs


def samples(inputs: Sequence[Inputs]) -> int:
    """Samples in all batches together."""
    return sum(batch_length(one) for one in inputs)
