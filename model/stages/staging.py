"""Staging: costs of a network's parts, for many pruned candidates at once. Nothing is built."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import fx

from ...devices import Device, Profile
from ...devices.profile import operator_of
from ..blocks import Block
from ..costs import Costs, Forms
from ..costs import evaluate as product_of
from ..coupling import Coupling
from ..coupling.walk import operator_name
from .crossing import NONE, Crossing, SegmentCall, crossing_values
from .cuts import Cut, Order
from .functional import Functional
from .provenance import Provenance, Sized

_ROWS = 4096  # candidates at a time: [rows, calls] arrays stay in the cache


@dataclass(frozen=True)
class Segments:
    """Costs of n candidates between neighbouring places; S segments."""

    macs: np.ndarray  # float64 [n, S], multiply-accumulates of one sample
    sent: np.ndarray  # float64 [n, S + 1], bytes of one sample that cross before each segment; last 0
    weights: np.ndarray  # float64 [n, S], bytes of the parameters and buffers that each reads
    peaks: np.ndarray  # float64 [n, S], bytes of the activations that are alive together, at most
    snap: np.ndarray  # int64 [n, S + 1], where a stage that is to begin at a segment really begins
    ms: np.ndarray | None  # float64 [n, D, S], time on each device; None where a device has no profile


class Staging:
    """Cost tables of the segments of one network, between some of its places to cut.

    Every figure is a polynomial in group widths, as in :class:`Costs`, of the calls that are there once
    blocks are dropped. A parameter that calls of several segments read counts in each.
    """

    def __init__(
        self,
        network: Functional,
        coupling: Coupling,
        blocks: Sequence[Block],
        costs: Costs,
        work: Mapping[str, float],
        places: Sequence[Cut],
    ) -> None:
        """
        Args:
            work: multiply-accumulates of each call of the unchanged network (see :func:`.stages.work.macs`).
            places: some of :attr:`.cutting.Cutting.followed`, in the graph's order.
        """
        order = Order(network)
        origin = Provenance(network, coupling)
        self._costs, self._forms = costs, Forms(coupling)
        self._products: dict[tuple[int, ...], int] = {}
        self.places = tuple(places)
        self.segments = len(places) + 1
        ends = [p.index for p in places]
        gates = {b.out: k for k, b in enumerate(blocks)}
        liveness = costs.liveness

        self.calls: list[SegmentCall] = []
        macs: list[list[tuple[int, float]]] = []
        moved: list[list[tuple[int, float]]] = []
        reads: dict[tuple[int, str], list[int]] = {}  # (segment, parameter) -> conditions of its readers
        held: dict[str, Sized] = {}
        claimed: set[str] = set()
        for i, n in enumerate(order.calls):
            source = origin.source(n)
            segment = int(np.searchsorted(ends, i))
            condition = 0 if source is None else liveness.of[source]
            gate = gates.get(source or "", NONE)
            gate = NONE if operator_name(n.target)[0] == "getitem" else gate
            is_view = order.is_view(n)
            self.calls.append(
                SegmentCall(
                    n.name,
                    operator_of(n),
                    operator_name(n.target)[0],
                    segment,
                    condition,
                    gate,
                    gate != NONE and blocks[gate].copies,
                    is_view,
                )
            )
            macs.append(self._work(n, source, coupling, work, claimed))
            moved.append([] if is_view else self._moved(n, origin))
            for name, size in _held(n, order, origin):
                held[name] = size
                reads.setdefault((segment, name), []).append(condition)
        self._weights = [
            (segment, liveness.either(conditions), self._term(held[name]))
            for (segment, name), conditions in reads.items()
        ]
        self._begins = self._first_steps(order, origin)
        self._inputs = [self._term(s) for n in network.inputs if (s := origin.bytes(n)) is not None]
        values, sizes = crossing_values(order, origin, self.calls, blocks, liveness.of)
        self._sizes = [None if s is None else self._term(s) for s in sizes]
        self._crossing = Crossing(values, ends, len(order.calls))
        self._macs_of, self._moved_of = (self._table(t) for t in (macs, moved))  # [products, calls]

    def evaluate(self, widths: np.ndarray, dropped: np.ndarray, devices: Sequence[Device] = ()) -> Segments:
        """
        Args:
            widths: [n, groups] integers, kept units.
            dropped: [n, blocks] bool.
            devices: for times.
        """
        timed = bool(devices) and all(d.profile is not None for d in devices)
        chunks = [
            self._evaluate(widths[i : i + _ROWS], dropped[i : i + _ROWS], devices if timed else ())
            for i in range(0, max(len(widths), 1), _ROWS)
        ]
        macs, sent, weights, peaks, snap = (
            np.concatenate([getattr(c, name) for c in chunks])
            for name in ("macs", "sent", "weights", "peaks", "snap")
        )
        ms = np.concatenate([c.ms for c in chunks if c.ms is not None]) if timed else None
        return Segments(macs, sent, weights, peaks, snap, ms)

    def there(self, dropped: np.ndarray) -> np.ndarray:
        """[n, calls] bool: which calls are there; a copy in a call's place counts."""
        return self._there(dropped, self._costs.liveness.evaluate(dropped))

    def _there(self, dropped: np.ndarray, holds: np.ndarray) -> np.ndarray:
        there = holds[[c.condition for c in self.calls]].T
        for i, call in enumerate(self.calls):
            if call.gate != NONE and not call.copies:
                there[:, i] &= ~dropped[:, call.gate]
        return there

    def _evaluate(self, widths: np.ndarray, dropped: np.ndarray, devices: Sequence[Device]) -> Segments:
        n, s = len(widths), self.segments
        lengths = self._forms.lengths(widths)
        values = np.stack([product_of((1.0, forms), lengths) for forms in self._products], axis=1)
        holds = self._costs.liveness.evaluate(dropped)
        there = self._there(dropped, holds)
        of = np.array([c.segment for c in self.calls])
        joined = (of[:, None] == np.arange(s)).astype(np.float64)  # [calls, S]
        macs = (values @ self._macs_of) * there
        weights = np.zeros((n, s))
        for segment, condition, (product, factor) in self._weights:
            weights[:, segment] += factor * values[:, product] * holds[condition]
        solid = there & np.array([not c.is_view for c in self.calls])
        return Segments(
            macs @ joined,
            self._sent(values, dropped, holds),
            weights,
            self._costs.peaks(widths, dropped, self._begins),
            _snap(solid @ joined > 0),
            self._times(devices, macs, values, solid, joined) if devices else None,
        )

    def _times(
        self,
        devices: Sequence[Device],
        macs: np.ndarray,
        values: np.ndarray,
        solid: np.ndarray,
        joined: np.ndarray,
    ) -> np.ndarray:
        moved = (values @ self._moved_of) * solid
        names = [c.operator for c in self.calls]
        known: dict[int, np.ndarray] = {}
        for d in devices:
            profile: Profile = d.known_profile()
            if id(profile) not in known:
                known[id(profile)] = profile.milliseconds(names, macs, moved) @ joined
        return np.stack([known[id(d.profile)] / d.speed for d in devices], axis=1)

    def _sent(self, values: np.ndarray, dropped: np.ndarray, holds: np.ndarray) -> np.ndarray:
        n = len(values)
        out = np.zeros((n, self.segments + 1))
        out[:, 0] = sum((factor * values[:, p] for p, factor in self._inputs), np.zeros(n))
        patterns, rows = np.unique(dropped, axis=0, return_inverse=True)
        first = np.zeros(len(patterns), dtype=np.int64)
        first[rows.ravel()] = np.arange(n)
        who = self._crossing.sent(patterns, holds[:, first])  # [places, values, patterns]
        for v in np.flatnonzero(who.any(axis=(0, 2))).tolist():
            term = self._sizes[v]
            size = np.zeros(n) if term is None else term[1] * values[:, term[0]]
            for place in np.flatnonzero(who[:, v].any(axis=1)).tolist():
                out[:, place + 1] += size * who[place, v][rows.ravel()]
        return out

    # -- construction --------------------------------------------------------------------------------

    def _term(self, size: Sized) -> tuple[int, float]:
        factor, forms = self._forms.product(*size)
        return self._products.setdefault(forms, len(self._products)), factor

    def _table(self, of: Sequence[Sequence[tuple[int, float]]]) -> np.ndarray:
        table = np.zeros((len(self._products), len(of)))
        for i, terms in enumerate(of):
            for product, factor in terms:
                table[product, i] += factor
        return table

    def _work(
        self,
        n: fx.Node,
        source: str | None,
        coupling: Coupling,
        work: Mapping[str, float],
        claimed: set[str],
    ) -> list[tuple[int, float]]:
        """Multiply-accumulates of a call, by its labels where these tell what was counted."""
        counted = work.get(n.name, 0.0)
        if source is not None and source not in claimed and counted:
            terms = [t for (name, _), t in coupling.macs.items() if name == source]
            told = sum(t.factor * math.prod(len(v) for v in t.vectors) for t in terms)
            if math.isclose(told, counted, rel_tol=1e-6):
                claimed.add(source)
                return [self._term((t.factor, t.vectors)) for t in terms]
        return [self._term((counted, ()))] if counted else []

    def _moved(self, n: fx.Node, origin: Provenance) -> list[tuple[int, float]]:
        """Bytes of what a call reads and writes, as :func:`.devices.operators.moved_bytes` counts them."""
        sizes: list[Sized] = []
        for i in [*n.all_input_nodes, n]:
            sizes += [origin.held(str(i.target))[1]] if i.op == "get_attr" else origin.all_bytes(i)
        return [self._term(size) for size in sizes]

    def _first_steps(self, order: Order, origin: Provenance) -> list[int]:
        """Step of the captured graph at which each segment begins."""
        steps: list[int | None] = [0] + [None] * (self.segments - 1)
        for n, call in zip(order.calls, self.calls, strict=True):
            source = origin.source(n)
            if source is not None and steps[call.segment] is None:
                steps[call.segment] = origin.step(source)
        out = [0]
        for step in steps[1:]:
            out.append(out[-1] if step is None else max(step, out[-1]))
        return out


def _snap(has: np.ndarray) -> np.ndarray:
    """For segments [n, S] that have calls of their own: where a stage beginning at 0..S really begins.

    At the next segment with calls; at S where none follows; at 0 where none comes before.
    """
    n, s = has.shape
    out = np.empty((n, s + 1), dtype=np.int64)
    out[:, s] = s
    for b in reversed(range(s)):
        out[:, b] = np.where(has[:, b], b, out[:, b + 1])
    before = np.zeros(n, dtype=bool)
    for b in range(s + 1):
        out[~before, b] = 0
        if b < s:
            before = before | has[:, b]
    return out


def _held(n: fx.Node, order: Order, origin: Provenance) -> list[tuple[str, Sized]]:
    """What a call needs of the state, also through values that each stage computes by itself."""
    targets: dict[str, None] = {}
    stack = list(n.all_input_nodes)
    while stack:
        i = stack.pop()
        if i.op == "get_attr":
            targets[str(i.target)] = None
            beside = order.network.names.get(str(i.target), ())
            targets.update((b, None) for b in beside)
        elif i in order.free:
            stack += i.all_input_nodes
    return [origin.held(t) for t in targets]
