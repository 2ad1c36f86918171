"""What is found in a graph: groups of units that go together, and where they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .units import Vector
from .walk import OUT, Constant, Term


@dataclass(frozen=True)
class Member:
    """A parameter axis that a group's units occupy."""

    parameter: str
    axis: int
    role: str  # "out" makes the units, "in" reads them, "scale" multiplies them, "along" accompanies them
    positions: np.ndarray  # [units, positions per unit] int64, along the axis


@dataclass(frozen=True)
class Group:
    """Units of one kind: each is a set of channels that can only be removed together.

    Every unit of a group takes the same number of positions on every axis of the network, so that costs
    depend on how many units are kept and not on which.
    """

    name: str  # module that first makes the units
    labels: np.ndarray  # [units] int64, in the order of the first member's positions
    members: tuple[Member, ...]
    kind: str = "channels"  # see :mod:`.kinds`

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.labels)

    def makers(self) -> list[Member]:
        """Members that produce the units."""
        return [m for m in self.members if m.role == OUT]


Lengths = tuple[tuple[int, Vector | None], ...]


@dataclass(frozen=True)
class Coupling:
    """All that was found in one graph, as plain arrays (labels: 0 fixed, 1..units otherwise)."""

    units: int
    groups: tuple[Group, ...]
    parameters: dict[str, tuple[Vector | None, ...]]  # canonical name -> labels per axis
    canonical: dict[str, str]  # graph attribute -> canonical name
    tensors: dict[str, Lengths]  # node with one tensor -> (length, labels) per axis
    pieces: dict[str, list[Lengths]]  # node with several tensors -> the same for each
    constants: tuple[Constant, ...]
    macs: dict[tuple[str, int], Term]  # (node, part) -> multiply-accumulates per sample
    reads: dict[str, list[tuple[str, int]]]  # node -> operands that it sums over, with the axis
    statistics: frozenset[str]  # nodes whose statistics run over the kept positions
    frozen: dict[str, str]  # module with channels that cannot go -> reason
