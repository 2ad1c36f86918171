"""A call of a network as the cost tables of its segments see it."""

from __future__ import annotations

from dataclasses import dataclass


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
