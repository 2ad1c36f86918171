"""Pooling, resampling and reductions."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .contraction import along
from .pointwise import pointwise
from .walk import AxesOrList, Value, Walk, operator_name, rule

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
def reduction(walk: Walk, n: fx.Node, a: dict[str, Any], out: Value) -> AxesOrList:
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
