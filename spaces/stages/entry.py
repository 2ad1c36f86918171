"""What a stage takes and gives, and the check of what it is given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

Sizes = tuple[tuple[int, int], ...]  # per axis (k, c): its length is k x batch + c


@dataclass(frozen=True)
class Port:
    """One tensor on its way into or out of a stage."""

    name: str  # the call of the functional graph that makes it, or the caller's input
    dtype: torch.dtype
    sizes: Sizes

    def shape(self, batch: int) -> tuple[int, ...]:
        return tuple(k * batch + c for k, c in self.sizes)

    def bytes(self, batch: int) -> int:
        """Of the dense tensor."""
        return math.prod(self.shape(batch)) * self.dtype.itemsize

    def __str__(self) -> str:
        return _described(self.sizes, self.dtype)


@fx.has_side_effect
def check_entry(
    stage: str,
    values: tuple[Any, ...],
    expected: tuple[tuple[Any, ...], ...],
    batches: tuple[int, int | None],
) -> None:
    """Refuse what a stage was not made for: its part of the guards of the capture.

    Args:
        stage: its name, for the message.
        values: what came in.
        expected: for each a tuple (name, dtype, sizes) of a tensor, or (name, value) of a constant.
        batches: least and most samples.

    Raises:
        ValueError: another rank, size, type or constant; tensors that disagree on the number of samples.
    """
    batch, told_by = None, ""
    for value, (name, *rest) in zip(values, expected, strict=True):
        if len(rest) == 1:
            if type(value) is not type(rest[0]) or value != rest[0]:
                raise ValueError(
                    f"{stage}: {name} is {value!r:.80}, but the network was captured with {rest[0]!r:.80}; "
                    "capture it again for another value"
                )
            continue
        dtype, sizes = rest
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{stage}: {name} must be a tensor {_described(sizes, dtype)}, got {type(value).__name__}"
            )
        if value.dim() != len(sizes) or value.dtype != dtype or not _fits(value, sizes):
            raise ValueError(
                f"{stage}: {name} is {_described(value.shape, value.dtype)}, "
                f"but it takes {_described(sizes, dtype)}; give it what the stage before returns, "
                "and the first stage inputs of the captured size and type"
            )
        for length, (k, c) in zip(value.shape, sizes, strict=True):
            if k == 0:
                continue
            samples = (length - c) // k if k > 1 else length - c
            if batch is None:
                batch, told_by = samples, name
            elif samples != batch:
                raise ValueError(
                    f"{stage}: {name} holds {samples} samples, but {told_by} holds {batch}; "
                    "all inputs must come from the same batch"
                )
    least, most = batches
    if batch is not None and (batch < least or (most is not None and batch > most)):
        raise ValueError(
            f"{stage}: {told_by} holds {batch} samples, but it takes {least} to {most or 'any number'}"
        )


def _fits(value: torch.Tensor, sizes: Sizes) -> bool:
    for length, (k, c) in zip(value.shape, sizes, strict=True):
        if (k == 0 and length != c) or (k > 1 and (length - c) % k != 0):
            return False
    return True


def _described(sizes: Any, dtype: torch.dtype) -> str:
    lengths = [s if isinstance(s, (int, torch.SymInt)) else _length(*s) for s in sizes]
    return f"[{', '.join(map(str, lengths))}] {str(dtype).removeprefix('torch.')}"


def _length(k: int, c: int) -> str:
    if k == 0:
        return str(c)
    return ("batch" if k == 1 else f"{k} x batch") + (f" + {c}" if c > 0 else f" - {-c}" if c < 0 else "")
