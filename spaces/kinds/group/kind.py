"""Group: into how many groups that do not mix the channels of a dense layer fall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import fx

from ....model.captured_module import CapturedModule
from ....model.coupling import Coupling
from ....model.coupling.walk import bind, operator_name
from ....model.operators.assignment import kept_share
from ...choice import Choice
from ..base import Context, Found, Kind, Making, Many, Taken, check_rising
from .build import build
from .grouper import Grouper, Layer

if TYPE_CHECKING:
    from ....model.cost_tables import Tables
    from ....model.facts import Facts

LEAST = 2  # channels of a group, on both sides of the unpruned layer
_LAYERS = ("linear", "conv1d", "conv2d", "conv3d")
_MEGA = 1e6
_INDEX = 8  # bytes of a gathered channel's number


@dataclass(frozen=True)
class Grouped:
    """What a choice is about: a dense layer, as groups of outputs that each read a group of inputs alone."""

    layer: Layer
    itemsize: int  # bytes of a weight

    def share(self, options: np.ndarray, tables: Tables) -> np.ndarray:
        """Share of the layer's weights that stays, [n], for the number of groups [n] asked for."""
        lengths = tables.lengths(self.layer.weight)[:, :2]
        groups = np.maximum(np.minimum(options, lengths.min(axis=1)), 1)
        share = kept_share(lengths[:, 0], lengths[:, 1], groups)
        return np.where(lengths.prod(axis=1) > 0, share, 1.0)

    def less(self, groups: int, tables: Tables) -> dict[str, np.ndarray]:
        """What so many groups save of each cost, [n]."""
        lengths = tables.lengths(self.layer.weight)  # zeros where the layer has gone
        gone = 1 - self.share(np.full(len(lengths), groups), tables)
        weights = gone * lengths.prod(axis=1)
        macs = gone * tables.macs(self.layer.node)
        gathered = np.where(gone > 0, _INDEX * (lengths[:, 0] + lengths[:, 1]), 0.0)
        size = (self.itemsize * weights - gathered) / _MEGA
        return {"macs": macs, "flops": 2 * macs, "params": weights, "size_mb": size, "memory_mb": size}


@dataclass(frozen=True, kw_only=True)
class GroupKind(Kind):
    """A choice ``group:<layer>`` for every dense convolution and linear layer that only its own call reads.

    Options: 1 (unchanged), then numbers of groups, where every group of the unpruned layer has at least two
    inputs and outputs.
    """

    groups: Sequence[int] = (2, 4, 8)

    done: ClassVar[str] = "grouped"
    rewrites: ClassVar[bool] = True
    turn: ClassVar[int] = 0  # layers are assigned to groups while they are whole

    def __post_init__(self) -> None:
        check_rising("groups", self.groups)

    def goes_with(self, kinds: Sequence[str]) -> None:
        if "mask" in kinds:
            raise ValueError(
                "group and mask cannot be searched together: refitting a grouped layer fills what is masked"
            )

    def find(self, facts: Facts, making: Making) -> Found:
        layers, reasons = dense_layers(facts.captured.graph_module.graph, facts.coupling)
        made: list[Choice] = []
        for layer in layers:
            most = min(layer.outputs, layer.inputs) // LEAST
            options = [g for g in self.groups if g <= most]
            if options:
                about = Grouped(layer, facts.surgeon.tensors[layer.weight].element_size())
                made.append(Choice(f"group:{layer.name}", (1, *options), self, about))
            else:
                reasons[layer.name] = f"has {layer.inputs} inputs and {layer.outputs} outputs: too few"
        return Found(made, {f"group:{name}": reason for name, reason in reasons.items()})

    def costs(self, many: Many, costs: dict[str, np.ndarray], tables: Tables) -> None:
        for choice, column in many:
            about: Grouped = choice.about
            tables.shares[about.layer.node] = partial(about.share, np.asarray(choice.options)[column], tables)
            for index, groups in enumerate(choice.options[1:], start=1):
                rows = column == index
                if rows.any():
                    taking = replace(tables, widths=tables.widths[rows], dropped=tables.dropped[rows])
                    for name, amount in about.less(int(groups), taking).items():
                        costs[name][rows] -= amount

    def edit(self, network: CapturedModule, taken: Taken, context: Context) -> None:
        """Assign and refit the layers now; build their groups when all kinds have divided what they divide,
        each branch's part of a layer for itself.
        """
        grouper = Grouper(network, context.alive, context.calibration, context.sample)
        for choice, index in taken:
            if index:
                grouper.add(choice.about.layer, int(choice.options[index]))
        context.marks.update(grouper.finish())
        context.last.append(partial(build, network, context.marks))


def dense_layers(graph: fx.Graph, coupling: Coupling) -> tuple[list[Layer], dict[str, str]]:
    """In the graph's order; and why other layers of these types are none, by name."""
    readers: dict[str, set[fx.Node]] = {}
    for n in graph.nodes:
        if n.op == "get_attr" and (name := coupling.canonical.get(str(n.target))):
            readers.setdefault(name, set()).update(n.users)
    layers: list[Layer] = []
    reasons: dict[str, str] = {}
    for n in graph.nodes:
        if n.op != "call_function" or operator_name(n.target)[0] not in _LAYERS:
            continue
        bound = bind(n)
        held = [bound["weight"], bound.get("bias")]
        read = [t for t in held if isinstance(t, fx.Node)]
        if any(t.op != "get_attr" for t in read):
            reasons[n.name] = "its weights are computed"
            continue
        names = [coupling.canonical[str(t.target)] for t in read]
        layer = names[0].rpartition(".")[0] or names[0]
        outputs, inputs = bound["weight"].meta["val"].shape[:2]
        if any(readers[name] != {n} for name in names):
            reasons[layer] = "shares its weights"
        elif bound.get("groups", 1) != 1:
            reasons[layer] = f"has {bound['groups']} groups already"
        else:
            layers.append(Layer(layer, n.name, names[0], outputs, inputs))
    return layers, reasons
