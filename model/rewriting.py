"""Rewriting: chains and parallel branches of layers in a captured graph that one convolution can compute.

Li et al. 2018, arXiv 1708.04728 (DeepRebirth): a layer without weights is absorbed by one beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .coupling import Coupling
from .coupling.units import Vector
from .coupling.walk import bind, operator_name
from .linear_maps import CONVOLUTIONS, LINEAR, MEANS, SCALES, SUMS, Follower, mean, window_of

MERGE, POOL_FIRST = "merge", "pool-first"


@dataclass(frozen=True)
class Form:
    """One way to compute a region.

    Attributes:
        name: ``merge``, or ``pool-first``: an average pool before the 1x1 convolution that it stood behind.
        kernel, stride, padding: of its convolution.
        bias: whether that has one.
        before: of an average pool in front of it, (kernel, stride); else nothing.
    """

    name: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    bias: bool = True
    before: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class LinearRegion:
    """Neighbouring calls of a captured graph with one input and one output, which nothing else reads.

    Attributes:
        name: of the first layer with weights.
        last: its last call.
        inside: its calls, in the graph's order.
        held: canonical names of parameters and statistics that it alone reads.
        inputs, outputs: channels of the unpruned network, and their labels; ``None``: fixed.
        batch: length of the batch axis, in samples.
        size: spatial sizes of the output, and
        given: of the input.
        itemsize: bytes of a number.
    """

    name: str
    last: str
    inside: tuple[str, ...]
    held: tuple[str, ...]
    inputs: tuple[int, Vector | None]
    outputs: tuple[int, Vector | None]
    batch: float
    given: tuple[int, ...]
    size: tuple[int, ...]
    itemsize: int


@dataclass(frozen=True)
class _Calls:
    """Some calls with one input."""

    source: fx.Node
    inside: tuple[fx.Node, ...]  # in the graph's order

    @property
    def last(self) -> fx.Node:
        return self.inside[-1]


class Finder:
    """Finds regions that do not overlap, the largest first.

    Attributes:
        found: with the forms that are cheaper, in multiply-accumulates or weights, than the region.
        reasons: why other regions may not be rewritten, by name.
    """

    def __init__(self, graph: fx.Graph, coupling: Coupling, batch: int) -> None:
        self._coupling, self._batch = coupling, batch
        self._order = {n: i for i, n in enumerate(n for n in graph.nodes if n.op != "get_attr")}
        self._nodes = list(self._order)
        self._readers: dict[str, set[fx.Node]] = {}
        for n in graph.nodes:
            if n.op == "get_attr" and (name := coupling.canonical.get(str(n.target))):
                self._readers.setdefault(name, set()).update(n.users)
        self._taken: set[fx.Node] = set()
        self.found: list[tuple[LinearRegion, dict[str, Form]]] = []
        self.reasons: dict[str, str] = {}

    def exact(self) -> None:
        """Chains and sums of linear layers."""
        for last in reversed(self._nodes):
            for calls in self._linear(last):
                if not self._taken.isdisjoint(calls.inside):
                    continue
                if self._take(calls, self._exact_forms):
                    break

    # -- candidates --------------------------------------------------------------------------------------

    def _linear(self, last: fx.Node) -> Iterator[_Calls]:
        """Regions that end in ``last``, the largest first."""
        if _kind(last) not in LINEAR:
            return
        chain = [last]
        while (one := self._alone(chain[-1])) is not None and _kind(one) in LINEAR:
            chain.append(one)
        if _kind(chain[-1]) in SUMS:
            inside, sources = {*chain}, set[fx.Node]()
            self._grow(chain[-1], inside, sources)
            if len(sources) == 1:
                yield _Calls(sources.pop(), tuple(sorted(inside, key=self._order.__getitem__)))
            chain.pop()
        for length in range(len(chain), 1, -1):
            if isinstance(source := operands(chain[length - 1])[0], fx.Node):
                yield _Calls(source, tuple(reversed(chain[:length])))

    def _grow(self, n: fx.Node, inside: set[fx.Node], sources: set[fx.Node]) -> None:
        for operand in operands(n):
            if not isinstance(operand, fx.Node):
                continue
            if operand.users.keys() == {n} and _kind(operand) in LINEAR:
                inside.add(operand)
                self._grow(operand, inside, sources)
            else:
                sources.add(operand)

    def _alone(self, n: fx.Node) -> fx.Node | None:
        """The one call that ``n`` reads, where nothing else reads it."""
        read = operands(n)
        one = read[0] if len(read) == 1 else None
        return one if isinstance(one, fx.Node) and one.users.keys() == {n} else None

    # -- what they may become ----------------------------------------------------------------------------

    def _take(self, calls: _Calls, forms: Callable[[_Calls, LinearRegion], list[Form]]) -> bool:
        weighty = [n for n in calls.inside if _kind(n) in CONVOLUTIONS]
        alone = all(_kind(n) in (*CONVOLUTIONS, *SCALES) for n in calls.inside) and len(weighty) < 2
        if alone or not weighty:
            return False
        name = self._name(weighty[0])
        region = self._region(name, calls)
        if isinstance(region, str):
            self.reasons[name] = region
            return False
        macs = sum(self._macs(n) for n in weighty)
        held = sum(math.prod(self._value(n.args[1]).shape) for n in weighty)
        try:
            left = [f for f in forms(calls, region) if cheaper(region, f, macs, held)]
        except ValueError as error:
            self.reasons[name] = str(error)
            return False
        if not left:
            self.reasons[name] = "one convolution would have more multiply-accumulates and more weights"
            return False
        self.reasons.pop(name, None)
        self._taken.update(calls.inside)
        self.found.append((region, {f.name: f for f in left}))
        return True

    def _region(self, name: str, calls: _Calls) -> LinearRegion | str:
        first, last = calls.inside[0], calls.last
        between = self._nodes[self._order[first] : self._order[last] + 1]
        if set(between) != set(calls.inside):
            return "something else is computed between its layers"
        given, gives = (self._coupling.tensors.get(n.name) for n in (calls.source, last))
        value = last.meta.get("val")
        if given is None or gives is None or not isinstance(value, torch.Tensor):
            return "reads or gives something whose shape is not followed"
        if len(given) != len(gives) or len(gives) not in (3, 4) or given[0][0] != gives[0][0]:
            return "has no batch axis before its channels"
        sums = [n for n in calls.inside if _kind(n) in SUMS]
        if any(self._value(a).shape != self._value(n).shape for n in sums for a in operands(n)):
            return "adds branches of different shapes"
        others = (*given[:1], *given[2:], *gives[:1], *gives[2:])
        if any(labels is not None for _, labels in others):
            return "has axes beside the channels that are cut"
        reads = dict.fromkeys(a for n in calls.inside for a in n.all_input_nodes)
        held = dict.fromkeys(self._coupling.canonical[str(a.target)] for a in reads if a.op == "get_attr")
        if any(not self._readers[w] <= set(calls.inside) for w in held):
            return "shares its weights"
        if any(a.op != "get_attr" and a not in calls.inside and a is not calls.source for a in reads):
            return "its weights are computed"
        names = tuple(n.name for n in calls.inside)
        return LinearRegion(
            name,
            last.name,
            names,
            tuple(held),
            given[1],
            gives[1],
            gives[0][0] / self._batch,
            tuple(length for length, _ in given[2:]),
            tuple(length for length, _ in gives[2:]),
            value.element_size(),
        )

    def _exact_forms(self, calls: _Calls, region: LinearRegion) -> list[Form]:
        dims = len(region.size)
        read = lambda n: torch.empty_like(self._value(n), device="meta")  # noqa: E731
        kinds = [_kind(n) for n in calls.inside]
        found: list[Form] = []
        if len(kinds) == 2 and kinds[0] in CONVOLUTIONS and kinds[1] in MEANS:
            kernel, stride, padding = window_of(bind(calls.inside[0]), dims)
            sides, step, around = window_of(bind(calls.last), dims)
            ones = (1,) * dims
            whole = mean(sides, step, around).size(region.given) == region.size
            if kernel == stride == ones and not any(padding + around) and whole:
                bias = bind(calls.inside[0])["bias"] is not None
                found.append(Form(POOL_FIRST, kernel, stride, padding, bias, before=(sides, step)))
        whole_map = Follower(calls.source, read, dims, "meta")(calls.last)
        if whole_map.size(region.given) != region.size:
            raise ValueError("a pool rounds its size up")
        form = Form(MERGE, whole_map.kernel, whole_map.stride, whole_map.padding, whole_map.bias is not None)
        return [form, *found]

    def _name(self, layer: fx.Node) -> str:
        weight = self._coupling.canonical.get(str(getattr(bind(layer)["weight"], "target", "")), layer.name)
        return weight.rpartition(".")[0] or weight

    def _macs(self, n: fx.Node) -> float:
        value = self._value(n)
        return value.numel() / self._batch * math.prod(self._value(n.args[1]).shape[1:])

    @staticmethod
    def _value(n: Any) -> torch.Tensor:
        value = n.meta["val"]
        assert isinstance(value, torch.Tensor)
        return value


def cheaper(region: LinearRegion, form: Form, macs: float, weights: float) -> bool:
    """Whether it has fewer multiply-accumulates or weights than that, unpruned."""
    own = math.prod(form.kernel) * region.inputs[0] * region.outputs[0]
    return own * math.prod(region.size) * region.batch < macs or own < weights


def _kind(n: fx.Node) -> str:
    name = operator_name(n.target)[0] if n.op == "call_function" else ""
    summed = name not in SUMS or all(isinstance(v, fx.Node) for v in n.args[:2])
    return name if summed else ""  # a number is added


def operands(n: fx.Node) -> list[Any]:
    """What it computes on, but for weights."""
    bound = bind(n)
    names = ("self", "other") if _kind(n) in SUMS else ("input",) if "input" in bound else ("self",)
    return [bound[name] for name in names]
