"""Follow unit labels through a captured graph, operator by operator.

Every axis of every tensor carries a vector of unit labels: positions with the same label live and die
together, label 0 never dies. Rules (one small file per kind of operator) say how labels pass through an
operator and which must be joined. What no rule understands freezes its inputs: nothing is guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch._ops import HigherOrderOperator

from ..capture import flat_inputs, state_kept
from ..counter import Counter
from .units import Axes, Units, Vector

AxesOrList = Axes | list[Axes] | None
Rule = Callable[["Walk", fx.Node, dict[str, Any], Any], AxesOrList]
Value = torch.Tensor | Sequence[torch.Tensor]  # of a node, while the graph runs
RULES: dict[str, Rule] = {}

# How a parameter axis takes part: it makes the units, reads them, or accompanies them.
OUT, IN, SCALE, ALONG = "out", "in", "scale", "along"


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of the ATen operators ``names`` (without overload, without a trailing ``_``)."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


@dataclass(frozen=True)
class Constant:
    """An integer argument that counts positions: after pruning it is the number that is kept."""

    node: str
    argument: str  # schema name
    element: int | None  # position when the argument is a list
    vector: Vector | None  # labels of the counted positions; None: left to the operator (-1)


@dataclass(frozen=True)
class Term:
    """A product: fixed factor x number of kept positions of each vector."""

    factor: float
    vectors: tuple[Vector, ...]

    @property
    def whole(self) -> float:
        """Its value where all positions are kept."""
        return self.factor * math.prod(map(len, self.vectors))


@dataclass
class Fork:
    """A place where removal must follow one of several axes: a view that splits one, or groups."""

    lengths: tuple[int, ...]  # of each axis that may be followed
    taken: int
    vector: Vector | None = None  # labels along the axis taken


@dataclass
class Walk:
    """State of one pass over the graph: labels in, coupling out."""

    module: fx.GraphModule
    batch: int
    prefer: dict[str, int] = field(default_factory=dict)  # fork -> axis to follow instead of the longest

    units: Units = field(default_factory=Units)
    axes: dict[fx.Node, AxesOrList] = field(default_factory=dict)
    shapes: dict[fx.Node, Any] = field(default_factory=dict)
    parameters: dict[str, Axes] = field(default_factory=dict)  # canonical name -> labels per axis
    canonical: dict[str, str] = field(default_factory=dict)  # get_attr target -> canonical name
    roles: dict[tuple[str, int], str] = field(default_factory=dict)
    constants: list[Constant] = field(default_factory=list)
    # (node, part) -> multiply-accumulates per sample
    macs: dict[tuple[str, int], Term] = field(default_factory=dict)
    # node -> operands that it sums over, with the axis
    reads: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    statistics: set[str] = field(default_factory=set)  # nodes whose statistics run over the kept positions
    forks: dict[str, Fork] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)  # label -> why it was frozen
    values: dict[fx.Node, Any] = field(default_factory=dict)  # what the running interpreter holds
    # node computed from parameters alone (a normalised weight, say) -> those parameters
    made_of: dict[fx.Node, tuple[fx.Node, ...]] = field(default_factory=dict)

    def run(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Execute the graph on the example and follow the labels."""
        names: dict[int, str] = {}
        for node in self.module.graph.nodes:
            if node.op == "get_attr":
                tensor = get_attribute(self.module, node.target)
                target = str(node.target)
                self.canonical[target] = names.setdefault(id(tensor), target)
        interpreter = _Follower(self)
        with torch.no_grad(), state_kept(self.module):
            interpreter.run(*flat_inputs(self.module, args, kwargs), enable_io_processing=False)

    # -- what rules ask ------------------------------------------------------------------------------

    def of(self, argument: Any) -> Axes:
        """Labels per axis of a tensor argument, as representatives."""
        axes = self.axes[argument]
        assert isinstance(axes, tuple)
        axes = tuple(self.units.normal(v) for v in axes)
        self.axes[argument] = axes
        return axes

    def shape(self, argument: Any) -> tuple[int, ...]:
        return self.shapes[argument]

    def value(self, argument: fx.node.Argument) -> Any:
        """Concrete value of an argument (nodes looked up, containers rebuilt)."""
        return fx.node.map_arg(argument, lambda n: self.values[n])

    def tensor_arguments(self, node: fx.Node) -> list[fx.Node]:
        return [n for n in node.all_input_nodes if isinstance(self.axes.get(n), tuple)]

    def freeze(self, reason: str, *vectors: Vector | None) -> None:
        for v in vectors:
            if v is None:
                continue
            for label in np.unique(self.units.find(v)).tolist():
                if label:
                    self.reasons.setdefault(label, reason)
            self.units.freeze(v)

    def freeze_node(self, reason: str, *nodes: fx.Node) -> None:
        for n in nodes:
            axes = self.axes.get(n)
            for one in axes if isinstance(axes, list) else [axes]:
                self.freeze(reason, *(one or ()))

    def agree(self, where: str, parts: Sequence[Vector | None]) -> Vector | None:
        """One vector for axes that must keep the same positions; an axis that is fixed fixes all."""
        followed = [v for v in parts if v is not None]
        if not followed:
            return None
        if len(followed) < len(parts):
            self.freeze(f"meets a fixed axis in {where}", *followed)
            return None
        for other in followed[1:]:
            self.units.union(followed[0], other)
        return self.units.normal(followed[0])

    def read(self, node: fx.Node, argument: str, axis: int) -> None:
        """Note that ``node`` sums over ``axis`` of its operand ``argument`` (``"tensors.1"`` in a list)."""
        self.reads.setdefault(node.name, []).append((argument, axis))

    def over_kept(self, node: fx.Node) -> None:
        """Note that ``node`` takes statistics over a followed axis: once cut, over the kept positions."""
        self.statistics.add(node.name)

    def role(self, argument: Any, axis: int, role: str) -> None:
        """Note the part that an axis of a parameter plays, or of the parameters that a weight is made of."""
        if isinstance(argument, fx.Node) and argument.op == "get_attr":
            self.roles.setdefault((self.canonical[str(argument.target)], axis), role)
        elif role in (OUT, IN) and argument in self.made_of:
            v = self.of(argument)[axis]
            if v is None:
                return
            for source in self.made_of[argument]:
                if int(np.prod(self.shape(source))) == len(v):
                    continue  # a scale, which only accompanies
                for k, own in enumerate(self.of(source)):
                    key = self.canonical[str(source.target)], k
                    # Views repeat labels, where an axis is laid beside others.
                    same = own is not None and np.array_equal(np.unique(own), np.unique(v))
                    if same and self.roles.get(key, ALONG) == ALONG:
                        self.roles[key] = role

    def count(
        self,
        node: fx.Node,
        lengths: Sequence[int],
        vectors: Sequence[Vector | None],
        *,
        factor: int = 1,
        part: int = 0,
    ) -> None:
        """Note ``factor * prod(lengths)`` multiply-accumulates, per sample; followed axes shrink.

        ``part`` tells the products of one operator apart.
        """
        fixed = factor / self.batch
        followed = []
        for length, v in zip(lengths, vectors, strict=True):
            if v is None:
                fixed *= length
            else:
                followed.append(v)
        self.macs[node.name, part] = Term(fixed, tuple(followed))

    def constant(self, node: fx.Node, argument: str, element: int | None, vector: Vector | None) -> None:
        self.constants.append(Constant(node.name, argument, element, vector))

    def fork(self, name: str, matrix: np.ndarray) -> tuple[int, Vector | None]:
        """Choose the axis of ``matrix`` (labels, >= 2 axes) to remove along; join the labels of each slice.

        The longest axis gives the finest units; ``prefer`` overrides.
        """
        lengths = matrix.shape
        default = max(range(matrix.ndim), key=lambda axis: (lengths[axis], axis))
        taken = self.prefer.get(name, default)
        rows = np.moveaxis(matrix, taken, 0).reshape(lengths[taken], -1)
        vector = self.units.normal(self.units.tie_rows(rows))
        self.forks[name] = Fork(lengths, taken, vector)
        return taken, vector


class _Follower(fx.Interpreter):
    """Runs the graph and hands every node, with its value, to the rules."""

    def __init__(self, walk: Walk) -> None:
        super().__init__(walk.module)
        self.walk = walk

    def run_node(self, n: fx.Node) -> Any:
        walk = self.walk
        counter = Counter()
        # The counter cannot enter `cond` and its like: what they compute is frozen, and counts as nothing.
        with nullcontext() if isinstance(n.target, HigherOrderOperator) else counter:
            out = super().run_node(n)
        walk.values = self.env
        walk.shapes[n] = _shapes(out)
        inputs = n.all_input_nodes
        if n.op == "get_attr":
            walk.made_of[n] = (n,)
        elif inputs and all(i in walk.made_of for i in inputs):
            walk.made_of[n] = tuple(dict.fromkeys(s for i in inputs for s in walk.made_of[i]))
        walk.axes[n] = self._follow(n, out)
        if counter.macs and (n.name, 0) not in walk.macs:
            walk.macs[n.name, 0] = Term(counter.macs / walk.batch, ())  # its rule froze everything
        return out

    def _follow(self, n: fx.Node, out: Any) -> AxesOrList:
        walk = self.walk
        if n.op == "output":
            walk.freeze_node("is an output of the model", *n.all_input_nodes)
            return None
        if not _tensors(out):
            return None
        if n.op == "get_attr":
            return _parameter_axes(walk, n, out)
        if n.op == "placeholder":
            return (None,) * out.dim()
        name, mutates = operator_name(n.target)
        if name == "getitem":
            source, index = n.args
            assert isinstance(source, fx.Node)
            assert isinstance(index, int)
            several = walk.axes[source]
            assert isinstance(several, list)
            return several[index]
        follow = RULES.get(name)
        if follow is None and torch.Tag.pointwise in getattr(n.target, "tags", ()):
            follow = RULES["pointwise"]
        if follow is None:
            walk.freeze_node(f"the operator {name} is not followed", *n.all_input_nodes)
            return _fixed(out)
        try:
            axes = follow(walk, n, bind(n), out)
        except Exception as error:
            # A form of the operator that its rule does not know must not end the whole trace.
            walk.freeze_node(f"this form of {name} is not followed ({error})", *n.all_input_nodes)
            axes = _fixed(out)
        if mutates and isinstance(n.args[0], fx.Node):
            walk.axes[n.args[0]] = axes
        return axes


def operator_name(target: object) -> tuple[str, bool]:
    """``("add", True)`` for ``aten.add_.Tensor``: bare name, and whether the first argument is changed."""
    if isinstance(target, str):
        return "", False  # of an input, which may have an operator's name, or of a parameter
    schema = getattr(target, "_schema", None)
    if schema is None:
        return getattr(target, "__name__", str(target)), False
    name = schema.name.split("::")[-1]
    return (name.removesuffix("_"), True) if schema.is_mutable and name.endswith("_") else (name, False)


def schema(n: fx.Node) -> Sequence[Any]:
    """Declared arguments of an operator call; none for a plain Python function."""
    declared = getattr(n.target, "_schema", None)
    return [] if declared is None else declared.arguments


def bind(n: fx.Node) -> dict[str, Any]:
    """Arguments of an operator call by schema name, defaults filled in."""
    bound = {a.name: a.default_value for a in schema(n) if a.has_default_value()}
    bound.update({a.name: value for a, value in zip(schema(n), n.args, strict=False)})
    bound.update(n.kwargs)
    return bound


def get_attribute(root: nn.Module, target: str) -> Any:
    """``root.a.b.c`` from the dotted name."""
    for part in target.split("."):
        root = getattr(root, part)
    return root


def _tensors(out: Value) -> bool:
    return isinstance(out, torch.Tensor) or (
        isinstance(out, (tuple, list)) and any(isinstance(t, torch.Tensor) for t in out)
    )


def _shapes(out: Value) -> Any:
    if isinstance(out, torch.Tensor):
        return tuple(out.shape)
    return [_shapes(t) for t in out] if isinstance(out, (tuple, list)) else None


def _fixed(out: Value) -> Axes | list[Axes]:
    if isinstance(out, torch.Tensor):
        return (None,) * out.dim()
    return [(None,) * t.dim() if isinstance(t, torch.Tensor) else () for t in out]


def _parameter_axes(walk: Walk, n: fx.Node, tensor: torch.Tensor) -> Axes:
    if not tensor.is_floating_point():
        return (None,) * tensor.dim()
    name = walk.canonical[str(n.target)]
    if name not in walk.parameters:
        walk.parameters[name] = tuple(walk.units.fresh(length) for length in tensor.shape)
    return tuple(walk.units.normal(v) for v in walk.parameters[name])
