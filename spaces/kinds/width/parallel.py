"""The branches of a divided group as modules of their own, which may run on several devices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

from ....model.capture import capture, fresh, tensors_of
from ....model.captured_module import CapturedModule, assemble
from ....model.coupling import find_coupling
from ....model.coupling.walk import get_attribute
from ....model.modules import relative_difference
from ....model.surgery import Surgeon
from .divide import Divider
from .regions import find_regions


class Parallel(nn.Module):
    """A network as a part before, branches whose results add up, and a part after.

    Attributes:
        before: from the network's inputs, flat, to ``(fed, kept)``: what every branch gets, and what goes
            past them, tuples both.
        branches: each from ``*fed`` to a tuple of partial sums; the same shapes for all.
        after: from ``*kept`` and the ``*sums`` to the network's outputs, flat.
    """

    def __init__(
        self, before: CapturedModule, branches: Sequence[CapturedModule], after: CapturedModule, specs: Any
    ) -> None:
        super().__init__()
        self.before, self.branches, self.after = before, nn.ModuleList(branches), after
        self._in_spec, self._out_spec = specs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        fed, kept = self.before(*fx_pytree.tree_flatten_spec((args, kwargs), self._in_spec))
        parts = [branch(*fed) for branch in self.branches]  # where they run, and when, is up to the caller
        return pytree.tree_unflatten(list(self.after(*kept, *self.add(parts))), self._out_spec)

    @staticmethod
    def add(parts: Sequence[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
        """The sums over branches, which ``after`` takes."""
        return tuple(reduce(torch.add, of_one_reader) for of_one_reader in zip(*parts, strict=True))


def branches(network: nn.Module, example: Any, group: str, parts: int) -> Parallel:
    """Divide the units of one coupled group of ``network`` into parallel branches.

    Args:
        network: any network that can be captured, a built one for instance; it is not touched.
        example: as for :func:`netcarve.trace`.
        group: name of the group, as ``trace(network, example).groups`` tells.
        parts: at least 2; at most the number of units.

    Raises:
        CaptureError: the network cannot be captured.
        ValueError: no such group, one that cannot be divided (with the reason), a number of parts that does
            not fit, or a result that differs from the network's.
    """
    captured = capture(network, example)
    coupling = find_coupling(captured)
    regions, reasons = find_regions(captured.graph_module.graph, coupling)
    if group not in regions:
        why = f"cannot be divided: {reasons[group]}" if group in reasons else "is not in the network"
        raise ValueError(f"the group {group!r} {why}; these can be divided: {', '.join(regions) or 'none'}")
    region = regions[group]
    if not 2 <= parts <= len(region.labels):
        raise ValueError(
            f"{group} has {len(region.labels)} units: 2 to {len(region.labels)} parts, got {parts}"
        )
    alive = np.ones(coupling.units + 1, dtype=bool)
    surgeon = Surgeon(captured.graph_module, None, coupling)
    divider = Divider(surgeon.graph(alive), surgeon, alive)
    readers = divider.divide(region, parts)
    made = _apart(divider, readers, parts)
    for times in (1, 2) if captured.dynamic_batch else (1,):
        args, kwargs = fresh((captured.args, captured.kwargs))
        if times > 1:
            double = lambda leaf: torch.cat([leaf, leaf]) if _batched(leaf) else leaf  # noqa: E731
            args, kwargs = pytree.tree_map(double, (args, kwargs))
        with torch.no_grad():
            expected = captured.graph_module(*fresh(args), **fresh(kwargs))
            off, allowed = relative_difference(tensors_of(made(*args, **kwargs)), tensors_of(expected))
        if not off <= allowed:
            raise ValueError(
                f"divided by {group} the network differs by {off:.1e} (relative): its calls depend on their "
                "order, since they write in place; use the choice width:... of a space, which keeps the order"
            )
    return made


def _batched(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dim() > 0


def _apart(divider: Divider, readers: Sequence[Sequence[fx.Node]], parts: int) -> Parallel:
    graph = divider.made.graph
    order = {n: i for i, n in enumerate(graph.nodes)}
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    (output,) = (n for n in graph.nodes if n.op == "output")
    state = _state_only(graph)
    sums = [reader[-1] for reader in readers]
    adding = {n for n in graph.nodes if n in divider.branch} | _adds(readers)
    fed = sorted(
        {i for n in divider.branch for i in n.all_input_nodes if i not in divider.branch and i not in state},
        key=order.__getitem__,
    )
    first = _ancestors(fed) - state
    last = [
        n for n in graph.nodes if n not in first and n not in adding and n not in state and n.op != "output"
    ]
    last = [n for n in last if n.op != "placeholder"]
    results = pytree.tree_leaves(output.args)
    needed = {i for n in last for i in n.all_input_nodes} | {n for n in results if isinstance(n, fx.Node)}
    kept = sorted(needed - set(last) - set(sums) - state, key=order.__getitem__)
    cut = _Cutter(divider.made)
    before = cut([n for n in graph.nodes if n in first], inputs, (tuple(fed), tuple(kept)))
    pieces = [
        cut(
            [n for n in graph.nodes if divider.branch.get(n, ("", -1))[1] == b],
            fed,
            tuple(reader[b] for reader in readers),
        )
        for b in range(parts)
    ]
    after = cut(last, [*kept, *sums], tuple(results))
    return Parallel(before, pieces, after, (divider.made._in_spec, divider.made._out_spec))


def _adds(readers: Sequence[Sequence[fx.Node]]) -> set[fx.Node]:
    """The additions of partial sums, back from the totals."""
    found: set[fx.Node] = set()
    for *parts, total in readers:
        todo = [total]
        while todo:
            n = todo.pop()
            if n not in parts:
                found.add(n)
                todo += n.all_input_nodes
    return found


def _state_only(graph: fx.Graph) -> set[fx.Node]:
    """Reads of state, and what is computed from these alone: every part that needs it has its own."""
    found: set[fx.Node] = set()
    for n in graph.nodes:
        inputs = n.all_input_nodes
        if n.op == "get_attr" or (n.op == "call_function" and inputs and found.issuperset(inputs)):
            found.add(n)
    return found


def _ancestors(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    todo = list(nodes)
    while todo:
        if (n := todo.pop()) not in found:
            found.add(n)
            todo += n.all_input_nodes
    return found


class _Cutter:
    """Makes modules of some calls of a graph."""

    def __init__(self, made: CapturedModule) -> None:
        self._made = made

    def __call__(self, nodes: Sequence[fx.Node], inputs: Sequence[fx.Node], outputs: Any) -> CapturedModule:
        graph = fx.Graph()
        new: dict[fx.Node, fx.Node] = {}
        attributes: dict[str, Any] = {}

        def copied(n: fx.Node) -> fx.Node:
            if n not in new:
                if n.op in ("get_attr", "call_module"):
                    attributes[str(n.target)] = get_attribute(self._made, str(n.target))
                new[n] = graph.node_copy(n, copied)
            return new[n]

        for n in inputs:
            new[n] = graph.placeholder(n.name)
            new[n].meta = dict(n.meta)
        for n in nodes:
            copied(n)
        graph.output(fx.node.map_arg(outputs, copied))
        return assemble(graph, attributes)
