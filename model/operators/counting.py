"""Counting of what an operator costs, from the modules that it builds and nothing else."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..counter import Counter

# What they give beside the sums differs by device and type, and goes at once.
_BAGS = (torch.ops.aten._embedding_bag, torch.ops.aten._embedding_bag_forward_only)


@dataclass(frozen=True)
class Count:
    """Costs of one call on one sample."""

    macs: float
    params: int
    bytes: int  # of parameters and buffers
    activations: int  # bytes of all tensors that it makes
    peak: int  # bytes of those alive at once, most; its input not among them
    output: int  # bytes of its output
    weights: tuple[tuple[int, ...], ...]  # shapes of those of its parameters that are multiplied with


def count(module: nn.Module, x: torch.Tensor) -> Count:
    """What ``module`` costs on ``x``, one sample; both may be on the device ``meta``."""
    with torch.no_grad(), _Costs() as made:
        y = module(x)
    params = list(module.parameters())
    held = (*params, *module.buffers())
    return Count(
        made.macs,
        sum(p.numel() for p in params),
        sum(t.numel() * t.element_size() for t in held),
        made.total,
        made.peak,
        y.numel() * y.element_size(),
        tuple(tuple(p.shape) for p in params if p.dim() > 1),
    )


@cache
def _flops() -> Mapping[Any, Callable[..., int]]:
    return Counter().flop_registry


class _Costs(TorchDispatchMode):
    """Adds up the multiply-accumulates of what runs, and the bytes of new tensors while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0.0
        self.total = self.peak = self._alive = 0
        self._known: set[int] = set()
        self._flops = _flops()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if (flops := self._flops.get(func._overloadpacket)) is not None:
            self.macs += flops(*args, **kwargs, out_val=out) / 2
        if func.is_view:
            return out
        read = {id(t.untyped_storage()) for t in args if isinstance(t, torch.Tensor)}
        made = (out,) if isinstance(out, torch.Tensor) else pytree.tree_leaves(out)
        for tensor in made[:1] if func._overloadpacket in _BAGS else made:
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
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
