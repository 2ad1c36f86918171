"""Pooling, resampling and reductions."""

from __future__ import annotations

from typing import Any

from torch import fx

from .walk import AxesOrList, Walk, rule

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
    """Acts on the trailing spatial axes of each channel alone."""
    first, *others = walk.tensor_arguments(n)
    name = n.target._schema.name
    axes = walk.of(first)
    kept = len(axes) - next((k for tag, k in _SPATIAL.items() if tag in name), len(axes) - 2)
    walk.freeze(f"is a spatial axis of {n.name}", *axes[kept:])
    walk.freeze_node(f"{n.name} takes it as coordinates", *others)
    made = (*axes[:kept], *(None,) * (len(axes) - kept))
    return [made for _ in out] if isinstance(out, (tuple, list)) else made


@rule(
    "mean", "sum", "amax", "amin", "max", "min", "argmax", "argmin", "std", "var", "var_mean", "std_mean",
    "norm", "linalg_vector_norm", "logsumexp", "prod", "any", "all", "median",
)  # fmt: skip
def reduction(walk: Walk, n: fx.Node, a: dict[str, Any], out: Any) -> AxesOrList:
    """Reduced axes are fixed, but for sums, where a removed position adds nothing."""
    x = walk.tensor_arguments(n)[0]
    rank = len(walk.shape(x))
    dims = a.get("dim")
    if dims is None or dims == []:
        dims = list(range(rank))
    reduced = {d % rank for d in (dims if isinstance(dims, (list, tuple)) else [dims])} if rank else set()
    for d in reduced:
        if n.target._schema.name.endswith("::sum"):
            walk.read(n, "self", d)
        else:
            walk.freeze(f"{n.name} reduces over it", walk.of(x)[d])
    axes = walk.of(x)
    if a.get("keepdim"):
        made = tuple(None if d in reduced else v for d, v in enumerate(axes))
    else:
        made = tuple(v for d, v in enumerate(axes) if d not in reduced)
    return [made for _ in out] if isinstance(out, (tuple, list)) else made
