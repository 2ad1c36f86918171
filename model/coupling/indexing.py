"""Operators that only move positions: views, permutations, slices, splits, concatenations, shuffles.

Such an operator is *run on the labels*: each followed axis is laid out over the whole tensor, the operator
is applied, and the axis along which the labels vary in the result is where it went. Where they vary along
several axes (a view that splits a followed axis), removal must be a whole slice along one: a fork.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from ..capture import UNBOUNDED
from .units import Vector
from .walk import AxesOrList, Value, Walk, bind, operator_name, rule

aten = torch.ops.aten

# Sizes that a view-like operator states, by operator name: the list argument that holds the result's shape.
_SHAPE_ARGUMENT = {
    "view": "size",
    "_unsafe_view": "size",
    "reshape": "shape",
    "expand": "size",
    "view_copy": "size",
}

_LIKE = (aten.expand_as.default, aten.view_as.default, aten.reshape_as.default)
_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.view_copy.default)
_ALONG_ONE_AXIS = ("slice", "narrow", "split_with_sizes")
_PADS = ("pad", "constant_pad_nd")


@rule(
    "view", "_unsafe_view", "reshape", "view_copy", "flatten", "unflatten", "squeeze", "unsqueeze",
    "permute", "transpose", "t", "swapaxes", "swapdims", "movedim", "moveaxis", "numpy_T", "mT",
    "slice", "narrow", "select", "split_with_sizes", "split", "chunk", "unbind", "unsafe_chunk",
    "tensor_split", "expand", "expand_as", "view_as", "reshape_as", "broadcast_to", "repeat",
    "repeat_interleave", "tile",
    "pad", "constant_pad_nd", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "roll", "flip", "unfold",
    "diagonal", "index", "index_select",
)  # fmt: skip
def move(walk: Walk, n: fx.Node, a: dict[str, Any], out: Any) -> AxesOrList:
    x = n.args[0]
    assert isinstance(x, fx.Node)
    results = list(out) if isinstance(out, (tuple, list)) else [out]
    made: list[list[Vector | None]] = [[None] * t.dim() for t in results]
    _refuse_order_dependent(walk, n, a, x)
    name = operator_name(n.target)[0]
    for axis in range(len(walk.shape(x))):
        vector = walk.of(x)[axis]
        if vector is None:
            continue
        if name in _ALONG_ONE_AXIS and axis != a["dim"] % len(walk.shape(x)):
            for one in made:  # also where nothing is left along the other axis, so that no label can be seen
                one[axis] = vector
            continue
        laid = _run_on_labels(walk, n, vector, axis, walk.shape(x))
        for k, labels in enumerate(laid):
            _place(walk, n.name if len(laid) == 1 else f"{n.name}.{k}", labels, made[k])
    if n.target is aten.expand.default:
        _stretch(walk, a["size"], x, made[0])
    elif n.target in _LIKE:
        _follow_shape(walk, n, a["other"], x, made[0])
    _note_constants(walk, n, a, x, made)
    axes = [tuple(walk.units.normal(v) for v in one) for one in made]
    return axes if isinstance(out, (tuple, list)) else axes[0]


def _run_on_labels(walk: Walk, n: fx.Node, v: Vector, axis: int, shape: tuple[int, ...]) -> list[np.ndarray]:
    """The operator applied to labels laid along ``axis`` (float64, exact; every operator takes it)."""
    line = torch.from_numpy(v).double().reshape([-1 if d == axis else 1 for d in range(len(shape))])
    labels = line.expand(shape)
    rest, named = walk.value(n.args[1:]), walk.value(n.kwargs)
    if operator_name(n.target)[0] in _PADS and bind(n).get("mode", "constant") == "constant":
        # Whatever the padding holds, its positions are fixed; what pads other axes holds the same along this.
        start = 2 * (len(shape) - 1 - axis)
        rest = ([0] * start + list(walk.value(bind(n)["pad"]))[start : start + 2],)
        named = {"value": 0.0}
    # Labels are laid out by expansion, over which a view is not always defined; a reshape is.
    target = aten.reshape.default if n.target in _VIEWS else n.target
    out = target(labels, *rest, **named)  # type: ignore[operator]
    return [t.numpy().astype(np.int64) for t in (out if isinstance(out, (tuple, list)) else [out])]


def _place(walk: Walk, name: str, labels: np.ndarray, made: list[Vector | None]) -> None:
    """Find the axis along which ``labels`` vary and put the vector there."""
    varying = [d for d in range(labels.ndim) if labels.shape[d] > 1 and _varies(labels, d)]
    core = labels[tuple(slice(None) if d in varying else slice(0, 1) for d in range(labels.ndim))]
    if not varying:
        walk.freeze(f"is taken out whole by {name}", core.reshape(-1))
        return
    if len(varying) == 1:
        taken, vector = 0, walk.units.normal(core.reshape(-1))
    else:
        taken, vector = walk.fork(name, core.reshape([labels.shape[d] for d in varying]))
    target = varying[taken]
    if made[target] is not None:
        # Two followed axes merged into one: a position would die with either; follow the first alone.
        walk.freeze(f"is merged with another followed axis by {name}", vector)
        return
    made[target] = vector


def _varies(labels: np.ndarray, axis: int) -> bool:
    first = np.take(labels, [0], axis=axis)
    return not bool((labels == first).all())


def _refuse_order_dependent(walk: Walk, n: fx.Node, a: dict[str, Any], x: fx.Node) -> None:
    """Freeze axes whose positions an operator picks by number, in a way that has no pruned equivalent."""
    name = operator_name(n.target)[0]
    rank = len(walk.shape(x))
    axes = walk.of(x)
    if name == "slice" and a.get("step", 1) != 1:
        walk.freeze(f"{n.name} takes every {a['step']}th position", axes[a["dim"] % rank])
    elif name in ("index_select", "unfold"):
        dim = a["dim"] if name == "index_select" else a["dimension"]
        walk.freeze(f"{n.name} picks positions by number", axes[dim % rank])
    elif name == "index":
        for d, picked in enumerate(a["indices"]):
            if picked is not None:
                walk.freeze(f"{n.name} picks positions by number", axes[d])
    elif name == "roll":
        walk.freeze(f"{n.name} shifts positions", *(axes[d % rank] for d in a["dims"] or range(rank)))
    elif name in ("tensor_split", "split", "chunk", "unsafe_chunk"):
        # Splits of constant size were rewritten at capture; what is left depends on the batch.
        dim = a.get("dim", 0)
        walk.freeze(f"{n.name} splits by a size known only at run time", axes[dim % rank])
    elif name == "diagonal":
        walk.freeze(f"{n.name} takes a diagonal", *axes)


def _stretch(walk: Walk, after: list[Any], x: fx.Node, made: list[Vector | None]) -> None:
    """Positions that an expansion repeats are all alike, so any of them may go: new units."""
    before = walk.shape(x)
    for axis, size in enumerate(after):
        k = axis - (len(after) - len(before))
        if isinstance(size, int) and size > 1 and (k < 0 or before[k] == 1) and made[axis] is None:
            made[axis] = walk.units.fresh(size)


def _follow_shape(walk: Walk, n: fx.Node, other: fx.Node, x: fx.Node, made: list[Vector | None]) -> None:
    """The result takes the other operand's shape: repeated positions follow it, the rest must agree."""
    before, after = walk.shape(x), walk.shape(other)
    for axis, v in enumerate(walk.of(other)):
        k = axis - (len(after) - len(before))
        stretched = n.target is aten.expand_as.default and (k < 0 or before[k] == 1 != after[axis])
        made[axis] = v if stretched else walk.agree(n.name, [made[axis], v])


def _note_constants(
    walk: Walk, n: fx.Node, a: dict[str, Any], x: fx.Node, made: list[list[Vector | None]]
) -> None:
    """Register the integer arguments that count followed positions."""
    name = operator_name(n.target)[0]
    rank = len(walk.shape(x))
    if name in _SHAPE_ARGUMENT:
        _note_shape(walk, n, _SHAPE_ARGUMENT[name], a[_SHAPE_ARGUMENT[name]], made[0], 0)
    elif name == "unflatten":
        _note_shape(walk, n, "sizes", a["sizes"], made[0], a["dim"] % rank)
    elif name == "split_with_sizes":
        dim = a["dim"] % rank
        for k, one in enumerate(made):
            if (v := one[dim]) is not None:
                walk.constant(n, "split_sizes", k, v)
    elif name in ("slice", "narrow"):
        dim = a["dim"] % rank
        v = walk.of(x)[dim]
        if v is None:
            return
        if name == "narrow":
            start, length = a["start"] % len(v), a["length"]
            if start:
                walk.constant(n, "start", None, v[:start])
            walk.constant(n, "length", None, v[start : start + length])
            return
        for bound in ("start", "end"):
            at = a[bound]
            if isinstance(at, fx.Node):
                walk.freeze(f"{n.name} is cut where only the run knows", v)
            elif at is not None and at != 0 and at < UNBOUNDED:
                walk.constant(n, bound, None, v[:at])  # a negative bound counts from the end, as in Python


def _note_shape(
    walk: Walk, n: fx.Node, argument: str, sizes: list[Any], made: list[Vector | None], first: int
) -> None:
    for k, size in enumerate(sizes):
        v = made[first + k]
        if v is None or (isinstance(size, int) and size == -1):
            continue
        if isinstance(size, fx.Node) and -1 not in sizes and n.target in (*_VIEWS, aten.reshape.default):
            walk.constant(n, argument, k, None)
            sizes = [*sizes[:k], -1, *sizes[k + 1 :]]  # one size at most can be left open
        elif isinstance(size, fx.Node):
            walk.freeze(f"{n.name} computes its size from the batch", v)
        else:
            walk.constant(n, argument, k, v)


@rule("cat", "concat", "concatenate")
def cat(walk: Walk, n: fx.Node, a: dict[str, Any], out: torch.Tensor) -> AxesOrList:
    """Along the joined axis the labels follow each other; the other axes must agree."""
    parts = [t for t in a["tensors"] if walk.shape(t) != (0,)]
    dim = a.get("dim", 0) % out.dim()
    made: list[Vector | None] = []
    for axis in range(out.dim()):
        if axis != dim:
            made.append(walk.agree(n.name, [walk.of(t)[axis] for t in parts]))
            continue
        pieces = [walk.of(t)[axis] for t in parts]
        if all(p is None for p in pieces):
            made.append(None)
        else:
            lengths = [walk.shape(t)[axis] for t in parts]
            made.append(
                np.concatenate(
                    [np.zeros(s, np.int64) if p is None else p for p, s in zip(pieces, lengths, strict=True)]
                )
            )
    return tuple(made)


@rule("stack")
def stack(walk: Walk, n: fx.Node, a: dict[str, Any], out: torch.Tensor) -> AxesOrList:
    dim = a.get("dim", 0) % out.dim()
    parts = [walk.of(t) for t in a["tensors"]]
    agreed = [walk.agree(n.name, [p[axis] for p in parts]) for axis in range(len(parts[0]))]
    return (*agreed[:dim], None, *agreed[dim:])


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
def constant_tensor(walk: Walk, n: fx.Node, a: dict[str, Any], out: Value) -> AxesOrList:
    """All positions are alike, so any of them may go: new units along every axis of constant length."""
    made = [walk.units.fresh(size) if isinstance(size, int) else None for size in a["size"]]
    _note_shape(walk, n, "size", a["size"], made, 0)
    return tuple(made)


@rule("im2col")
def im2col(walk: Walk, n: fx.Node, a: dict[str, Any], out: Value) -> AxesOrList:
    """Patches: a channel becomes kernel-many neighbouring rows."""
    axes = walk.of(a["self"])
    walk.freeze(f"is a spatial axis of {n.name}", *axes[-2:])
    rows = None if axes[-3] is None else np.repeat(axes[-3], int(np.prod(a["kernel_size"])))
    return (*axes[:-3], rows, None)


@rule("col2im")
def col2im(walk: Walk, n: fx.Node, a: dict[str, Any], out: Value) -> AxesOrList:
    """Overlapping patches added up: the rows of one channel go together."""
    *batch, rows, positions = walk.of(a["self"])
    walk.freeze(f"is a spatial axis of {n.name}", positions)
    made = None
    if rows is not None:
        made = walk.units.normal(walk.units.tie_rows(rows.reshape(-1, int(np.prod(a["kernel_size"])))))
    return (*batch, made, None, None)
