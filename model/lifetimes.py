"""Lifetimes of a captured graph's intermediate tensors, and the most that are alive at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import fx

from .blocks import Block
from .capture import Captured
from .coupling import Coupling
from .coupling.units import Vector
from .coupling.walk import operator_name
from .liveness import ALWAYS, Liveness

# Operators whose result shares the memory of their first argument.
# fmt: off
_ALIASES = frozenset([
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze",
    "unsqueeze", "slice", "narrow", "select", "split_with_sizes", "split", "chunk", "unbind", "expand",
    "expand_as", "view_as", "detach", "alias", "getitem", "dropout", "contiguous", "to", "lift_fresh",
])
# fmt: on


@dataclass(frozen=True)
class _Read:
    """A reader of a tensor's memory."""

    step: int
    shares: bool  # its result lies in that memory: what reads the result reads it too
    condition: int  # when it is computed
    block: int  # and only while (``dropped`` False) or once (True) this block is dropped; -1: either
    dropped: bool = False


class Lifetimes:
    """Allocated tensors and who reads them, with all blocks or without some. Steps are nodes' positions.

    Attributes:
        tensors: bytes of each allocated tensor, for one sample, as a factor and the labels of its axes.
        alive: [steps, tensors] of 0 and 1, all blocks in place: who is alive when a tensor is born. Tensors
            that come to be only once blocks are dropped are the last ones of ``tensors`` and not in it.
        steps: of the nodes, by name.
        owners: number of the tensor in whose memory a node's value lies, by name.
    """

    def __init__(
        self, captured: Captured, coupling: Coupling, blocks: Sequence[Block], liveness: Liveness
    ) -> None:
        nodes = [n for n in captured.graph_module.graph.nodes if n.op != "get_attr"]
        at = {n: i for i, n in enumerate(nodes)}
        self.steps = {n.name: i for n, i in at.items()}
        by_name = {n.name: n for n in nodes}
        owner: dict[fx.Node, fx.Node] = {}
        for n in nodes:
            first = n.args[0] if n.args else None
            name, writes = operator_name(n.target) if n.op == "call_function" else ("", False)
            shares = n.op == "call_function" and (name in _ALIASES or writes)
            if shares and isinstance(first, fx.Node) and first in owner:
                owner[n] = owner[first]
            elif n.name in coupling.tensors:
                owner[n] = n
        roots = [n for n, root in owner.items() if n is root]
        gates = {b.out: k for k, b in enumerate(blocks)}
        keeps: dict[str, list[int]] = {}
        for k, b in enumerate(blocks):
            keeps.setdefault(b.keep, []).append(k)
        # A sum written over an operand takes memory of its own once a copy of x stands for it.
        copied = [n for n in owner if n.name in gates and blocks[gates[n.name]].copies and owner[n] is not n]
        self.tensors = [_bytes(n, captured, coupling) for n in (*roots, *copied)]
        number = {n: t for t, n in enumerate(roots)}
        self.owners = {n.name: number[root] for n, root in owner.items()}
        self._born = np.array([at[n] for n in (*roots, *copied)], dtype=np.int64)
        self._conditions = [liveness.of[n.name] for n in (*roots, *copied)]
        # tensor -> block that it goes with although it is read, or (copies) that it comes with
        self._goes = {t: gates[n.name] for t, n in enumerate(roots) if n.name in gates}
        self._goes = {t: k for t, k in self._goes.items() if not blocks[k].copies}
        self._comes = {t: gates[n.name] for t, n in enumerate(copied, start=len(roots))}

        self._reads: dict[int, list[_Read]] = {}  # step of a tensor -> who reads it, latest step first
        for n in reversed(owner):
            reads = [
                _Read(
                    at[u],
                    u in owner and u.args[0] is n and owner[u] is owner[n],
                    liveness.of[u.name],
                    gates.get(u.name, -1),
                )
                for u in n.users
            ]
            for k in keeps.get(n.name, ()):
                b = blocks[k]
                reads.append(_Read(at[by_name[b.out]], not b.copies, liveness.of[b.out], k, dropped=True))
            self._reads[at[n]] = reads

        last = {n: at[n] for n in roots}
        for n, root in owner.items():
            last[root] = max(last[root], *(at[u] for u in n.users), at[root])
        births, self._ends = self._born[: len(roots)], np.array([last[n] for n in roots], dtype=np.int64)
        self.alive = ((births <= births[:, None]) & (births[:, None] <= self._ends)).astype(np.float64)

    def peak(
        self, sizes: np.ndarray, dropped: np.ndarray, holds: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Bytes of all tensors, and of the largest set alive together, each [n].

        Args:
            sizes: [n, tensors] bytes.
            dropped: [n, blocks] bool.
            holds: [conditions, n] bool, of :meth:`Liveness.evaluate`.
        """
        sizes = self._made(sizes, dropped, holds)
        return sizes.sum(axis=1), self._after_births(sizes, dropped, holds)[1].max(axis=1)

    def peaks(
        self, sizes: np.ndarray, dropped: np.ndarray, holds: np.ndarray, begins: Sequence[int]
    ) -> np.ndarray:
        """Bytes of the largest set alive together within each of consecutive segments, [n, segments].

        Args:
            sizes, dropped, holds: as for :meth:`peak`.
            begins: first step of each segment, rising.
        """
        if dropped.any():
            births, after = self._after_births(self._made(sizes, dropped, holds), dropped, holds)
        else:
            roots = len(self.alive)
            births, after = self._born[:roots], sizes[:, :roots] @ self.alive.T
        edges = [*np.searchsorted(births, begins).tolist(), len(births)]
        spans = pairwise(edges)
        return np.stack([after[:, i:j].max(axis=1, initial=0.0) for i, j in spans], axis=1)

    def at(
        self, sizes: np.ndarray, dropped: np.ndarray, holds: np.ndarray, steps: Sequence[int]
    ) -> np.ndarray:
        """Bytes alive while each of some steps runs, what it reads and makes included: [n, steps].

        Args:
            sizes, dropped, holds: as for :meth:`peak`.
        """
        born = self._born
        if not dropped.any():
            sizes, born, ends = sizes[:, : len(self._ends)], born[: len(self._ends)], self._ends[None]
        else:
            sizes = self._made(sizes, dropped, holds)
            needed = self._needed(dropped, holds)
            ends = np.maximum(np.stack([needed[step] for step in born.tolist()], axis=1), born)
        return np.stack([np.where((born <= s) & (s <= ends), sizes, 0.0).sum(axis=1) for s in steps], axis=1)

    def _made(self, sizes: np.ndarray, dropped: np.ndarray, holds: np.ndarray) -> np.ndarray:
        """Bytes [n, tensors] of those tensors that come to be, else 0."""
        made = holds[self._conditions].T
        for t, k in self._goes.items():
            made[:, t] &= ~dropped[:, k]
        for t, k in self._comes.items():
            made[:, t] &= dropped[:, k]
        return sizes * made

    def _after_births(
        self, sizes: np.ndarray, dropped: np.ndarray, holds: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Steps at which tensors are born, rising; bytes alive right after each birth, [n, births]."""
        rows, tensors = sizes.shape
        order = np.argsort(self._born, kind="stable")
        needed = self._needed(dropped, holds)
        ends = np.stack([needed[step] for step in self._born.tolist()], axis=1)  # [n, tensors]
        freed = np.searchsorted(self._born[order], np.maximum(ends, self._born), side="right")
        change = np.zeros((rows, tensors + 1))
        change[:, :tensors] = sizes[:, order]
        place = freed + np.arange(rows)[:, None] * (tensors + 1)
        change -= np.bincount(place.ravel(), sizes.ravel(), change.size).reshape(change.shape)
        return self._born[order], np.cumsum(change, axis=1)[:, :tensors]

    def _needed(self, dropped: np.ndarray, holds: np.ndarray) -> dict[int, np.ndarray]:
        """For the tensor of every step the last step [n] at which its memory is read; 0: never."""
        needed: dict[int, np.ndarray] = {}
        for step, reads in self._reads.items():
            last = np.zeros(len(dropped), dtype=np.int64)
            for read in reads:
                end = np.maximum(read.step, needed[read.step]) if read.shares else read.step
                later = np.maximum(last, end)
                if read.block < 0 and read.condition == ALWAYS:
                    last = later
                    continue
                happens = holds[read.condition]
                if read.block >= 0:
                    happens = happens & (dropped[:, read.block] == read.dropped)
                last = np.where(happens, later, last)
            needed[step] = last
        return needed


def _bytes(n: fx.Node, captured: Captured, coupling: Coupling) -> tuple[float, tuple[Vector, ...]]:
    value = n.meta.get("val")
    factor = float(value.element_size() if isinstance(value, torch.Tensor) else 4) / captured.batch
    vectors = []
    for length, v in coupling.tensors[n.name]:
        if v is None:
            factor *= length
        else:
            vectors.append(v)
    return factor, tuple(vectors)
