"""Divide a region of a built graph into parallel branches, in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from ....model.captured_module import CapturedModule
from ....model.coupling.walk import get_attribute, operator_name, schema
from ....model.surgery import Alive, Surgeon, rewrite
from ..group.build import Marks
from .regions import BIAS, Region

aten = torch.ops.aten

_WITHOUT_BIAS = {aten.addmm.default: aten.mm.default, aten.baddbmm.default: aten.bmm.default}


class Divider:
    """Divides regions of one pruned network, one after the other; regions may touch.

    Every call remembers the captured call that it stands for and the labels that stay in it, so that a layer
    that reads one divided group and makes another ends as the product of both.

    Args:
        marks: calls whose outputs and inputs are assigned to groups (see :mod:`..group.build`); copies get
            their part of these.
        reads: takes up the tensors that are put on the network.

    Attributes:
        branch: of copied calls: (group, number of the branch).
    """

    def __init__(
        self,
        made: CapturedModule,
        surgeon: Surgeon,
        alive: Alive,
        marks: Marks | None = None,
        reads: list[fx.Node] | None = None,
    ) -> None:
        self.made, self.surgeon = made, surgeon
        self.marks: Marks = {} if marks is None else marks
        self.branch: dict[fx.Node, tuple[str, int]] = {}
        self.reads: list[fx.Node] = [] if reads is None else reads
        self._alive = alive
        self._of = {n: (str(n.target) if n.op == "get_attr" else n.name, alive) for n in made.graph.nodes}
        self._sums: set[fx.Node] = set()
        self._sliced: dict[tuple[int, str, int], str] = {}  # tensor, group, branch -> attribute
        self._held: list[Any] = []  # whose ids are keys

    def parts(self, region: Region, count: int) -> list[np.ndarray]:
        """Labels of each branch: the units that stay, in order; sizes differ by one at most."""
        kept = region.labels[self._alive[region.labels]]
        return [part for part in np.array_split(kept, count) if len(part)]

    def divide(self, region: Region, count: int) -> list[list[fx.Node]]:
        """``count`` branches, fewer where fewer units stay; the sum of their results takes a reader's place.

        Returns:
            For every reader its parts, one a branch, and their sum; nothing where there is one branch.
        """
        parts = self.parts(region, count)
        if len(parts) < 2:
            return []
        masks = []
        for part in parts:
            mask = np.ones_like(self._alive)
            mask[region.labels] = False
            mask[part] = True
            masks.append(mask)
        graph = self.made.graph
        copies: dict[fx.Node, list[fx.Node]] = {}
        readers: list[list[fx.Node]] = []
        for node in list(graph.nodes):
            name = self._of[node][0]
            inside = name in region.inside
            if node.op != "call_function" or not (inside or name in region.readers):
                continue
            with graph.inserting_before(node):
                copies[node] = [
                    self._copy(node, region, b, mask, copies, bias=inside or b == 0)
                    for b, mask in enumerate(masks)
                ]
                if not inside:
                    readers.append([*copies[node], self._add(node, copies[node])])
                    node.replace_all_uses_with(readers[-1][-1])
        for node, made in reversed(copies.items()):
            node.replace_all_uses_with(made[0])  # sizes alone: they are equal in all branches
            graph.erase_node(node)
        return readers

    def _copy(
        self,
        node: fx.Node,
        region: Region,
        b: int,
        mask: Alive,
        copies: dict[fx.Node, list[fx.Node]],
        *,
        bias: bool,
    ) -> fx.Node:
        name, alive = self._of[node]

        def operand(n: fx.Node) -> fx.Node:
            if n in copies:
                return copies[n][b]
            return self._slice(n, region, b, mask) if n.op == "get_attr" else n

        new = self.made.graph.node_copy(node, operand)
        self._of[new] = name, alive & mask
        self.branch[new] = region.group, b
        if node in self._sums:
            self._sums.add(new)
            return new
        if name in self.surgeon.constants:
            new.args, new.kwargs = rewrite(new, self.surgeon.constants[name], alive & mask)
        if node in self.marks:
            taken = self._positions(node.args[1], mask)  # type: ignore[arg-type]
            self.marks[new] = tuple(  # type: ignore[assignment]
                of if at is None else of[at] for of, at in zip(self.marks[node], taken, strict=False)
            )
        if not bias:
            _drop_bias(new)
        return new

    def _add(self, node: fx.Node, partial: Sequence[fx.Node]) -> fx.Node:
        total = partial[0]
        for one in partial[1:]:
            total = self.made.graph.call_function(aten.add.Tensor, (total, one))
            total.meta = {k: v for k, v in node.meta.items() if k in ("val", "nn_module_stack")}
            self._of[total] = self._of[node]
            self._sums.add(total)
        return total

    def _positions(self, node: fx.Node, mask: Alive) -> list[np.ndarray | None]:
        """Per axis of the tensor that ``node`` reads: the positions that ``mask`` keeps; ``None``: all."""
        target, alive = self._of[node]
        coupling = self.surgeon.coupling
        found: list[np.ndarray | None] = []
        for v in coupling.parameters.get(coupling.canonical.get(target, ""), ()):
            kept = None if v is None else mask[v[alive[v]]]
            found.append(None if kept is None or kept.all() else np.flatnonzero(kept))
        return found

    def _slice(self, node: fx.Node, region: Region, b: int, mask: Alive) -> fx.Node:
        """Read the branch's part of what ``node`` reads; ``node`` itself where that has none of the units."""
        positions = self._positions(node, mask)
        if all(at is None for at in positions):
            return node
        old = get_attribute(self.made, str(node.target))
        key = id(old), region.group, b
        if key not in self._sliced:
            part = old.detach()
            for axis, at in enumerate(positions):
                if at is not None:
                    part = part.index_select(axis, torch.from_numpy(at))
            self._sliced[key] = self._keep(str(node.target), b, part, old)
            self._held.append(old)
        new = self.made.graph.create_node("get_attr", self._sliced[key])
        new.meta = {"val": get_attribute(self.made, self._sliced[key]).detach()}
        self._of[new] = self._of[node][0], self._of[node][1] & mask
        self.reads.append(new)
        return new

    def _keep(self, target: str, b: int, part: torch.Tensor, old: torch.Tensor) -> str:
        """Put a branch's tensor beside the whole one; its dotted name."""
        prefix, _, leaf = target.rpartition(".")
        name = f"branch{b}"
        while _taken(self.made, where := f"{prefix}.{name}" if prefix else name, leaf):
            name += "_"
        if not self.made.add_submodule(where, _held(self.made, where)):
            raise RuntimeError(f"{where} cannot be added to the network")
        holder = self.made.get_submodule(where)
        if isinstance(old, nn.Parameter):
            holder.register_parameter(leaf, nn.Parameter(part, requires_grad=old.requires_grad))
        else:
            holder.register_buffer(leaf, part)
        return f"{where}.{leaf}"


def _held(made: nn.Module, path: str) -> nn.Module:
    try:
        return made.get_submodule(path)
    except AttributeError:
        return nn.Module()


def _taken(made: nn.Module, path: str, leaf: str) -> bool:
    """Whether something of another origin stands there."""
    holder = _held(made, path)
    return type(holder) is not nn.Module or hasattr(holder, leaf)


def _drop_bias(node: fx.Node) -> None:
    """Let a reader's result be the sum over the units alone."""
    argument = BIAS[operator_name(node.target)[0]]
    if node.target in _WITHOUT_BIAS:
        node.target, node.args = _WITHOUT_BIAS[node.target], tuple(node.args[1:3])
        node.kwargs = {}
    elif argument:
        at = [a.name for a in schema(node)].index(argument)
        if at < len(node.args):
            node.update_arg(at, None)
        elif argument in node.kwargs:
            node.update_kwarg(argument, None)
