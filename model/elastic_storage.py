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
# The fingerprint sums blocks of eight-byte words modulo 2^64, each word times an odd number of its own: any
# change of one word, and of where words stand, changes the sum.
_WEIGHTS = np.random.default_rng(0).integers(0, 2**63, 256) * 2 + 1


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
        # The bounds of a slice may count some units of a group and not others.
        self._uneven = [i for i, v in enumerate(self.vectors) if not self._is_even(v)]

    def index(self, v: Vector | None) -> int | None:
        """Place of ``v`` among :attr:`vectors`."""
        return None if v is None else self._at[id(v)]

    def lengths(self, kept: np.ndarray, alive: np.ndarray) -> list[int]:
        """Positions that stay, per vector.

        Args:
            kept: [groups], how many units stay.
            alive: [units + 1] bool, or longer: where they stand.
        """
        lengths: list[int] = np.rint(self._positions @ np.append(kept, 1)).astype(np.int64).tolist()
        for i in self._uneven:
            lengths[i] = int(np.count_nonzero(alive[self.vectors[i]]))
        return lengths

    def touched(self, kept: np.ndarray, before: np.ndarray | None) -> list[bool]:
        """Per vector: does it keep other positions than it did ``before``?"""
        if before is None:
            return [True] * len(self.vectors)
        return (self._uses @ (kept != before)).tolist()

    def leading(self, kept: np.ndarray) -> np.ndarray:
        """Which labels stay when the first units of each group do: [units + 1] bool."""
        alive: np.ndarray = self.unit_of < np.append(kept, 1)[self.group_of]
        return alive

    def _is_even(self, v: Vector) -> bool:
        """Has every unit of a group as many positions on the axis as the others?"""
        counts = np.bincount(v, minlength=len(self.group_of))
        last = np.zeros(self._uses.shape[1] + 1, dtype=np.int64)
        last[self.group_of] = counts
        free = self.group_of < self._uses.shape[1]
        return bool((counts == last[self.group_of])[free].all())

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

    def shaped(
        self, rows: torch.Tensor, lengths: list[int], positions: Callable[[int], torch.Tensor]
    ) -> torch.Tensor:
        """The tensor, from the rows that stay of it."""
        for axis, vector in self.gathered:
            rows = rows.index_select(axis, positions(vector))
        for axis, vector in self.sliced:
            rows = rows.narrow(axis, 0, lengths[vector])
        return rows.movedim(0, self.front)

    def moved(self, sizes: Sequence[int]) -> list[int]:
        """Sizes or strides of the pool's axes in the tensor's own order."""
        first, *others = sizes
        return [*others[: self.front], first, *others[self.front :]]


class _Pool:
    """Tensors of one type and one shape of row, behind each other: one gather serves all."""

    def __init__(self, members: list[_Rows], whole: list[torch.Tensor], widths: Widths) -> None:
        self._members = members
        self._holders = [m.holder for m in members]
        self.written = all(t.dim() == 1 for t in whole)  # by forward passes, perhaps
        self._rows = torch.cat([t.movedim(m.front, 0) for m, t in zip(members, whole, strict=True)])
        self._room = torch.empty_like(self._rows)  # what is gathered is written here
        self._row = self._room.stride(0)
        self._shapes = [m.moved(self._room.shape) for m in members]  # but for what is cut
        self._strides = [m.moved(self._room.stride()) for m in members]
        followed = [None if m.vector is None else widths.vectors[m.vector] for m in members]
        self.labels = np.concatenate(
            [np.zeros(m.length, np.int64) if v is None else v for m, v in zip(members, followed, strict=True)]
        )
        self._sizes = np.array([m.length for m in members])
        self._cut = np.array([m.vector is not None for m in members])
        self._vectors = np.array([m.vector for m in members if m.vector is not None], dtype=np.int64)
        others = {vector for m in members for _, vector in m.sliced + m.gathered}
        self.vectors = others | set(self._vectors.tolist())  # all that its tensors follow

    def fill(self, stays: torch.Tensor, lengths: list[int], positions: Callable[[int], torch.Tensor]) -> None:
        """Set the holders' data to the rows ``stays``."""
        room = self._room.narrow(0, 0, len(stays))
        torch.index_select(self._rows, 0, stays, out=room)
        self._sizes[self._cut] = np.array(lengths)[self._vectors]
        sizes = self._sizes.tolist()
        if self.written:
            for holder, piece in zip(self._holders, torch.unsafe_split_with_sizes(room, sizes), strict=True):
                holder.data = piece
            return
        start = 0
        for member, size, shape, stride in zip(
            self._members, sizes, self._shapes, self._strides, strict=True
        ):
            if member.gathered:
                piece = member.shaped(room.narrow(0, start, size), lengths, positions)
            else:  # the same in one call
                shape = shape.copy()
                shape[member.front] = size
                for axis, vector in member.sliced:
                    shape[axis - (axis <= member.front)] = lengths[vector]
                piece = room.as_strided(shape, stride, start * self._row)
            member.holder.data = piece
            start += size


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
        self._axes: dict[str, list[tuple[int, int]]] = {  # (axis, vector) of the followed ones
            name: [(a, i) for a, v in enumerate(labels.get(name, ())) if (i := widths.index(v)) is not None]
            for name in tensors
        }
        used = {i for axes in self._axes.values() for _, i in axes}
        self._sources = {i: _source(widths.vectors[i], content) for i in used}
        prefix = {i: widths.is_prefix(widths.vectors[i]) for i in used}
        self._slices: dict[str, _Slice] = {}
        # By type, shape of row and last part of the name: means and variances of all normalisations are then
        # two pools with the same positions to gather.
        pooled: dict[tuple[torch.dtype, torch.Size, str], list[_Rows]] = {}
        scalars: dict[torch.dtype, list[str]] = {}
        end = 0
        for name, tensor in tensors.items():
            holder, axes = holders[name], self._axes[name]
            segments = [a for a, i in axes if not prefix[i]]
            if tensor.dim() == 0:
                scalars.setdefault(tensor.dtype, []).append(name)
            elif tensor.dim() == 1 or segments:
                rows = _rows(name, tensor, holder, axes, prefix, segments[0] if segments else 0)
                kind = tensor.dtype, tensor.movedim(rows.front, 0).shape[1:], name.rpartition(".")[2]
                pooled.setdefault(kind, []).append(rows)
            else:
                stride = torch.empty(tensor.shape, device="meta").stride()
                offset = end // tensor.element_size()
                self._slices[name] = _Slice(holder, tensor, offset, list(tensor.shape), stride, axes)
                end += -(-tensor.numel() * tensor.element_size() // _ALIGN) * _ALIGN
        self._store = torch.zeros(-(-end // _WEIGHTS.nbytes) * _WEIGHTS.nbytes, dtype=torch.uint8)
        self._fill()
        self._fingerprint = self._sums()
        # [pools with equal labels]
        self._pools: dict[bytes, list[_Pool]] = {}
        for members in pooled.values():
            pool = _Pool(members, [self._ordered(m.name) for m in members], widths)
            self._pools.setdefault(pool.labels.tobytes(), []).append(pool)
        self._scalars = [
            ([holders[n] for n in names], torch.stack([tensors[n].detach() for n in names]))
            for names in scalars.values()
        ]
        self._kept: np.ndarray | None = None

    def cut(self, kept: np.ndarray) -> None:
        """Set the holders' data to the first ``kept`` [groups] units of each group."""
        alive = self._widths.leading(kept)
        lengths, touched = self._widths.lengths(kept, alive), self._widths.touched(kept, self._kept)
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
        for pools in self._pools.values():
            stays = _staying(pools[0].labels, alive)
            for pool in pools:
                if pool.written or any(touched[v] for v in pool.vectors):
                    pool.fill(stays, lengths, lambda i: _staying(self._widths.vectors[i], alive))
        for holders, values in self._scalars:
            for holder, value in zip(holders, values.clone().unbind(), strict=True):
                holder.data = value
        self._kept = kept.copy()

    def forget(self) -> None:
        """The holders' data was changed from outside: the next cut sets all of it."""
        self._kept = None

    def restore(self) -> bool:
        """Write the original weights again where somebody wrote on the store; was that needed?"""
        if np.array_equal(self._sums(), self._fingerprint):
            return False
        self._fill()
        return True

    def _fill(self) -> None:
        for name, s in self._slices.items():
            ordered = self._ordered(name)
            s.base = self._store.view(ordered.dtype)
            s.base.as_strided(s.shape, s.stride, s.offset).copy_(ordered)

    def _ordered(self, name: str) -> torch.Tensor:
        """A tensor with the units of every group permuted."""
        tensor = self._tensors[name].detach()
        for axis, i in self._axes[name]:
            tensor = tensor.index_select(axis, self._sources[i])
        return tensor

    def _sums(self) -> np.ndarray:
        """A number per block of the store, which changes with its contents."""
        sums: np.ndarray = self._store.numpy().view(np.int64).reshape(-1, len(_WEIGHTS)) @ _WEIGHTS
        return sums


def _rows(
    name: str,
    tensor: torch.Tensor,
    holder: torch.Tensor,
    axes: list[tuple[int, int]],
    prefix: Mapping[int, bool],
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


def _staying(labels: np.ndarray, alive: np.ndarray) -> torch.Tensor:
    """Positions whose label stays, ascending."""
    return torch.from_numpy(np.flatnonzero(alive[labels]))


def _source(v: Vector, content: np.ndarray) -> torch.Tensor:
    """Positions in the order in which they stand after the permutation of units.

    The k-th position of a label takes what stood at the k-th position of the label ``content`` names.
    """
    order = np.argsort(v, kind="stable")
    first = np.searchsorted(v[order], np.arange(len(content)))  # [units + 1], where a label starts in order
    nth = np.empty(len(v), dtype=np.int64)
    nth[order] = np.arange(len(v)) - first[v[order]]
    return torch.from_numpy(order[first[content[v]] + nth])
