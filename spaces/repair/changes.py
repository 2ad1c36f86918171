"""What a layer's weights gain when some of its inputs go, kept for the next candidate with the same cut."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

BYTES = 64 * 2**20  # of all changes kept


@dataclass(frozen=True)
class Change:
    """For every output of a consumer, whether or not it stays."""

    weight: torch.Tensor  # [outputs, kept columns of one convolution group, shared], in the weight's type
    constant: torch.Tensor  # [outputs]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.constant.nbytes


class Changes:
    """Changes by consumer and cut, at most ``bytes`` of them; the least recently used go first.

    Candidates of one space cut a group in only a few ways, so that most changes are found here.
    """

    def __init__(self, *, bytes: int = BYTES) -> None:
        self.bytes = bytes
        self.nbytes = 0
        self._held: OrderedDict[Hashable, Change] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable, make: Callable[[], Change]) -> Change:
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        change = make()
        if change.nbytes > self.bytes // 4:
            return change
        self._held[key] = change
        self.nbytes += change.nbytes
        while self.nbytes > self.bytes:
            self.nbytes -= self._held.popitem(last=False)[1].nbytes
        return change

    def __getstate__(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "nbytes": 0, "_held": OrderedDict()}
