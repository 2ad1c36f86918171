"""Weights of one network in importance order, so that any cut of it is made of leading slices.

Within every group the units are permuted, along all followed axes alike, which leaves the network's function
unchanged; the best unit comes first. A cut then keeps the first units of each group. Where these are leading
positions of an axis the weight is a view; where an axis holds several segments (concatenations, packed
projections) they are gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .coupling import Group
from .coupling.units import Vector

Labels = Mapping[str, tuple[Vector | None, ...]]  # canonical name -> unit labels per axis

_ALIGN = 64  # bytes, between tensors in the store
_BLOCK = 64  # eight-byte words that one number of the fingerprint sums


class Widths:
    """How many positions of each followed axis stay, from how many units of each group stay.

    Args:
        vectors: unit labels of axes; equal ones are one object.
    """

    def __init__(self, units: int, groups: Sequence[Group], vectors: Iterable[Vector | None]) -> None:
        self.group_of = np.full(units + 1, len(groups))  # [units + 1], by label; the last counts as a group
        self.unit_of = np.zeros(units + 1, dtype=np.int64)  # [units + 1], place of a label in its group
        for i, group in enumerate(groups):
            self.group_of[group.labels] = i
            self.unit_of[group.labels] = np.arange(group.size)
        distinct = {id(v): v for v in vectors if v is not None}
        self.vectors: list[Vector] = list(distinct.values())
        self._at = {key: i for i, key in enumerate(distinct)}
        # [vectors, groups + 1]: positions per unit of each group, then positions that always stay
        self._positions = np.zeros((len(self.vectors), len(groups) + 1))
        for row, v in zip(self._positions, self.vectors, strict=True):
            row[:] = np.bincount(self.group_of[v], minlength=len(groups) + 1)
        sizes = np.array([*(g.size for g in groups), 1])
        self._positions /= sizes
        self._uses = self._positions[:, :-1] > 0

    def index(self, v: Vector | None) -> int | None:
        """Place of ``v`` among :attr:`vectors`."""
        return None if v is None else self._at[id(v)]

    def lengths(self, kept: np.ndarray) -> list[int]:
        """Positions that stay, per vector, where ``kept`` [groups] units do."""
        return (self._positions @ np.append(kept, 1)).astype(np.int64).tolist()

    def touched(self, kept: np.ndarray, before: np.ndarray | None) -> list[bool]:
        """Per vector: does it keep other positions than it did ``before``?"""
        if before is None:
            return [True] * len(self.vectors)
        return (self._uses @ (kept != before)).tolist()

    def leading(self, kept: np.ndarray) -> np.ndarray:
        """Which labels stay when the first units of each group do: [units + 1] bool."""
        alive: np.ndarray = self.unit_of < np.append(kept, 1)[self.group_of]
        return alive

    def positions(self, i: int, alive: np.ndarray) -> torch.Tensor:
        """Which positions of the i-th vector stay, ascending."""
        return torch.from_numpy(np.flatnonzero(alive[self.vectors[i]]))

    def is_prefix(self, v: Vector) -> bool:
        """Are the first units of a group always the leading positions?"""
        groups, units = self.group_of[v], self.unit_of[v]
        fixed = groups == self._uses.shape[1]
        # Fixed positions first, then one group in the order of its units.
        return len(np.unique(groups[~fixed])) < 2 and bool((np.diff(np.where(fixed, -1, units)) >= 0).all())


@dataclass(slots=True)
class _Slice:
    """A tensor of which leading positions stay on every axis: a view of the store."""

    holder: torch.Tensor
    base: torch.Tensor  # the whole store in this tensor's type
    offset: int  # elements, as the strides
    shape: list[int]
    stride: tuple[int, ...]
    axes: list[tuple[int, int]]  # (axis, vector)


@dataclass(slots=True)
class _Rows:
    """A tensor in a pool; its first axis there is the one whose positions are gathered."""

    name: str
    holder: torch.Tensor
    front: int  # the axis that goes first
    length: int  # of that axis
    vector: int | None  # that it follows
    sliced: list[tuple[int, int]]  # (axis in the pool, vector) of which leading positions stay
    gathered: list[tuple[int, int]]  # (axis in the pool, vector) of which segments do


@dataclass(slots=True)
class _Pool:
    """Tensors of one type and one shape of row, behind each other: one gather serves all."""

    members: list[_Rows]
    rows: torch.Tensor  # [all rows, ...]
    labels: np.ndarray  # [all rows]
    room: torch.Tensor  # as rows: where it is gathered to
    vectors: list[int]  # all that its members follow

    def fill(self, alive: np.ndarray, lengths: list[int], index: Callable[[int], torch.Tensor]) -> None:
        stays = torch.from_numpy(np.flatnonzero(alive[self.labels]))
        room = self.room.narrow(0, 0, len(stays))
        torch.index_select(self.rows, 0, stays, out=room)
        sizes = [m.length if m.vector is None else lengths[m.vector] for m in self.members]
        for m, piece in zip(self.members, torch.unsafe_split_with_sizes(room, sizes), strict=True):
            if m.gathered or m.sliced or m.front:
                for axis, vector in m.gathered:
                    piece = piece.index_select(axis, index(vector))
                for axis, vector in m.sliced:
                    piece = piece.narrow(axis, 0, lengths[vector])
                piece = piece.movedim(0, m.front)
            m.holder.data = piece


class Storage:
    """The permuted tensors, and the means to hand out a cut of them.

    A tensor of two or more axes is a view of one store where leading positions stay on all of them; else it
    is gathered. Tensors of one axis or none (biases, scales, running statistics, counters) are copied at
    every cut, since they are what forward passes write on.

    Args:
        tensors: the whole tensors by name; only read.
        holders: the network's own tensor objects by name, whose data :meth:`cut` sets.
        orders: units of each group, best first.

    Raises:
        TypeError: a tensor that is no plain dense one.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        holders: Mapping[str, torch.Tensor],
        labels: Labels,
        widths: Widths,
        groups: Sequence[Group],
        orders: Mapping[str, np.ndarray],
    ) -> None:
        for name, tensor in tensors.items():
            if tensor.layout is not torch.strided or tensor.is_quantized:
                raise TypeError(f"{name} is no dense tensor: {tensor.layout}, {tensor.dtype}")
        content = np.arange(len(widths.group_of))  # label -> label whose weights stand there now
        for group in groups:
            content[group.labels] = group.labels[orders[group.name]]
        self._tensors, self._widths = tensors, widths
        self._sources = [_source(v, content) for v in widths.vectors]
        self._axes: dict[str, list[tuple[int, int]]] = {  # (axis, vector) of the followed ones
            name: [(a, i) for a, v in enumerate(labels.get(name, ())) if (i := widths.index(v)) is not None]
            for name in tensors
        }
        prefix = [widths.is_prefix(v) for v in widths.vectors]
        self._slices: dict[str, _Slice] = {}
        pooled: dict[tuple[torch.dtype, torch.Size], list[_Rows]] = {}
        scalars: dict[torch.dtype, list[str]] = {}
        end = 0
        for name, tensor in tensors.items():
            holder, axes = holders[name], self._axes[name]
            segments = [a for a, i in axes if not prefix[i]]
            if tensor.dim() == 0:
                scalars.setdefault(tensor.dtype, []).append(name)
            elif tensor.dim() == 1 or segments:
                rows = _rows(name, tensor, holder, axes, prefix, segments[0] if segments else 0)
                shape = tensor.movedim(rows.front, 0).shape[1:]
                pooled.setdefault((tensor.dtype, shape), []).append(rows)
            else:
                stride = torch.empty(tensor.shape, device="meta").stride()
                offset = end // tensor.element_size()
                self._slices[name] = _Slice(holder, tensor, offset, list(tensor.shape), stride, axes)
                end += -(-tensor.numel() * tensor.element_size() // _ALIGN) * _ALIGN
        self._store = torch.zeros(-(-end // (8 * _BLOCK)) * 8 * _BLOCK, dtype=torch.uint8)
        self._fill()
        self._fingerprint = self._sums()
        self._pools = [self._pool(members) for members in pooled.values()]
        self._scalars = [
            ([holders[n] for n in names], torch.stack([tensors[n].detach() for n in names]))
            for names in scalars.values()
        ]
        self._kept: np.ndarray | None = None

    def cut(self, kept: np.ndarray) -> None:
        """Set the holders' data to the first ``kept`` [groups] units of each group."""
        lengths, touched = self._widths.lengths(kept), self._widths.touched(kept, self._kept)
        alive = self._widths.leading(kept)
        first, self._kept = self._kept is None, None  # until all is done
        for s in self._slices.values():
            for _, vector in s.axes:
                if touched[vector]:
                    break
            else:
                if not first:
                    continue
            shape = s.shape.copy()
            for axis, vector in s.axes:
                shape[axis] = lengths[vector]
            s.holder.data = s.base.as_strided(shape, s.stride, s.offset)
        for pool in self._pools:
            if pool.rows.dim() == 1 or any(touched[v] for v in pool.vectors):
                pool.fill(alive, lengths, lambda i: self._widths.positions(i, alive))
        for holders, values in self._scalars:
            for holder, value in zip(holders, values.clone().unbind(), strict=True):
                holder.data = value
        self._kept = kept.copy()

    def forget(self) -> None:
        """The holders' data was changed from outside: the next cut sets all of it."""
        self._kept = None

    def restore(self) -> bool:
        """Write the original weights again where somebody wrote on the store; was that needed?"""
        if torch.equal(self._sums(), self._fingerprint):
            return False
        self._fill()
        return True

    def _fill(self) -> None:
        for name, s in self._slices.items():
            ordered = self._ordered(name)
            s.base = self._store.view(ordered.dtype)
            s.base.as_strided(s.shape, s.stride, s.offset).copy_(ordered)

    def _pool(self, members: list[_Rows]) -> _Pool:
        labels = [
            np.zeros(m.length, np.int64) if m.vector is None else self._widths.vectors[m.vector]
            for m in members
        ]
        rows = torch.cat([self._ordered(m.name).movedim(m.front, 0) for m in members])
        vectors = {i for m in members for _, i in self._axes[m.name]}
        return _Pool(members, rows, np.concatenate(labels), torch.empty_like(rows), sorted(vectors))

    def _ordered(self, name: str) -> torch.Tensor:
        """A tensor with the units of every group permuted."""
        tensor = self._tensors[name].detach()
        for axis, i in self._axes[name]:
            tensor = tensor.index_select(axis, self._sources[i])
        return tensor

    def _sums(self) -> torch.Tensor:
        """A number per 512 bytes of the store that tells whether any bit changed."""
        return self._store.view(torch.int64).view(-1, _BLOCK).sum(1)


def _rows(
    name: str,
    tensor: torch.Tensor,
    holder: torch.Tensor,
    axes: list[tuple[int, int]],
    prefix: list[bool],
    front: int,
) -> _Rows:
    others = [(a + (a < front), i) for a, i in axes if a != front]  # where they are with front at 0
    return _Rows(
        name,
        holder,
        front,
        tensor.shape[front],
        dict(axes).get(front),
        [(a, i) for a, i in others if prefix[i]],
        [(a, i) for a, i in others if not prefix[i]],
    )


def _source(v: Vector, content: np.ndarray) -> torch.Tensor:
    """Positions in the order in which they stand after the permutation of units.

    The k-th position of a label takes what stood at the k-th position of the label ``content`` names.
    """
    order = np.argsort(v, kind="stable")
    first = np.searchsorted(v[order], np.arange(len(content)))  # [units + 1], where a label starts in order
    nth = np.empty(len(v), dtype=np.int64)
    nth[order] = np.arange(len(v)) - first[v[order]]
    return torch.from_numpy(order[first[content[v]] + nth])
