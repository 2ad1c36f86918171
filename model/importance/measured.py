"""Criteria that run the network: they measure all groups at once, before any is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils import _pytree as pytree

from ..capture import Captured, batch_length
from ..coupling import Coupling, Group
from ..repair.gram import Inputs

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


# -- The seam for criteria that run the network: they measure all groups at once, before any is scored


@dataclass(frozen=True)
class Evidence:
    """What a network can be measured with."""

    captured: Captured
    coupling: Coupling
    groups: tuple[Group, ...]
    calibration: Sequence[Inputs]  # (args, kwargs) each; empty without calibration

    def inputs(self, criterion: str) -> Sequence[Inputs]:
        """The calibration inputs.

        Raises:
            ValueError: there are none; the message names the criterion and the cure.
        """
        if not self.calibration:
            raise ValueError(
                f"importance {criterion!r} needs calibration data: give space(..., calibration=batches) "
                "with batches = [(args, kwargs), ...], or another importance such as 'l1'"
            )
        return self.calibration


@dataclass(frozen=True)
class Scores:
    """A criterion whose scores are known: [units] float64 by group name, larger matters more."""

    by_group: Mapping[str, np.ndarray]

    def __call__(self, group: Group, parameters: Mapping[str, torch.Tensor]) -> np.ndarray:
        return self.by_group[group.name]


@runtime_checkable
class Measure(Protocol):
    """A criterion that needs to run the network first."""

    def measure(self, evidence: Evidence) -> Scores:
        """Scores of every group of ``evidence``."""
        ...
