"""Element-wise operators, normalisations, pooling and reductions: operands that meet position by position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from .contraction import along
from .units import Axes, Vector
from .walk import ALONG, SCALE, AxesOrList, Walk, operator_name, rule


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
def pointwise(walk: Walk, n: fx.Node, a: dict[str, Any], out: Any) -> AxesOrList:
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
def same(walk: Walk, n: fx.Node, a: dict[str, Any], out: Any) -> AxesOrList:
    """Output positions are the input's."""
    return walk.of(walk.tensor_arguments(n)[0])


@rule("view_as_complex")
def view_as_complex(walk: Walk, n: fx.Node, a: dict[str, Any], out: Any) -> AxesOrList:
    """The last axis holds real and imaginary parts."""
    walk.freeze(f"holds real and imaginary parts for {n.name}", walk.of(a["self"])[-1])
    return walk.of(a["self"])[:-1]


@rule("view_as_real")
def view_as_real(walk: Walk, n: fx.Node, a: dict[str, Any], out: Any) -> AxesOrList:
    return (*walk.of(a["self"]), None)


@rule("prelu")
def prelu(walk: Walk, n: fx.Node, a: dict[str, Any], out: Any) -> AxesOrList:
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
def batch_norm(walk: Walk, n: fx.Node, a: dict[str, Any], out: Any) -> AxesOrList:
    """Statistics per channel: each channel with its scale, shift and running statistics is one unit."""
    axes = walk.of(a["input"])
    channel = _affine(walk, n, a, ("weight", "bias", "running_mean", "running_var"), axes[1])
    if a.get("training") and any(v is not None for v in (axes[0], *axes[2:])):
        walk.over_kept(n)  # statistics of the call itself, as weight standardisation takes them
    return (axes[0], channel, *axes[2:])


@rule("layer_norm", "rms_norm")
def layer_norm(walk: Walk, n: fx.Node, a: dict[str, Any], out: Any) -> AxesOrList:
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
def group_norm(walk: Walk, n: fx.Node, a: dict[str, Any], out: Any) -> AxesOrList:
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
def weight_norm(walk: Walk, n: fx.Node, a: dict[str, Any], out: Any) -> AxesOrList:
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
def along_axes(walk: Walk, n: fx.Node, a: dict[str, Any], out: Any) -> AxesOrList:
    """Positions along an axis influence each other, as in a soft-max or a Fourier transform: it is fixed."""
    x = walk.tensor_arguments(n)[0]
    dims = a.get("dim")
    if dims is None:  # all, or as many of the last as lengths are given
        dims = range(-len(a.get("s") or walk.shape(x)), 0)
    for d in [dims] if isinstance(dims, int) else dims:
        walk.freeze(f"{n.name} runs along it", walk.of(x)[d])
    axes = walk.of(x)
    return [axes for _ in out] if isinstance(out, (tuple, list)) else axes


# -- Pooling, resampling and reductions -----------------------------------------------------------------

_STATISTICS = ("mean", "var", "std", "var_mean", "std_mean")
_SPATIAL = {"1d": 1, "2d": 2, "3d": 3}


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "max_pool2d_with_indices",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d",
    "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d",
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d",
    "replication_pad1d", "replication_pad2d", "replication_pad3d", "grid_sampler",
)  # fmt: skip
def spatial(walk: Walk, n: fx.Node, a: dict[str, Any], out: Any) -> AxesOrList:
    """Acts on the trailing spatial axes of each channel alone; those that it leaves alone are followed."""
    first, *others = walk.tensor_arguments(n)
    name = operator_name(n.target)[0]
    axes = walk.of(first)
    kept = len(axes) - next((k for tag, k in _SPATIAL.items() if tag in name), len(axes) - 2)
    walk.freeze_node(f"{n.name} takes it as coordinates", *others)
    pair = isinstance(out, (tuple, list))  # with the places of the maxima
    lengths, after = list(axes), out[0].shape if pair else out.shape
    for k, axis in enumerate(range(kept, len(axes))):
        followed = axes[axis] is not None and not others and not pair  # places of maxima move
        if followed and _leaves(a, k, len(axes) - kept, walk.shape(first)[axis], after[axis]):
            if a.get("output_size"):
                walk.constant(n, "output_size", k, axes[axis])
        else:
            walk.freeze(f"is a spatial axis of {n.name}", axes[axis])
            lengths[axis] = None
    made = tuple(lengths)
    return [made for _ in out] if isinstance(out, (tuple, list)) else made


def _leaves(a: dict[str, Any], k: int, rank: int, before: int, after: int) -> bool:
    """Whether every position along spatial axis ``k`` of ``rank`` comes out as it went in, by itself."""
    if "kernel_size" in a:
        moves = a["kernel_size"], a["stride"] or a["kernel_size"], a["padding"]
        return tuple(along(m, k) for m in moves) == (1, 1, 0)
    if "padding" in a:  # in pairs, for the last axis first
        return not any(a["padding"][2 * (rank - 1 - k) :][:2])
    if a.get("scale_factors"):
        return bool(a["scale_factors"][k] == 1)
    return before == after  # adaptive pooling, or resampling to the same length


@rule(
    "mean", "sum", "amax", "amin", "max", "min", "argmax", "argmin", "std", "var", "var_mean", "std_mean",
    "norm", "linalg_vector_norm", "logsumexp", "prod", "any", "all", "median",
)  # fmt: skip
def reduction(walk: Walk, n: fx.Node, a: dict[str, Any], out: Any) -> AxesOrList:
    """Reduced axes are fixed, but for sums and for the statistics of a normalisation."""
    if "other" in a:  # max and min of two tensors
        return pointwise(walk, n, a, out)
    x = walk.tensor_arguments(n)[0]
    rank = len(walk.shape(x))
    dims = a.get("dim")
    if dims is None or dims == []:
        dims = list(range(rank))
    reduced = {d % rank for d in (dims if isinstance(dims, (list, tuple)) else [dims])} if rank else set()
    name = operator_name(n.target)[0]
    for d in reduced:
        if walk.of(x)[d] is None:
            continue
        if name == "sum" or (name == "linalg_vector_norm" and a["ord"] in (1, 2)):
            walk.read(n, "self", d)  # a removed position adds nothing
        elif name in _STATISTICS and _normalises(n):
            walk.over_kept(n)
        else:
            walk.freeze(f"{n.name} reduces over it", walk.of(x)[d])
    axes = walk.of(x)
    if a.get("keepdim"):
        made = tuple(None if d in reduced else v for d, v in enumerate(axes))
    else:
        made = tuple(v for d, v in enumerate(axes) if d not in reduced)
    return [made for _ in out] if isinstance(out, (tuple, list)) else made


def _normalises(n: fx.Node) -> bool:
    """Is a statistic used position by position only, as a normalisation written out by hand does?"""
    todo, seen = [n], {n}
    while todo:
        for user in todo.pop().users:
            if user in seen:
                continue
            seen.add(user)
            name = operator_name(user.target)[0]
            if name == "getitem" or _is_statistic_step(user, name):
                # Results as long as the statistic lead on; where it meets what it was taken from, it ends.
                if name == "getitem" or user.meta["val"].shape == _shape(n):
                    todo.append(user)
            else:
                return False
    return True


def _shape(n: fx.Node) -> Any:
    value = n.meta["val"]
    return (value[0] if isinstance(value, (tuple, list)) else value).shape


def _is_statistic_step(user: fx.Node, name: str) -> bool:
    tags = getattr(user.target, "tags", ())
    return torch.Tag.pointwise in tags or name in _STATISTICS or name in ("to", "_to_copy", "type_as", "rsub")
