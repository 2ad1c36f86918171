"""The values of a functional graph as :class:`.crossing.Crossing` reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import fx

from ..blocks import Block
from .crossing import NONE, CrossingValue
from .cuts import Order
from .provenance import Provenance, Sized
from .segment_call import SegmentCall


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
