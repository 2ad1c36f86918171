"""Residual blocks that can be dropped, found in a captured graph without a rule for any architecture.

A block is an addition y = x + f(x) of equal shapes in which x arrives by the identity, and whose branch f
is entered from x alone and left by that addition alone. Besides x it may read parameters and whatever does
not depend on x (an attention mask, a table of positions). Dropping the block means y := x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from .capture import Captured
from .coupling import Coupling
from .coupling.walk import bind, get_attribute, operator_name
from .liveness import Liveness, trailing_nodes

# Operators that hand on the values of their first input, in another shape at most.
# fmt: off
IDENTITIES = frozenset([
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze",
    "unsqueeze", "contiguous", "clone", "alias", "detach", "dropout", "feature_dropout", "alpha_dropout",
    "feature_alpha_dropout", "native_dropout",
])
# Operators whose result shares the memory of their first input.
VIEWS = IDENTITIES - {"clone", "native_dropout"} | frozenset([
    "slice", "narrow", "select", "split_with_sizes", "split", "chunk", "unbind", "expand", "expand_as",
    "view_as", "to", "getitem", "lift_fresh", "unfold", "diagonal", "movedim",
])
# fmt: on
IDEMPOTENT = ("relu", "relu6", "hardtanh", "clamp_min")  # applied twice they do no more than once
MONOTONE = ("max_pool1d", "max_pool2d", "max_pool3d")  # their results lie among their inputs


@dataclass(frozen=True)
class Block:
    """A residual block; nodes are those of the captured graph, by name."""

    name: str  # the user's module that names the branch best; unique
    nodes: tuple[str, ...]  # computed no more when this block alone is dropped
    macs: float  # multiply-accumulates per sample that go then
    params: int  # elements of parameters that go then; none where another block shares them
    add: str  # y = x + f(x)
    branch: int  # which operand of ``add`` is f(x): 0 or 1
    keep: str  # the other operand: x, as it arrives
    out: str  # what ``keep`` takes the place of: y, or the activation of y that x has been through
    copies: bool  # x must be copied: something is overwritten later on while x is still read
    module: str | None  # user's module that makes ``out`` of ``keep`` alone; None: there is none


def find_blocks(captured: Captured, coupling: Coupling) -> tuple[Block, ...]:
    """All residual blocks, in the graph's order; the costs are those of dropping each alone."""
    finder = _Finder(captured, coupling)
    found = [b for n in finder.nodes if (b := finder.block(n)) is not None]
    liveness = Liveness(captured.graph_module.graph, found)
    measured = [_measured(b, k, len(found), liveness, captured, coupling) for k, b in enumerate(found)]
    total = sum(p.numel() for p in captured.source.parameters())
    kept = [b for b in measured if (b.macs or finder.owns[b.add]) and b.params < total]
    return tuple(finder.named(kept))


def _measured(
    block: Block, k: int, blocks: int, liveness: Liveness, captured: Captured, coupling: Coupling
) -> Block:
    alone = torch.zeros(blocks, dtype=torch.bool)
    alone[k] = True
    dead = liveness.dead(alone.numpy())
    nodes = captured.graph_module.graph.nodes
    gone: dict[str, bool] = {}  # parameter, by canonical name -> nothing reads it any more
    for n in nodes:
        if n.op == "get_attr":
            name = coupling.canonical[str(n.target)]
            gone[name] = gone.get(name, True) and n.name in dead
    tensors = [get_attribute(captured.graph_module, name) for name, dies in gone.items() if dies]
    macs = (
        term.factor * math.prod(len(v) for v in term.vectors)
        for (node, _), term in coupling.macs.items()
        if node in dead
    )
    return replace(
        block,
        nodes=tuple(n.name for n in nodes if n.op != "get_attr" and n.name in {*dead, block.out}),
        macs=float(sum(macs)),
        params=sum(t.numel() for t in tensors if isinstance(t, torch.nn.Parameter)),
    )


class _Finder:
    def __init__(self, captured: Captured, coupling: Coupling) -> None:
        self.nodes: list[fx.Node] = list(captured.graph_module.graph.nodes)
        self.owns: dict[str, bool] = {}  # addition -> its branch reads a parameter
        self._at = {n: i for i, n in enumerate(self.nodes)}
        self._tensors = coupling.tensors
        self._parameters = {
            n for n in self.nodes
            if n.op == "get_attr"
            and isinstance(get_attribute(captured.graph_module, str(n.target)), torch.nn.Parameter)
        }  # fmt: skip
        self._branches: dict[str, set[fx.Node]] = {}
        self._trailing = trailing_nodes(captured.graph_module.graph)
        self._storage: dict[fx.Node, fx.Node] = {}
        self._last_write = -1
        for n in self.nodes:
            name, writes = operator_name(n.target) if n.op == "call_function" else ("", False)
            first = n.args[0] if n.args else None
            shares = (writes or name in VIEWS) and isinstance(first, fx.Node)
            self._storage[n] = self._storage[first] if shares else n  # type: ignore[index]
            if writes:
                self._last_write = self._at[n]
        self._inside: dict[str, list[fx.Node]] = {}  # module -> nodes called within it
        for n in self.nodes:
            if n.op == "call_function":
                for path in _stack(n):
                    self._inside.setdefault(path, []).append(n)

    # -- finding -------------------------------------------------------------------------------------

    def block(self, add: fx.Node) -> Block | None:
        """The block that ends in ``add``; names and costs are still to be told."""
        if add.op != "call_function" or operator_name(add.target)[0] != "add" or not add.users:
            return None
        bound = bind(add)
        operands: tuple[Any, Any] = bound.get("self"), bound.get("other")
        if bound.get("alpha", 1) != 1 or not all(self._floating(n) for n in (*operands, add)):
            return None
        if len({self._shape(n) for n in (*operands, add)}) > 1:
            return None
        for branch, keep in ((1, operands[0]), (0, operands[1])):
            nodes = self._branch(add, keep, operands[branch])
            if nodes:
                break
        else:
            return None
        self._branches[add.name] = nodes
        self.owns[add.name] = any(i in self._parameters for n in nodes for i in n.all_input_nodes)
        outs = [out for out in (self._activation(add, keep), add) if out is not None]
        modules = [self._module(out, keep) for out in outs]
        at = next((i for i, m in enumerate(modules) if m is not None), 0)
        out, copies = outs[at], self._copies(outs[at], keep)
        module = None if copies else modules[at]
        return Block("", (), 0.0, 0, add.name, branch, keep.name, out.name, copies, module)

    def _floating(self, n: object) -> bool:
        if not isinstance(n, fx.Node) or n.op == "get_attr" or n.name not in self._tensors:
            return False
        value = n.meta.get("val")
        return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())

    def _shape(self, n: fx.Node) -> tuple[tuple[int, ...], torch.dtype]:
        return tuple(length for length, _ in self._tensors[n.name]), n.meta["val"].dtype

    def _branch(self, add: fx.Node, keep: fx.Node, end: fx.Node) -> set[fx.Node]:
        """Nodes of f, or none: x is ``keep`` or what came to it by the identity."""
        path: set[fx.Node] = set()
        x: object = keep
        while isinstance(x, fx.Node) and x.op in ("call_function", "placeholder"):
            path.add(x)
            nodes = self._between(path, self._at[x], end)
            if nodes and self._closed(nodes, add, end):
                return nodes
            if x.op == "placeholder" or operator_name(x.target)[0] not in IDENTITIES:
                break
            x = x.args[0]
        return set()

    def _between(self, path: set[fx.Node], start: int, end: fx.Node) -> set[fx.Node]:
        """What lies between x and ``end`` and depends on the values of x (not on its shape alone)."""
        seen: set[fx.Node] = set()
        stack = [end]
        while stack:
            n = stack.pop()
            if n in seen or n in path or self._at[n] <= start or n.op != "call_function":
                continue
            seen.add(n)
            stack += n.all_input_nodes
        nodes: set[fx.Node] = set()
        for n in sorted(seen, key=self._at.__getitem__):
            is_size = not isinstance(n.meta.get("val"), (torch.Tensor, list, tuple))
            if any(i in nodes or (i in path and not is_size) for i in n.all_input_nodes):
                nodes.add(n)
        return nodes if end in nodes else set()

    def _closed(self, nodes: set[fx.Node], add: fx.Node, end: fx.Node) -> bool:
        """Whether ``nodes`` are read by each other and ``add`` alone, and overwrite nothing of others."""
        for n in nodes:
            own = self._storage[n] in nodes
            for u in n.users:
                if u not in nodes and not (u is add and n is end) and not (own and u in self._trailing):
                    return False
            if operator_name(n.target)[1] and not own:
                return False
        return True

    def _activation(self, add: fx.Node, keep: fx.Node) -> fx.Node | None:
        """The one reader of ``add`` if it is an activation that ``keep`` comes out of already."""
        reader = next(iter(add.users))
        if len(add.users) > 1 or reader.op != "call_function":
            return None
        if operator_name(reader.target)[0] not in IDEMPOTENT or reader.args[0] is not add:
            return None
        x: object = keep
        while isinstance(x, fx.Node) and x.op == "call_function":
            name = operator_name(x.target)[0]
            if name == operator_name(reader.target)[0]:
                return reader if x.args[1:] == reader.args[1:] and x.kwargs == reader.kwargs else None
            if name not in IDENTITIES and name not in MONOTONE:
                return None
            x = x.args[0]
        return None

    def _copies(self, out: fx.Node, keep: fx.Node) -> bool:
        """Would x, standing for ``out``, be overwritten while others read it (or belong to the caller)?

        Told whatever else is dropped: any later write may reach what ``out`` becomes.
        """
        if self._last_write <= self._at[out]:
            return False
        root = self._storage[keep]
        if root.op != "call_function":
            return True
        sharing = (n for n in self.nodes[: self._at[out]] if self._storage[n] is root)
        return any(self._at[u] > self._at[out] for n in sharing for u in n.users)

    def _module(self, out: fx.Node, keep: fx.Node) -> str | None:
        """Innermost module that is called once, with ``keep`` alone, and gives ``out`` alone."""
        for path in reversed(_stack(out)):
            inside = set(self._inside[path])
            read = {i for n in inside for i in n.all_input_nodes} - inside
            read = {i for i in read if i.op != "get_attr" and isinstance(i.meta.get("val"), torch.Tensor)}
            given = {n for n in inside if not n.users.keys() <= inside}
            if read == {keep} and given == {out}:
                return path
        return None

    # -- naming --------------------------------------------------------------------------------------

    def named(self, blocks: Sequence[Block]) -> list[Block]:
        """Blocks with the deepest module around the branch as name; of several in one, the part of each."""
        around = [self._around(b) for b in blocks]
        names = [
            path if path and around.count(path) == 1 else self._part(b, path)
            for b, path in zip(blocks, around, strict=True)
        ]
        taken: dict[str, int] = {}
        out = []
        for b, name in zip(blocks, names, strict=True):
            taken[name] = taken.get(name, 0) + 1
            out.append(replace(b, name=name if taken[name] == 1 else f"{name}[{taken[name]}]"))
        return out

    def _around(self, b: Block) -> str:
        stacks = [_stack(n) for n in self._branches[b.add]]
        shared = [path for path in stacks[0] if all(path in s for s in stacks)]
        return shared[-1] if shared else ""

    def _part(self, b: Block, path: str) -> str:
        """The module right below ``path`` in which most parameters of the branch lie."""
        depth = len(path.split(".")) if path else 0
        sizes: dict[str, int] = {}
        for n in self._branches[b.add]:
            below = [p for p in _stack(n) if len(p.split(".")) == depth + 1 and p.startswith(path)]
            if below:
                held = [i for i in n.all_input_nodes if i in self._parameters]
                sizes[below[0]] = sizes.get(below[0], 0) + sum(i.meta["val"].numel() for i in held)
        return max(sizes, key=sizes.__getitem__) if sizes else path or b.add


def _stack(n: fx.Node) -> list[str]:
    """Paths of the modules that a call lies in, outermost first, the model itself left out."""
    entries = (n.meta.get("nn_module_stack") or {}).values()
    return list(dict.fromkeys(str(path) for path, _ in entries if path))
