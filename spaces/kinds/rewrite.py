"""Rewrite: neighbouring layers computed as one convolution, without any loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import fx, nn

from ...model.captured_module import CapturedModule
from ...model.coupling.units import Vector
from ...model.coupling.walk import bind, get_attribute
from ...model.linear_maps import Follower, LinearMap
from ...model.rewriting import MERGE, Finder, Form, LinearRegion, operands
from ..choice import Choice
from .base import Context, Found, Kind, Making, Many, Taken

if TYPE_CHECKING:
    from ...model.cost_tables import Tables
    from ...model.facts import Facts

KEEP = "keep"
_MEGA = 1e6
_MAKES: dict[int, type[nn.Conv1d] | type[nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}
_POOLS: dict[int, Any] = {1: torch.ops.aten.avg_pool1d.default, 2: torch.ops.aten.avg_pool2d.default}


@dataclass(frozen=True)
class Rewritten:
    """What a choice is about: a region, by option how it is computed, and the tensors that it alone reads."""

    region: LinearRegion
    by: Mapping[str, Form]
    weights: Mapping[str, int]  # bytes of a number, by canonical name: parameters
    buffers: Mapping[str, int]  # statistics, and counts of batches


@dataclass(frozen=True, kw_only=True)
class RewriteKind(Kind):
    """A choice ``rewrite:<layer>`` for every region of layers that one convolution computes, named by its
    first layer with weights.

    Options: ``keep``, then ``merge`` (chains and sums of convolutions, average pools and batch norms as one
    convolution) and ``pool-first`` (a 1x1 convolution behind the average pool that it stood before). Both
    give the same outputs up to rounding, for whatever channels pruning keeps; offered is what has fewer
    multiply-accumulates or fewer weights, unpruned. Merged norms have no statistics any more.
    """

    done: ClassVar[str] = "rewritten"
    rewrites: ClassVar[bool] = True

    def goes_with(self, kinds: Sequence[str]) -> None:
        known = ("operators", "bypass", "bits", "mask", "width", "group", "exits", "branches", "splits")
        if others := [kind for kind in kinds if kind in known]:
            raise ValueError(
                f"rewrite and {others[0]} cannot be searched together: both change the same layers; "
                "rewrite goes with prune and drop; search one after the other, on the exported network"
            )

    def find(self, facts: Facts, making: Making) -> Found:
        captured = facts.captured
        finder = Finder(captured.graph_module.graph, facts.coupling, captured.batch)
        finder.exact()
        made = [self._about(region, by, facts) for region, by in finder.found]
        order = [n.name for n in captured.graph_module.graph.nodes]
        made.sort(key=lambda about: order.index(about.region.last))
        choices = [Choice(f"rewrite:{a.region.name}", (KEEP, *a.by), self, a) for a in made]
        return Found(choices, {f"rewrite:{name}": reason for name, reason in finder.reasons.items()})

    def _about(self, region: LinearRegion, by: Mapping[str, Form], facts: Facts) -> Rewritten:
        tensors = facts.surgeon.tensors
        weights = {n: tensors[n].element_size() for n in region.held if isinstance(tensors[n], nn.Parameter)}
        norms = {n.rpartition(".")[0] for n in region.held if n.endswith("running_mean")}
        names = [*region.held, *(f"{norm}.num_batches_tracked" for norm in norms)]
        buffers = {n: tensors[n].element_size() for n in names if n in tensors and n not in weights}
        return Rewritten(region, by, weights, buffers)

    def costs(self, many: Many, costs: dict[str, np.ndarray], tables: Tables) -> None:
        for choice, column in many:
            about: Rewritten = choice.about
            there = np.all([tables.present(node) for node in about.region.inside], axis=0)
            for option in choice.options[1:]:
                rows = there & (np.array([o == option for o in choice.options])[column])
                if rows.any():
                    self._charge(about, about.by[str(option)], rows, costs, tables)
        costs["memory_mb"] = tables.memory(costs["size_mb"])

    def _charge(
        self, about: Rewritten, form: Form, rows: np.ndarray, costs: dict[str, np.ndarray], tables: Tables
    ) -> None:
        region = about.region
        inputs, outputs = (_counted(axis, tables) for axis in (region.inputs, region.outputs))
        area = math.prod(region.size) * region.batch
        macs = area * math.prod(form.kernel) * inputs * outputs - sum(map(tables.macs, region.inside))
        numbers = math.prod(form.kernel) * inputs * outputs + form.bias * outputs
        size = numbers * region.itemsize
        params = numbers
        if form.name != MERGE:  # on its own weights
            numbers, params, size = (np.zeros(len(rows)) for _ in range(3))
        else:
            for name, itemsize in about.weights.items():
                length = tables.lengths(name).prod(axis=1)
                params, size = params - length, size - itemsize * length
            for name, itemsize in about.buffers.items():
                size = size - itemsize * tables.lengths(name).prod(axis=1)
        costs["macs"][rows] += macs[rows]
        costs["flops"][rows] += 2 * macs[rows]
        costs["params"][rows] += params[rows]
        costs["size_mb"][rows] += size[rows] / _MEGA
        costs["activation_mb"][rows] += self._memory(region, form, rows, inputs, area, tables)[rows] / _MEGA

    def _memory(
        self,
        region: LinearRegion,
        form: Form,
        rows: np.ndarray,
        inputs: np.ndarray,
        area: float,
        tables: Tables,
    ) -> np.ndarray:
        """Bytes of intermediate tensors that come or go (negative), [n]; says when which are alive."""
        first, owner = region.inside[0], tables.costs.owner
        result = owner(region.last)
        pooled = area * inputs * region.itemsize * bool(form.before)
        change = pooled
        for number in {owner(node) for node in region.inside} - {result}:
            tables.gone[number] = tables.gone.get(number, np.zeros(len(rows), dtype=bool)) | rows
            change = change - tables.costs.tensor(number, tables.widths)
        # What the region reads is alive until its one convolution, or the pool before that, has run.
        made = (
            pooled if form.before else tables.costs.tensor(result, tables.widths) * (owner(first) != result)
        )
        for node, needed in ((first, made), (region.last, pooled)):
            tables.within[node] = tables.within.get(node, np.zeros(len(rows))) + rows * needed
        return change

    def edit(self, network: CapturedModule, taken: Taken, context: Context) -> None:
        nodes = {n.name: n for n in network.graph.nodes}
        for choice, index in taken:
            about: Rewritten = choice.about
            if index and all(node in nodes for node in about.region.inside):
                form = about.by[str(choice.options[index])]
                (_merge if form.name == MERGE else _pool_first)(network, about.region, form, nodes)
                if form.name == MERGE:
                    unread = {n for n in about.buffers if n.endswith("num_batches_tracked")}
                    context.reads.extend(n for n in nodes.values() if str(n.target) in unread and not n.users)


def _counted(axis: tuple[int, Vector | None], tables: Tables) -> np.ndarray:
    """Channels that stay, float64 [n]."""
    length, labels = axis
    return np.full(len(tables.widths), float(length)) if labels is None else tables.count(labels)


def _merge(network: CapturedModule, region: LinearRegion, form: Form, nodes: dict[str, fx.Node]) -> None:
    """One convolution in the place of the region's last call; the others are not read any more."""
    calls = [nodes[name] for name in region.inside]
    last = calls[-1]
    # Where a block before it is dropped, it reads what that read.
    (source,) = {a for call in calls for a in operands(call)} - {*calls}

    def read(n: fx.Node) -> torch.Tensor:
        return get_attribute(network, str(n.target))

    weights = [bound["weight"] for call in calls if "stride" in (bound := bind(call)) and "weight" in bound]
    with torch.no_grad():
        found = Follower(source, read, len(region.size), read(weights[0]).device)(last)
        layer = _layer(found, like=read(weights[0]))
    target = f"{region.name}.merged"
    network.add_submodule(target, layer)
    with network.graph.inserting_before(last):
        new = network.graph.call_module(target, (source,))
    last.replace_all_uses_with(new)
    for call in reversed(calls):
        network.graph.erase_node(call)


def _layer(found: LinearMap, like: torch.Tensor) -> nn.Module:
    """The convolution of a map, in the type and on the device of one of its weights."""
    outputs, inputs = found.weight.shape[:2]
    layer = _MAKES[len(found.kernel)](
        inputs,
        outputs,
        found.kernel,  # type: ignore[arg-type]
        found.stride,  # type: ignore[arg-type]
        found.padding,  # type: ignore[arg-type]
        bias=found.bias is not None,
        dtype=like.dtype,
        device=like.device,
    )
    layer.weight.copy_(found.weight)
    if layer.bias is not None and found.bias is not None:
        layer.bias.copy_(found.bias)
    for held in layer.parameters():
        held.requires_grad_(like.requires_grad)
    return layer.eval()


def _pool_first(network: CapturedModule, region: LinearRegion, form: Form, nodes: dict[str, fx.Node]) -> None:
    """Let the convolution read the pool of what it read, and give what the pool gave."""
    layer, last = nodes[region.inside[0]], nodes[region.last]
    source = bind(layer)["input"]
    with network.graph.inserting_before(layer):
        pool = _POOLS[len(region.size)]
        pooled = network.graph.call_function(pool, (source, *(list(v) for v in form.before)))
    layer.args = tuple(pooled if value is source else value for value in layer.args)
    last.replace_all_uses_with(layer)
    network.graph.erase_node(last)
