"""Place: where a compact operator may stand in a captured graph: a dense layer, or the branch of a block."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from ..blocks import Block
from ..coupling import Coupling
from ..coupling.units import Vector
from ..coupling.walk import bind, operator_name
from ..repair.sequential import COLUMNS
from .site import Site
from .stages import ACTIVATIONS, Bypass, Substitute

SIDE = 3  # of the kernel of a map that stands for a branch

_DIMS = {"linear": 0, "conv1d": 1, "conv2d": 2}
# Calls that give nothing below zero, and those that hand on their input's sign.
_NONNEGATIVE = frozenset(["relu", "relu6", "sigmoid", "softmax", "hardsigmoid"])
_POOLS = ("max_pool1d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")
_KEEPS_SIGN = frozenset([*_POOLS, "dropout", "flatten", "view", "reshape", "mean"])


@dataclass(frozen=True, slots=True)
class Around:
    """What is around a residual block's branch; nodes of the captured graph by name.

    Attributes:
        add, branch, keep, copies: as of :class:`.blocks.Block`.
        activation: name and numbers of the one behind the sum that goes with the block, or nothing.
        kernel: side of the kernel of the linear map that is closest to it; 0 for one that is no convolution.
    """

    add: str
    branch: int
    keep: str
    activation: tuple[Any, ...]
    kernel: int
    copies: bool

    @property
    def anonymous(self) -> Around:
        """The same without names."""
        return replace(self, add="", keep="")


@dataclass(frozen=True, slots=True)
class Place:
    """A dense layer that its own call alone reads, or a residual block's branch; hashable,
    without weights.

    Attributes:
        name: of the module, or of the weight where that has none.
        node: the call.
        weight, bias: canonical names.
        size, head: see :class:`Site`.
        calls: how often one sample goes through it, where the batch axis holds more than samples.
        around: of the branch of a residual block, in whose place something may stand; ``None`` of a layer.
        relu: the call of the ReLU behind, where it is followed by one.
    """

    name: str
    node: str
    weight: str
    bias: str | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    size: tuple[int, ...]
    nonnegative: bool
    followed_by_relu: bool
    calls: float = 1.0
    head: int = 0
    around: Around | None = None
    relu: str = ""

    @property
    def axis(self) -> int:
        """Of the channels, counted from the end."""
        return -1 - len(self.stride)

    def site(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        inputs_seen: torch.Tensor | None = None,
        through: torch.Tensor | None = None,
    ) -> Site:
        """With weights, and what was seen, see :class:`Site`."""
        return Site(
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            size=self.size,
            nonnegative=self.nonnegative,
            followed_by_relu=self.followed_by_relu,
            inputs_seen=inputs_seen,
            name=self.name,
            through=through,
            head=self.head,
        )


@dataclass(frozen=True, slots=True)
class Substitution:
    """An operator of one size in a layer's place."""

    place: Place
    operator: str
    option: float

    @property
    def anonymous(self) -> Substitution:
        """The same without names: equal for layers of one form."""
        bias = None if self.place.bias is None else ""
        around = None if self.place.around is None else self.place.around.anonymous
        place = replace(self.place, name="", node="", weight="", bias=bias, around=around, relu="")
        return replace(self, place=place)

    def standing(self, substitute: Substitute) -> nn.Module:
        """What is called in the place, of which the substitute is the part that has weights."""
        around = self.place.around
        return substitute if around is None else Bypass(substitute, around.activation)


def place_of(node: fx.Node, name: str, coupling: Coupling, batch: int) -> Place | str:
    """The place of a dense call whose weights are parameters, or why nothing can stand for it."""
    bound = bind(node)
    kind = operator_name(node.target)[0]
    if kind not in _DIMS:
        return f"is a {kind}: operators stand for conv1d, conv2d and linear"
    held = [bound["weight"], bound.get("bias")]
    names = [coupling.canonical[str(t.target)] if isinstance(t, fx.Node) else None for t in held]
    assert names[0] is not None
    if bound["input"].name not in coupling.tensors:
        return "reads something whose shape is not followed"
    shape = [length for length, _ in coupling.tensors[bound["input"].name]]  # at the example's batch
    dims = _DIMS[kind]
    if dims and len(shape) != dims + 2:
        return "is called on inputs without a batch axis"
    if not bound["weight"].meta["val"].is_floating_point():
        return "holds no real numbers"
    stride, dilation = (_sizes(bound.get(argument, 1), dims) for argument in ("stride", "dilation"))
    padding = bound.get("padding", 0)
    if padding == "same":
        kernel = bound["weight"].meta["val"].shape[2:]
        span = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if any(s % 2 for s in span):
            return "pads more on one side than on the other"
        padding = [s // 2 for s in span]
    rows = math.prod(shape[:-1]) // batch
    relu = _relu_behind(node)
    return Place(
        name,
        node.name,
        names[0],
        names[1],
        stride,
        _sizes(0 if padding == "valid" else padding, dims),
        dilation,
        tuple(shape[2:]) if dims else (max(rows, 1),),
        _nonnegative(bound["input"]),
        bool(relu),
        shape[0] / batch if dims else 1.0,
        _head(coupling.parameters.get(names[0], (None,))[0]),
        relu=relu,
    )


def _head(labels: Vector | None) -> int:
    """Outputs of one head: units of several neighbouring outputs each, all of one size; else 0."""
    if labels is None:
        return 0
    begins = np.flatnonzero(np.diff(labels, prepend=-1))
    sizes = np.diff(begins, append=len(labels))
    alone = len(np.unique(labels[begins])) == len(begins) and (labels > 0).all()
    return int(sizes[0]) if alone and sizes[0] > 1 and (sizes == sizes[0]).all() and len(sizes) > 1 else 0


def _sizes(value: Any, dims: int) -> tuple[int, ...]:
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(int(v) for v in (listed * dims if len(listed) == 1 else listed)[:dims])


def _nonnegative(n: fx.Node) -> bool:
    """Whether no number that ``n`` gives is below zero, as far as the graph tells."""
    while isinstance(n, fx.Node) and n.op == "call_function":
        kind = operator_name(n.target)[0].rstrip("_")
        if kind in _NONNEGATIVE or (kind == "hardtanh" and len(n.args) > 1 and n.args[1] == 0):
            return True
        if kind not in _KEEPS_SIGN:
            return False
        n = n.args[0]  # type: ignore[assignment]
    return False


def _relu_behind(node: fx.Node) -> str:
    """Name of the ReLU, maybe behind a batch norm, that alone reads a call; empty where others do."""
    found = []
    for user in node.users:
        kind = operator_name(user.target)[0].rstrip("_") if user.op == "call_function" else ""
        name = user.name if kind == "relu" else _relu_behind(user) if kind == "batch_norm" else ""
        if not name:
            return ""
        found.append(name)
    return found[0] if found else ""


def place_beside(block: Block, graph: fx.Graph, coupling: Coupling, batch: int) -> Place | str:
    """The place of a residual block's branch, or why nothing can stand for it."""
    nodes = {n.name: n for n in graph.nodes}
    keep, out = nodes[block.keep], nodes[block.out]
    activation: tuple[Any, ...] = ()
    if block.out != block.add:
        name = operator_name(out.target)[0].rstrip("_")
        if name not in ACTIVATIONS:
            return f"ends in {name}"
        activation = name, *(float(a) for a in out.args[1:])
    axes = coupling.tensors[block.keep]  # at the example's batch
    cut = [i for i, (_, labels) in enumerate(axes) if labels is not None]
    inside = {operator_name(nodes[n].target)[0] for n in block.nodes if nodes[n].op == "call_function"}
    last = len(axes) - 1
    channels = cut[0] if len(cut) == 1 else 1 if inside & {"conv1d", "conv2d"} else last
    if len(cut) > 1 or len(axes) < 2 or (channels != last and (channels != 1 or len(axes) > 4)):
        return "hands on tensors whose channels are not along the second or the last axis"
    shape = [length for length, _ in axes]
    dims = 0 if channels == last else len(axes) - 2
    wide = SIDE**dims * shape[channels] > COLUMNS or min(shape[2:], default=1) < SIDE
    kernel = 0 if not dims else 1 if wide else SIDE
    rows = math.prod(shape[:-1]) // batch
    return Place(
        block.name,
        block.out,
        "",
        "",
        (1,) * dims,
        (kernel // 2,) * dims,
        (1,) * dims,
        tuple(shape[2:]) if dims else (max(rows, 1),),
        _nonnegative(keep),
        False,
        shape[0] / batch if dims else 1.0,
        around=Around(block.add, block.branch, block.keep, activation, kernel, block.copies),
    )
