"""Crossing tensors at the places where a network may be cut, whatever residual blocks are dropped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import fx

from ..blocks import Block
from .cuts import Order
from .provenance import Provenance, Sized

NONE = -1


@dataclass(frozen=True, slots=True)
class CrossingValue:
    """A value that one call gives and others read; inputs of the network are values at -1."""

    at: int  # position of the call
    size: float  # bytes of the unchanged network; infinite for what is no tensor
    condition: int  # of :class:`Liveness`: when the call is there
    readers: tuple[int, ...]  # calls that read it, as values, later ones; NONE: the network returns it
    base: int = NONE  # value of which it is a view, and need not be sent beside
    gate: int = NONE  # block that ends here: dropped, what it was entered with takes this value's place
    copies: bool = False  # or a copy of that
    keeps: tuple[int, ...] = ()  # values that end blocks, and that this one takes the place of


class Crossing:
    """The rule of :meth:`.stages.cuts.Order.crossing` for many networks at once.

    Args:
        values: in an order in which they can be made.
        places: position of the last call before each place, rising.
        end: number of calls.
    """

    def __init__(self, values: Sequence[CrossingValue], places: Sequence[int], end: int) -> None:
        self._values, self._places, self._end = tuple(values), np.array(places, dtype=np.int64), end
        self._carrier0 = self._carriers(None)

    def sent(self, dropped: np.ndarray, holds: np.ndarray) -> np.ndarray:
        """[places, values, n] bool: who is sent where.

        Args:
            dropped: [n, blocks] bool.
            holds: [conditions, n] bool, of :meth:`Liveness.evaluate`.
        """
        values, places = self._values, self._places
        n = len(dropped)
        there = [holds[v.condition] if v.condition else np.ones(n, dtype=bool) for v in values]
        last: list[np.ndarray] = [np.empty(0)] * len(values)
        for i in reversed(range(len(values))):
            end = np.full(n, -1, dtype=np.int64)
            for r in values[i].readers:
                if r == NONE:
                    end[:] = self._end
                    continue
                reader = values[r]
                reads = there[r] if reader.gate == NONE else there[r] & ~dropped[:, reader.gate]
                end = np.where(reads, np.maximum(end, reader.at), end)
            for o in values[i].keeps:
                out = values[o]
                until = np.full(n, out.at) if out.copies else last[o]
                end = np.where(there[o] & dropped[:, out.gate], np.maximum(end, until), end)
            last[i] = end
        carrier = self._carriers(dropped) if dropped.any() else self._carrier0
        sent = np.zeros((len(places), len(values), n), dtype=bool)
        for i, v in enumerate(values):
            made = there[i] if v.gate == NONE or v.copies else there[i] & ~dropped[:, v.gate]
            live = made & (v.at <= places[:, None]) & (places[:, None] < last[i])  # [places, n]
            if not live.any():
                continue
            for c in np.unique(carrier[i]).tolist():
                sent[:, c] |= live & (carrier[i] == c)
        blocked: dict[int, np.ndarray] = {}
        for i, v in enumerate(values):
            over = sent[:, v.base] | blocked.get(v.base, False) if v.base != NONE else None
            if v.gate != NONE and not v.copies and dropped[:, v.gate].any():
                keep = self._kept(i)
                instead = sent[:, keep] | blocked.get(keep, False)
                over = np.where(dropped[:, v.gate], instead, False if over is None else over)
            if over is not None:
                blocked[i] = over
        for i, over in blocked.items():
            sent[:, i] &= ~over
        return sent

    def _carriers(self, dropped: np.ndarray | None) -> list[np.ndarray]:
        """For each value the smallest that it can be made of, of equals the first: [n] or [1] each."""
        sizes = np.array([v.size for v in self._values])
        out: list[np.ndarray] = []
        for i, v in enumerate(self._values):
            own = np.array([i])
            if v.base != NONE:
                base = out[v.base]
                own = np.where(sizes[base] <= v.size, base, i)
            if dropped is not None and v.gate != NONE and not v.copies:
                own = np.where(dropped[:, v.gate], out[self._kept(i)], own)
            out.append(own)
        return out

    def _kept(self, out: int) -> int:
        return next(i for i, v in enumerate(self._values) if out in v.keeps)


# -- A call of a network as the cost tables of its segments see it --------------------------------------


@dataclass(frozen=True, slots=True)
class SegmentCall:
    """A call of the unchanged network's functional graph."""

    name: str
    operator: str  # as a profile names it
    kind: str  # bare name of the operator: "conv2d"
    segment: int
    condition: int  # of :class:`Liveness`
    gate: int  # block that ends here, or -1: dropped, the call is not there
    copies: bool  # or is a copy of what the block was entered with
    is_view: bool  # gives no new memory, and is made where it is read


# -- The values of a functional graph as :class:`Crossing` reads them -----------------------------------


def crossing_values(
    order: Order,
    origin: Provenance,
    calls: Sequence[SegmentCall],
    blocks: Sequence[Block],
    conditions: Mapping[str, int],
) -> tuple[list[CrossingValue], list[Sized | None]]:
    """What calls and inputs give, for :class:`Crossing`, with bytes where these are followed."""
    nodes = list(order.at)
    at = {n: i for i, n in enumerate(nodes)}
    by_source: dict[str, fx.Node] = {}
    for n in nodes:
        source = origin.source(n)
        if source is not None:
            by_source.setdefault(source, n)
    keeps: dict[int, list[int]] = {}
    for block in blocks:
        keep = origin.functional(block.keep, by_source)
        out = by_source.get(block.out)
        if keep is not None and out is not None:
            keeps.setdefault(at[keep], []).append(at[out])
    values = []
    for i, n in enumerate(nodes):
        call = calls[order.at[n]] if order.at[n] >= 0 else None
        readers = [at[u] for u in n.users if u in at]
        readers += [NONE for u in n.users if u.op == "output"]
        size = order.bytes(n)
        base = at[b] if order.is_view(n) and (b := _base(n)) in at else NONE
        values.append(
            CrossingValue(
                order.at[n],
                math.inf if size is None else size,
                call.condition if call else 0,
                tuple(readers),
                base,
                call.gate if call else NONE,
                bool(call and call.copies),
                tuple(keeps.get(i, ())),
            )
        )
    return values, [origin.bytes(n) for n in nodes]


def _base(n: fx.Node) -> fx.Node | None:
    first = n.args[0] if n.args else None
    return first if isinstance(first, fx.Node) else None
