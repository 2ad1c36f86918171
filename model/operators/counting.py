"""Counting of what an operator costs, from the modules that it builds and nothing else."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..counter import Counter


@dataclass(frozen=True)
class Count:
    """Costs of one call on one sample."""

    macs: float
    params: int
    bytes: int  # of parameters and buffers
    activations: int  # bytes of all tensors that it makes
    peak: int  # bytes of those alive at once, most; its input not among them
    output: int  # bytes of its output


def count(module: nn.Module, x: torch.Tensor) -> Count:
    """What ``module`` costs on ``x``, one sample; both may be on the device ``meta``."""
    with torch.no_grad(), Counter() as counter, _Allocations() as made:
        y = module(x)
    held = (*module.parameters(), *module.buffers())
    return Count(
        counter.macs,
        sum(p.numel() for p in module.parameters()),
        sum(t.numel() * t.element_size() for t in held),
        made.total,
        made.peak,
        y.numel() * y.element_size(),
    )


class _Allocations(TorchDispatchMode):
    """Adds up the bytes of new tensors while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.total = self.peak = self._alive = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        read = {id(_storage(t)) for t in _tensors((args, kwargs))}
        for tensor in _tensors(out):
            storage = _storage(tensor)
            if id(storage) in read or id(storage) in self._known:
                continue
            size = tensor.numel() * tensor.element_size()
            self._known.add(id(storage))
            self.total += size
            self._alive += size
            weakref.finalize(storage, self._freed, id(storage), size)
        self.peak = max(self.peak, self._alive)
        return out

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._alive -= size


def _storage(tensor: torch.Tensor) -> Any:
    return tensor.untyped_storage()


def _tensors(values: Any) -> list[torch.Tensor]:
    return [t for t in pytree.tree_leaves(values) if isinstance(t, torch.Tensor)]
