"""Cuts: where a network may be cut in two along its depth, what crosses there, and the work on both sides."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator

from ..capture import Captured, flat_inputs
from ..counter import Counter
from .functional import CutError, Functional, base, functionalise, is_random, modules


def macs(network: Functional) -> dict[str, float]:
    """Multiply-accumulates per sample of every call that has some, by running the network on its example."""
    captured = network.captured
    inputs = iter(flat_inputs(captured.graph_module, captured.args, captured.kwargs))
    values: dict[fx.Node, Any] = {}
    out: dict[str, float] = {}
    with torch.no_grad():
        for n in network.graph.nodes:
            if n.op == "placeholder":
                values[n] = next(inputs)
            elif n.op == "get_attr":
                values[n] = network.state[str(n.target)]
            elif n.op == "call_function":
                args, kwargs = fx.node.map_arg((n.args, n.kwargs), values.__getitem__)
                counter = Counter()
                # Within it torch cannot run control flow, which therefore counts nothing.
                with nullcontext() if isinstance(n.target, HigherOrderOperator) else counter:
                    values[n] = n.target(*args, **kwargs)
                if counter.macs:
                    out[n.name] = counter.macs / captured.batch
    return out


# -- Where a network may be cut in two along its depth, and what crosses there --------------------------


@dataclass(frozen=True)
class Cut:
    """A boundary between two stages: the calls of the functional graph up to one of them, and the rest."""

    index: int  # position, among the calls that belong to a side, of the last one before the boundary
    after: str  # that call
    tensors: tuple[str, ...]  # what crosses, in the order in which it is sent
    bytes: float  # of all that crosses, for one sample
    name: str  # the deepest module that has just ended, or the module around and ``after``; unique
    macs: tuple[float, float]  # multiply-accumulates per sample, before and after
    ends: tuple[str, ...]  # modules that have just ended, outermost first
    inside: tuple[str, ...]  # modules that have begun and not ended, outermost first

    @property
    def imbalance(self) -> float:
        """|before - after| / (before + after) in multiply-accumulates: 0 (halves) to 1."""
        total = sum(self.macs)
        return abs(self.macs[0] - self.macs[1]) / total if total else 0.0


@dataclass
class Order:
    """The calls of a network that belong to a side of a cut, in their order, and who needs their values.

    Parameters, constants, whatever is computed from these alone, and sizes belong to no side: each stage has
    its own. Random values and train-mode dropout are computed once.
    """

    network: Functional
    calls: list[fx.Node] = field(default_factory=list)
    sizes: dict[fx.Node, tuple[int, int]] = field(default_factory=dict)  # (k, c): the number k x batch + c
    free: set[fx.Node] = field(default_factory=set)  # computed on both sides
    at: dict[fx.Node, int] = field(default_factory=dict)  # inputs: -1
    last: dict[fx.Node, int] = field(default_factory=dict)  # last call that reads it; the output is last
    last_size: int = -1  # last call that reads the batch length
    last_strided: int = -1  # last call whose result depends on strides

    def __post_init__(self) -> None:
        counted: set[fx.Node] = set()  # free, and made with the batch length
        for n in self.network.graph.nodes:
            if n.op == "get_attr":
                self.free.add(n)
            elif n.op == "placeholder":
                self.at[n] = -1
            elif n.op == "call_function":
                value = n.meta.get("val")
                size = self.network.size(value) if isinstance(value, (int, torch.SymInt)) else None
                reads = n.all_input_nodes
                if size is not None and not isinstance(value, bool):
                    self.sizes[n] = size
                elif n.users and not is_random(n) and all(i in self.free or i in self.sizes for i in reads):
                    self.free.add(n)
                else:
                    self.at[n] = len(self.calls)
                    self.calls.append(n)
                if self.sizes.get(n, (0, 0))[0] or (n in self.free and any(i in counted for i in reads)):
                    counted.add(n)
        for n in self.network.graph.nodes:
            position = self.at.get(n, len(self.calls) if n.op == "output" else -1)
            for i in n.all_input_nodes:
                if n not in self.sizes:
                    self.last[i] = max(self.last.get(i, -1), position)
                if i in counted:
                    self.last_size = max(self.last_size, position)
            if n.op == "call_function" and "as_strided" in str(n.target):
                self.last_strided = max(self.last_strided, position)

    def crossing(self, index: int) -> list[fx.Node] | None:
        """Tensors that a cut after call ``index`` sends, in order; ``None`` where it must not be.

        A view is sent as the smallest tensor that it can be made of, and not beside one.
        """
        live = [n for n, at in self.at.items() if at <= index < self.last.get(n, -1)]
        if not live or any(self.bytes(n) is None for n in live) or index < self.last_strided:
            return None
        sent = {self._carrier(n) for n in live}
        sent = {n for n in sent if not any(b in sent for b in self._bases(n))}
        if all(self.at[(n, *self._bases(n))[-1]] < 0 for n in sent):
            return None  # nothing is computed before it: that is the choice of a device, not a cut
        axes = [self.network.size(s) for n in sent for s in n.meta["val"].shape]
        if index < self.last_size and not any(a is not None and a[0] > 0 for a in axes):
            return None  # nothing that crosses tells the batch length
        return [n for n in self.at if n in sent]

    def bytes(self, n: fx.Node) -> float | None:
        """Of one sample, in dense form; ``None`` for what is no tensor or has sizes that the data decide."""
        value = n.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            return None
        sizes = [self.network.size(s) for s in value.shape]
        if any(s is None for s in sizes):
            return None
        numel = math.prod(k + c for k, c in (s for s in sizes if s is not None))
        samples = 1 if self.network.batch is not None else self.network.captured.batch
        return numel * value.element_size() / samples

    def is_view(self, n: fx.Node) -> bool:
        """Can ``n`` be made, for nothing, of another value of some side?"""
        extras = n.all_input_nodes[1:]
        return base(n) in self.at and all(i in self.free or i in self.sizes for i in extras)

    def _bases(self, n: fx.Node) -> list[fx.Node]:
        """Tensors that ``n`` is a view of, nearest first."""
        out: list[fx.Node] = []
        while self.is_view(n) and (b := base(n)) is not None:
            n = b
            if self.bytes(b) is not None:
                out.append(b)
        return out

    def _carrier(self, n: fx.Node) -> fx.Node:
        """The smallest tensor that ``n`` can be made of; of equals the first, which others share."""
        return min(reversed((n, *self._bases(n))), key=lambda b: self.bytes(b) or 0.0)


def find_cuts(network: Captured | Functional, *, work: Mapping[str, float] | None = None) -> tuple[Cut, ...]:
    """All legal cuts, in the graph's order: every prefix of its calls, not between a tuple and its parts.

    Runs the network once on its example to count multiply-accumulates, unless ``work`` tells them (see
    :func:`.cuts.macs`). Of neighbours that send the same tensors, the last is kept.

    Raises:
        CutError: the model keeps state between calls (see :func:`functionalise`).
    """
    network = network if isinstance(network, Functional) else functionalise(network)
    order = Order(network)
    work = macs(network) if work is None else work
    paths = [modules(n) for n in order.calls]
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, of in enumerate(paths):
        for path in of:
            first.setdefault(path, i)
            last[path] = i
    cuts: list[Cut] = []
    before, total = 0.0, sum(work.get(n.name, 0.0) for n in order.calls)
    for i, n in enumerate(order.calls[:-1]):
        before += work.get(n.name, 0.0)
        sent = order.crossing(i)
        if sent is None:
            continue
        ends = [path for path in last if last[path] == i]
        tensors = tuple(t.name for t in sent)
        if cuts and cuts[-1].tensors == tensors and cuts[-1].index == i - 1:
            ends = [*cuts.pop().ends, *ends]
        ends.sort(key=lambda path: path.count("."))
        inside = sorted((p for p in last if first[p] <= i < last[p]), key=lambda path: path.count("."))
        around = [path for path in inside if path in paths[i]]
        name = ends[-1] if ends else ":".join([*around[-1:], n.name])
        size = sum(order.bytes(t) or 0.0 for t in sent)
        cuts.append(Cut(i, n.name, tensors, size, name, (before, total - before), tuple(ends), tuple(inside)))
    return tuple(cuts)


def by_bytes(cuts: Iterable[Cut]) -> list[Cut]:
    """Fewest bytes first; of equals the better balanced, then the later, where modules end."""
    return sorted(cuts, key=lambda c: (c.bytes, c.imbalance, -c.index))


def by_balance(cuts: Iterable[Cut]) -> list[Cut]:
    """Best balanced first; of equals the one with fewer bytes, then the later, where modules end."""
    return sorted(cuts, key=lambda c: (c.imbalance, c.bytes, -c.index))


def efficient(cuts: Iterable[Cut]) -> list[Cut]:
    """Cuts that no other beats in both bytes and balance, fewest bytes first."""
    out: list[Cut] = []
    for c in by_bytes(cuts):
        if not out or c.imbalance < out[-1].imbalance:
            out.append(c)
    return out


def balanced(cuts: Sequence[Cut], parts: int) -> list[Cut]:
    """The ``parts - 1`` cuts whose largest stage has the fewest multiply-accumulates, then the fewest bytes.

    Optimal, by dynamic programming over the cuts in order: O(parts x cuts^2).

    Raises:
        CutError: fewer than ``parts - 1`` cuts, or ``parts`` below 1.
    """
    if not 1 <= parts <= len(cuts) + 1:
        raise CutError(
            f"{parts} parts asked for, but {len(cuts)} legal cuts give 1 to {len(cuts) + 1}; "
            "ask for fewer parts, or forbid fewer boundaries"
        )
    ordered = sorted(cuts, key=lambda c: c.index)
    # Two passes: the least possible maximum first, then bytes among the plans that reach it.
    largest, _ = _plan(ordered, parts, lambda cost, work, sent: max(cost, work), math.inf)
    _, chosen = _plan(ordered, parts, lambda cost, work, sent: cost + sent, largest)
    return chosen


def after_modules(cuts: Sequence[Cut], names: Iterable[str]) -> list[Cut]:
    """The cuts right after these modules: boundaries that must be there.

    Raises:
        CutError: there is no legal cut after one of them.
    """
    out = []
    for name in names:
        found = [c for c in cuts if name in c.ends]
        if not found:
            known = ", ".join(list(dict.fromkeys(end for c in cuts for end in c.ends))[:8])
            raise CutError(f"there is no legal cut right after module {name!r}; there are cuts after {known}")
        out += found
    return sorted(set(out), key=lambda c: c.index)


def outside_modules(cuts: Sequence[Cut], names: Iterable[str]) -> list[Cut]:
    """The cuts that leave these modules whole.

    Raises:
        CutError: no cut lies in or right after a module of that name.
    """
    names = set(names)
    known = {path for c in cuts for path in (*c.ends, *c.inside)}
    if unknown := sorted(names - known):
        some = ", ".join(sorted(known)[:8])
        raise CutError(f"no cut lies in or after a module {unknown[0]!r}; there are {some}")
    return [c for c in cuts if not names.intersection(c.inside)]


def _plan(
    cuts: Sequence[Cut], parts: int, join: Callable[[float, float, float], float], most: float
) -> tuple[float, list[Cut]]:
    """Least cost of ``parts`` stages of at most ``most`` multiply-accumulates each, and their cuts.

    ``join`` adds to a cost the work of one more stage and the bytes that it sends.
    """
    total = sum(cuts[0].macs) if cuts else 0.0
    works = [0.0, *(c.macs[0] for c in cuts), total]
    sent = [0.0, *(c.bytes for c in cuts), 0.0]
    most += 1e-9 * total
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}  # boundary -> cost, boundaries before it
    for _ in range(parts):
        best = {
            j: min(
                (
                    (join(cost, works[j] - works[i], sent[j]), (*taken, j))
                    for i, (cost, taken) in best.items()
                    if i < j and works[j] - works[i] <= most
                ),
                key=lambda plan: (plan[0], [-b for b in plan[1]]),  # of equals the later: where modules end
            )
            for j in range(1, len(works))
            if any(i < j and works[j] - works[i] <= most for i in best)
        }
    cost, taken = best[len(works) - 1]
    return cost, [cuts[j - 1] for j in taken[:-1]]
