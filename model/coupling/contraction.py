"""Operators that sum over an axis: convolutions, linear maps, matrix products, attention, embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from .pointwise import broadcast
from .units import Axes, Vector
from .walk import ALONG, IN, OUT, AxesOrList, Fork, Walk, rule


def _bias(walk: Walk, n: fx.Node, bias: fx.node.Argument, made: Vector | None) -> Vector | None:
    if not isinstance(bias, fx.Node):
        return made
    walk.role(bias, 0, ALONG)
    return walk.agree(n.name, [made, walk.of(bias)[0]])


@rule("linear")
def linear(walk: Walk, n: fx.Node, a: dict[str, Any], out: torch.Tensor) -> AxesOrList:
    x, w = a["input"], a["weight"]
    last = len(walk.shape(x)) - 1
    walk.role(w, 0, OUT)
    walk.role(w, 1, IN)
    walk.agree(n.name, [walk.of(x)[last], walk.of(w)[1]])
    made = _bias(walk, n, a.get("bias"), walk.of(w)[0])
    walk.read(n, "input", last)
    axes = (*walk.of(x)[:last], made)
    walk.count(n, (*out.shape, walk.shape(w)[1]), (*axes, walk.of(w)[1]))
    return axes


@rule("conv1d", "conv2d", "conv3d", "convolution")
def conv(walk: Walk, n: fx.Node, a: dict[str, Any], out: torch.Tensor) -> AxesOrList:
    if a.get("transposed"):
        return transposed(walk, n, a, out)
    x, w, groups = a["input"], a["weight"], a["groups"]
    channel = _channel_axis(walk, n, a)
    if not isinstance(groups, int):
        _per_sample(walk, n, x, w, channel, walk.value(groups))
    elif groups == 1:
        walk.role(w, 0, OUT)
        walk.role(w, 1, IN)
        walk.agree(n.name, [walk.of(x)[channel], walk.of(w)[1]])
        walk.read(n, "input", channel)
    else:
        _grouped(walk, n, x, w, channel, groups)
    made = _bias(walk, n, a.get("bias"), walk.of(w)[0])
    axes = _with_channel(walk.of(x), channel, made)
    kernel = walk.shape(w)[2:]
    walk.count(n, (*out.shape, walk.shape(w)[1]), (*axes, walk.of(w)[1]), factor=int(np.prod(kernel)))
    return axes


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed(walk: Walk, n: fx.Node, a: dict[str, Any], out: torch.Tensor) -> AxesOrList:
    x, w, groups = a["input"], a["weight"], a["groups"]
    channel = _channel_axis(walk, n, a)
    if groups == 1:
        walk.role(w, 1, OUT)
        walk.role(w, 0, IN)
        walk.agree(n.name, [walk.of(x)[channel], walk.of(w)[0]])
        walk.read(n, "input", channel)
        made = walk.of(w)[1]
    else:
        made = _grouped_transposed(walk, n, x, w, channel, groups)
    made = _bias(walk, n, a.get("bias"), made)
    axes = _with_channel(walk.of(x), channel, made)
    lengths = (*walk.shape(x), walk.shape(w)[1])
    walk.count(n, lengths, (*walk.of(x), walk.of(w)[1]), factor=int(np.prod(walk.shape(w)[2:])))
    return axes


def _channel_axis(walk: Walk, n: fx.Node, a: dict[str, Any]) -> int:
    """Axis of the channels. Kernel taps are fixed, and spatial axes along which the kernel moves."""
    x, w = a["input"], a["weight"]
    taps = walk.shape(w)[2:]
    channel = len(walk.shape(x)) - (len(taps) + 1)
    walk.freeze(f"is a kernel axis of {n.name}", *walk.of(w)[2:])
    for k, length in enumerate(taps):
        pads = [a["padding"], a.get("output_padding", 0)]
        if length != 1 or along(a["stride"], k) != 1 or any(along(p, k) not in (0, "valid") for p in pads):
            walk.freeze(f"is an axis along which the kernel of {n.name} moves", walk.of(x)[channel + 1 + k])
    return channel


def along(setting: object, axis: int) -> Any:
    """A stride or padding along one spatial axis; one value may stand for all."""
    return setting[axis % len(setting)] if isinstance(setting, (list, tuple)) else setting


def _with_channel(axes: Axes, channel: int, made: Vector | None) -> Axes:
    return (*axes[:channel], made, *axes[channel + 1 :])


def _grouped(walk: Walk, n: fx.Node, x: fx.Node, w: fx.Node, channel: int, groups: int) -> None:
    """Remove whole groups, or the same positions in every group (see :meth:`Walk.fork`)."""
    xin, wout = walk.of(x)[channel], walk.of(w)[0]
    if xin is None or wout is None:
        walk.freeze(f"meets a fixed axis in {n.name}", xin, wout, walk.of(w)[1])
        return
    rows_in, rows_out = xin.reshape(groups, -1), wout.reshape(groups, -1)
    walk.role(w, 0, OUT if rows_in.shape[1] > 1 else ALONG)
    both = np.concatenate([rows_in, rows_out], axis=1)  # [groups, in + out of one group]
    along = walk.prefer.get(n.name, 0 if groups >= max(rows_in.shape[1], rows_out.shape[1]) else 1)
    if rows_in.shape[1] == 1:
        along = 0  # depthwise: the group is the channel
    if along == 0:
        walk.units.tie_rows(both)
        walk.freeze(f"removing whole groups of {n.name} keeps each group's inputs", walk.of(w)[1])
        kept = walk.units.normal(both[:, 0])
        if kept is not None:
            walk.constant(n, "groups", None, kept)
    else:
        walk.units.tie_rows(rows_out.T)
        kept = walk.units.tie_rows(rows_in.T)
        walk.role(w, 1, IN)
        walk.agree(n.name, [walk.units.normal(kept), walk.of(w)[1]])
    walk.forks[n.name] = Fork((groups, rows_in.shape[1]), along, walk.units.normal(xin))
    if rows_in.shape[1] > 1:
        walk.read(n, "input", channel)


def _per_sample(walk: Walk, n: fx.Node, x: fx.Node, w: fx.Node, channel: int, groups: int) -> None:
    """As many groups as the batch has samples, each with its own weights: all keep the same positions."""
    xin, wout = walk.of(x)[channel], walk.of(w)[0]
    if wout is not None:
        walk.units.tie_rows(wout.reshape(groups, -1).T)
    kept = None if xin is None else walk.units.tie_rows(xin.reshape(groups, -1).T)
    walk.role(w, 0, OUT)
    walk.role(w, 1, IN)
    walk.agree(n.name, [walk.units.normal(kept), walk.of(w)[1]])
    walk.read(n, "input", channel)


def _grouped_transposed(
    walk: Walk, n: fx.Node, x: fx.Node, w: fx.Node, channel: int, groups: int
) -> Vector | None:
    """Labels of the output channels; as :func:`_grouped`, with one weight axis for every group's outputs.

    The weight is [in, out of one group, ...]: outputs go with their whole group, or the same in every group.
    """
    each = walk.shape(x)[channel] // groups
    along = walk.prefer.get(n.name, 0 if groups >= each else 1)
    xin = walk.agree(n.name, [walk.of(x)[channel], walk.of(w)[0]])
    made = None
    if along == 0:
        walk.freeze(f"removing whole groups of {n.name} keeps each group's outputs", walk.of(w)[1])
        if xin is not None:
            kept = walk.units.normal(walk.units.tie_rows(xin.reshape(groups, -1)))
            if kept is not None:
                walk.constant(n, "groups", None, kept)
                made = np.repeat(kept, walk.shape(w)[1])
    else:
        walk.role(w, 0, IN)
        walk.role(w, 1, OUT)
        if xin is not None:
            walk.units.tie_rows(xin.reshape(groups, -1).T)
        out = walk.of(w)[1]
        made = None if out is None else np.tile(out, groups)
    if each > 1:
        walk.read(n, "input", channel)
    walk.forks[n.name] = Fork((groups, each), along, walk.units.normal(xin))
    return walk.units.normal(made)


@rule("matmul", "bmm", "mm", "mv", "dot")
def matmul(walk: Walk, n: fx.Node, a: dict[str, Any], out: torch.Tensor) -> AxesOrList:
    left, right = (a[k] for k in list(a)[:2])
    sl, sr = walk.shape(left), walk.shape(right)
    if len(sl) < 2 or len(sr) < 2:
        return _with_vector(walk, n, list(a)[:2], left, right)
    names = list(a)[:2]
    walk.role(left, len(sl) - 2, OUT)
    walk.role(left, len(sl) - 1, IN)
    walk.role(right, len(sr) - 2, IN)
    walk.role(right, len(sr) - 1, OUT)
    walk.agree(n.name, [walk.of(left)[-1], walk.of(right)[-2]])
    walk.read(n, names[0], len(sl) - 1)
    outer = broadcast(
        walk, n.name, out.shape[:-2], [(walk.of(left)[:-2], sl[:-2]), (walk.of(right)[:-2], sr[:-2])]
    )
    axes = (*outer, walk.of(left)[-2], walk.of(right)[-1])
    walk.count(n, (*out.shape, sl[-1]), (*axes, walk.of(left)[-1]))
    return axes


def _with_vector(walk: Walk, n: fx.Node, names: list[str], left: fx.Node, right: fx.Node) -> Axes:
    """A product of which one operand is a vector: that and the last axis, or the last but one, are summed."""
    at = len(walk.shape(left)) - 1, max(len(walk.shape(right)) - 2, 0)
    for operand, axis in zip((left, right), at, strict=True):
        walk.role(operand, axis, IN)
        if len(walk.shape(operand)) > 1:  # the rows of a matrix, or its columns
            walk.role(operand, len(walk.shape(operand)) - 1 if operand is right else at[0] - 1, OUT)
    summed = walk.agree(n.name, [walk.of(left)[at[0]], walk.of(right)[at[1]]])
    walk.read(n, names[0], at[0])
    made = (*walk.of(left)[: at[0]], *walk.of(right)[: at[1]], *walk.of(right)[at[1] + 1 :])
    lengths = (*walk.shape(left), *walk.shape(right)[: at[1]], *walk.shape(right)[at[1] + 1 :])
    others = (*walk.of(right)[: at[1]], *walk.of(right)[at[1] + 1 :])
    walk.count(n, lengths, (*walk.of(left)[: at[0]], walk.units.normal(summed), *others))
    return made


@rule("bilinear")
def bilinear(walk: Walk, n: fx.Node, a: dict[str, Any], out: torch.Tensor) -> AxesOrList:
    """``y_o = x1 W_o x2 + b_o``, with W [out, first inputs, second inputs]."""
    w = a["weight"]
    walk.role(w, 0, OUT)
    for axis, name in enumerate(("input1", "input2"), start=1):
        last = len(walk.shape(a[name])) - 1
        walk.role(w, axis, IN)
        walk.agree(n.name, [walk.of(a[name])[last], walk.of(w)[axis]])
        walk.read(n, name, last)
    made = _bias(walk, n, a.get("bias"), walk.of(w)[0])
    parts = [(walk.of(a[name])[:-1], walk.shape(a[name])[:-1]) for name in ("input1", "input2")]
    outer = broadcast(walk, n.name, out.shape[:-1], parts)
    left, right = walk.of(w)[1:]
    lengths = (*out.shape, walk.shape(w)[2])  # the sum over the first inputs, then that over the second
    walk.count(n, (*lengths, walk.shape(w)[1]), (*outer, made, right, left))
    walk.count(n, lengths, (*outer, made, right), part=1)
    return (*outer, made)


@rule("addmm", "baddbmm")
def addmm(walk: Walk, n: fx.Node, a: dict[str, Any], out: torch.Tensor) -> AxesOrList:
    names = [name for name in ("mat1", "mat2", "batch1", "batch2") if name in a]
    product = matmul(walk, n, {k: a[k] for k in names}, out)
    assert isinstance(product, tuple)
    added = a["self"] if "self" in a else a["input"]
    for axis in range(len(walk.shape(added))):
        walk.role(added, axis, ALONG)
    return broadcast(walk, n.name, out.shape, [(product, out.shape), (walk.of(added), walk.shape(added))])


@rule("einsum")
def einsum(walk: Walk, n: fx.Node, a: dict[str, Any], out: torch.Tensor) -> AxesOrList:
    """Axes with the same letter agree; letters that the result lacks are summed."""
    operands, _, result = a["equation"].replace(" ", "").partition("->")
    letters = operands.split(",")
    tensors = a["tensors"]
    if not result or "." in operands or any(len(set(term)) < len(term) for term in letters):
        walk.freeze_node(f"{n.name} is an einsum of another form", *tensors)
        return (None,) * out.dim()
    places: dict[str, list[tuple[int, int]]] = {}
    for t, term in enumerate(letters):
        for axis, letter in enumerate(term):
            walk.role(tensors[t], axis, OUT if letter in result else IN)
            places.setdefault(letter, []).append((t, axis))
    agreed: dict[str, Vector | None] = {}
    lengths: dict[str, int] = {}
    for letter, where in places.items():
        lengths[letter] = max(walk.shape(tensors[t])[axis] for t, axis in where)
        full = [(t, axis) for t, axis in where if walk.shape(tensors[t])[axis] == lengths[letter]]
        agreed[letter] = walk.agree(n.name, [walk.of(tensors[t])[axis] for t, axis in full])
        if letter not in result:
            walk.read(n, f"tensors.{full[0][0]}", full[0][1])
    walk.count(n, tuple(lengths.values()), tuple(walk.units.normal(agreed[letter]) for letter in lengths))
    return tuple(walk.units.normal(agreed[letter]) for letter in result)


@rule("scaled_dot_product_attention")
def attention(walk: Walk, n: fx.Node, a: dict[str, Any], out: torch.Tensor) -> AxesOrList:
    """Whole heads go; a single head may lose dimensions where the scale does not follow from their number."""
    q, k, v = a["query"], a["key"], a["value"]
    heads = walk.shape(q)[-3] if len(walk.shape(q)) > 3 else 1
    if a.get("scale") is None:
        # The implicit 1/sqrt(head_dim) would change with the head dimension.
        walk.freeze(f"{n.name} scales by the head dimension", walk.of(q)[-1], walk.of(k)[-1])
    if heads > 1:
        dims = (walk.of(t)[-1] for t in (q, k, v))
        walk.freeze(f"is a dimension within the heads of {n.name}, which go whole", *dims)
    walk.agree(n.name, [walk.of(q)[-1], walk.of(k)[-1]])
    walk.read(n, "query", len(walk.shape(q)) - 1)
    walk.freeze(f"is a sequence axis of {n.name}", walk.of(q)[-2], walk.of(k)[-2], walk.of(v)[-2])
    shared = [(walk.of(t)[:-2], walk.shape(t)[:-2]) for t in (q, k, v)]
    if a.get("enable_gqa") and walk.shape(q)[-3] != walk.shape(k)[-3]:
        shared[1:] = [_per_query_head(walk, n, t, walk.shape(q)[-3]) for t in (k, v)]
    outer = broadcast(walk, n.name, out.shape[:-2], shared)
    mask = a.get("attn_mask")
    if isinstance(mask, fx.Node):
        outer = broadcast(
            walk,
            n.name,
            out.shape[:-2],
            [(outer, out.shape[:-2]), (walk.of(mask)[:-2], walk.shape(mask)[:-2])],
        )
        walk.freeze(f"is a sequence axis of {n.name}", *walk.of(mask)[-2:])
    # q k^T sums over the head dimension; its product with v runs over the value dimension.
    keys = walk.shape(k)[-2]
    walk.count(n, (*out.shape[:-1], keys, walk.shape(q)[-1]), (*outer, None, None, walk.of(q)[-1]))
    walk.count(n, (*out.shape, keys), (*outer, None, walk.of(v)[-1], None), part=1)
    return (*outer, None, walk.of(v)[-1])


def _per_query_head(walk: Walk, n: fx.Node, t: fx.Node, heads: int) -> tuple[Axes, tuple[int, ...]]:
    """Outer labels of keys or values as the query heads that share them see them."""
    axes, shape = walk.of(t)[:-2], walk.shape(t)[:-2]
    last = axes[-1]
    spread = None if last is None else np.repeat(last, heads // shape[-1])
    return (*axes[:-1], spread), (*shape[:-1], heads)


@rule("embedding")
def embedding(walk: Walk, n: fx.Node, a: dict[str, Any], out: torch.Tensor) -> AxesOrList:
    w = a["weight"]
    walk.freeze(f"is the vocabulary of {n.name}", walk.of(w)[0])
    walk.role(w, 1, OUT)
    return (*(None,) * (out.dim() - 1), walk.of(w)[1])


@rule("embedding_bag")
def embedding_bag(walk: Walk, n: fx.Node, a: dict[str, Any], out: Sequence[torch.Tensor]) -> AxesOrList:
    """Bags of embeddings, summed or averaged; the other results say how."""
    w = a["weight"]
    walk.freeze(f"is the vocabulary of {n.name}", walk.of(w)[0])
    walk.role(w, 1, OUT)
    return [(None, walk.of(w)[1]), *((None,) * t.dim() for t in out[1:])]
