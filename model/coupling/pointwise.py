"""Element-wise operators and normalisations: operands that meet position by position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from .units import Axes, Vector
from .walk import ALONG, SCALE, AxesOrList, Value, Walk, rule


def broadcast(
    walk: Walk, where: str, shape: Sequence[int], operands: Sequence[tuple[Axes, Sequence[int]]]
) -> Axes:
    """Labels of the broadcast result; an operand of length 1 along an axis follows whatever the others do."""
    result: list[Vector | None] = []
    for axis, length in enumerate(shape):
        parts = []
        for axes, own in operands:
            k = axis - (len(shape) - len(own))
            if k >= 0 and not own[k] == 1 != length:
                parts.append(axes[k])
        result.append(walk.agree(where, parts))
    return tuple(result)


# Operators that ATen tags as pointwise come here by their tag; these lack it.
@rule(
    "pointwise",
    "hardswish",
    "log_sigmoid",
    "rsub",
    "type_as",
    "where",
    "__and__",
    "__or__",
    "__xor__",
    "complex",
    "polar",
)
def pointwise(walk: Walk, n: fx.Node, a: dict[str, Any], out: Value) -> AxesOrList:
    tensors = walk.tensor_arguments(n)
    if not hasattr(out, "shape"):  # `where` of a condition alone: where it holds
        walk.freeze_node(f"{n.name} returns positions", *tensors)
        return [(None,) * t.dim() for t in out]
    for t in tensors:
        for axis in range(len(walk.shape(t))):
            walk.role(t, axis, ALONG)
    return broadcast(walk, n.name, tuple(out.shape), [(walk.of(t), walk.shape(t)) for t in tensors])


@rule(
    "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout", "contiguous",
    "clone", "to", "_to_copy", "detach", "detach_copy", "alias", "lift_fresh_copy", "lift_fresh",
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "bernoulli", "fill",
    "zero", "real", "imag", "conj", "_conj", "conj_physical", "resolve_conj", "resolve_neg",
)  # fmt: skip
def same(walk: Walk, n: fx.Node, a: dict[str, Any], out: torch.Tensor) -> AxesOrList:
    """Output positions are the input's."""
    return walk.of(walk.tensor_arguments(n)[0])


@rule("view_as_complex")
def view_as_complex(walk: Walk, n: fx.Node, a: dict[str, Any], out: torch.Tensor) -> AxesOrList:
    """The last axis holds real and imaginary parts."""
    walk.freeze(f"holds real and imaginary parts for {n.name}", walk.of(a["self"])[-1])
    return walk.of(a["self"])[:-1]


@rule("view_as_real")
def view_as_real(walk: Walk, n: fx.Node, a: dict[str, Any], out: torch.Tensor) -> AxesOrList:
    return (*walk.of(a["self"]), None)


@rule("prelu")
def prelu(walk: Walk, n: fx.Node, a: dict[str, Any], out: torch.Tensor) -> AxesOrList:
    """One slope for all, or one per channel (axis 1)."""
    axes, slope = walk.of(a["self"]), a["weight"]
    if walk.shape(slope) in ((), (1,)):
        return axes
    walk.role(slope, 0, ALONG)
    return (axes[0], walk.agree(n.name, [axes[1], walk.of(slope)[0]]), *axes[2:])


# -- Normalisations and soft-maxes ----------------------------------------------------------------------


def _affine(
    walk: Walk, n: fx.Node, a: dict[str, Any], names: tuple[str, ...], v: Vector | None
) -> Vector | None:
    parts = [v]
    for name in names:
        if isinstance(a.get(name), fx.Node):
            walk.role(a[name], 0, SCALE if name == "weight" else ALONG)
            parts.append(walk.of(a[name])[0])
    return walk.agree(n.name, parts)


@rule("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training")
def batch_norm(walk: Walk, n: fx.Node, a: dict[str, Any], out: torch.Tensor) -> AxesOrList:
    """Statistics per channel: each channel with its scale, shift and running statistics is one unit."""
    axes = walk.of(a["input"])
    channel = _affine(walk, n, a, ("weight", "bias", "running_mean", "running_var"), axes[1])
    if a.get("training") and any(v is not None for v in (axes[0], *axes[2:])):
        walk.over_kept(n)  # statistics of the call itself, as weight standardisation takes them
    return (axes[0], channel, *axes[2:])


@rule("layer_norm", "rms_norm")
def layer_norm(walk: Walk, n: fx.Node, a: dict[str, Any], out: torch.Tensor) -> AxesOrList:
    """Statistics run over the kept positions of the normalised axes."""
    axes = list(walk.of(a["input"]))
    first = len(axes) - len(a["normalized_shape"])
    for k in range(first, len(axes)):
        parts = [axes[k]]
        for name in ("weight", "bias"):
            if isinstance(a.get(name), fx.Node):
                walk.role(a[name], k - first, SCALE if name == "weight" else ALONG)
                parts.append(walk.of(a[name])[k - first])
        axes[k] = walk.agree(n.name, parts)
        if (v := axes[k]) is not None:
            walk.constant(n, "normalized_shape", k - first, v)
    walk.over_kept(n)
    return tuple(axes)


@rule("group_norm")
def group_norm(walk: Walk, n: fx.Node, a: dict[str, Any], out: torch.Tensor) -> AxesOrList:
    """Remove whole groups, or the same positions of every group: then statistics run over those kept."""
    axes, groups = walk.of(a["input"]), a["num_groups"]
    channel = _affine(walk, n, a, ("weight", "bias"), axes[1])
    if channel is not None:
        rows = channel.reshape(groups, -1)
        taken = int(groups == 1) if 1 in rows.shape else walk.fork(n.name, rows)[0]
        channel = walk.units.normal(channel)
        kept = walk.units.normal(rows[:, 0])
        if taken == 0 and kept is not None:
            walk.constant(n, "num_groups", None, kept)
        elif taken == 1:
            walk.over_kept(n)
    return (axes[0], channel, *axes[2:])


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(walk: Walk, n: fx.Node, a: dict[str, Any], out: Value) -> AxesOrList:
    """``g v / |v|``, the length over all axes but ``dim``: positions along ``dim`` are independent."""
    v, g = a["v"], a["g"]
    dim = a["dim"] % len(walk.shape(v))
    for axis, labels in enumerate(walk.of(v)):
        if axis != dim:
            walk.freeze(f"is an axis of the length that {n.name} takes", labels)
    walk.role(g, dim, SCALE)
    kept = walk.agree(n.name, [walk.of(v)[dim], walk.of(g)[dim]])
    made = tuple(kept if axis == dim else None for axis in range(len(walk.shape(v))))
    return [made for _ in out] if isinstance(out, (tuple, list)) else made


@rule(
    "softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod", "sort", "topk",
    "fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft",
    "fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2", "fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn",
    "fft_fftshift", "fft_ifftshift",
)  # fmt: skip
def along_axes(walk: Walk, n: fx.Node, a: dict[str, Any], out: Value) -> AxesOrList:
    """Positions along an axis influence each other, as in a soft-max or a Fourier transform: it is fixed."""
    x = walk.tensor_arguments(n)[0]
    dims = a.get("dim")
    if dims is None:  # all, or as many of the last as lengths are given
        dims = range(-len(a.get("s") or walk.shape(x)), 0)
    for d in [dims] if isinstance(dims, int) else dims:
        walk.freeze(f"{n.name} runs along it", walk.of(x)[d])
    axes = walk.of(x)
    return [axes for _ in out] if isinstance(out, (tuple, list)) else axes
