"""Reference for normalisations over a pruned axis: statistics over the kept positions, by masked sums.

Removal differs from zeroing there, so the reference network uses these instead. They are written with masks
on the full tensors, independent of the operators that the pruned network runs on sliced ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from .coupling.walk import operator_name, schema


def over_kept(
    n: fx.Node,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    labels: Sequence[np.ndarray | None],
    alive: np.ndarray,
) -> Any:
    """Result of ``n`` on the full tensor with statistics over the kept positions of its first operand.

    Args:
        labels: of the operand, per axis.
        alive: [units + 1] bool.
    """
    a = {x.name: x.default_value for x in schema(n) if x.has_default_value()}
    a |= {x.name: value for x, value in zip(schema(n), args, strict=False)} | kwargs
    x = args[0]
    mask = torch.ones((1,) * x.dim(), dtype=x.dtype)
    for axis, v in enumerate(labels):
        if v is not None:
            shape = [1] * x.dim()
            shape[axis] = -1
            mask = mask * torch.from_numpy(alive[v]).to(x.dtype).reshape(shape)
    mask = mask.expand(x.shape)
    name = operator_name(n.target)[0]
    return _REFERENCES[name](x, mask, a)


def _moments(x: torch.Tensor, mask: torch.Tensor, dims: list[int], correction: float = 0.0) -> Any:
    count = mask.sum(dims, keepdim=True).clamp_min(
        1
    )  # of rows that are removed whole nobody reads the result
    mean = (x * mask).sum(dims, keepdim=True) / count
    return mean, ((x - mean).square() * mask).sum(dims, keepdim=True) / (count - correction).clamp_min(1)


def _layer_norm(x: torch.Tensor, mask: torch.Tensor, a: dict[str, Any]) -> torch.Tensor:
    mean, var = _moments(x, mask, list(range(x.dim() - len(a["normalized_shape"]), x.dim())))
    return _scaled((x - mean) * (var + a["eps"]).rsqrt(), a.get("weight"), a.get("bias"))


def _rms_norm(x: torch.Tensor, mask: torch.Tensor, a: dict[str, Any]) -> torch.Tensor:
    dims = list(range(x.dim() - len(a["normalized_shape"]), x.dim()))
    eps = torch.finfo(x.dtype).eps if a.get("eps") is None else a["eps"]
    square = (x.square() * mask).sum(dims, keepdim=True) / mask.sum(dims, keepdim=True).clamp_min(1)
    return _scaled(x * (square + eps).rsqrt(), a.get("weight"), None)


def _group_norm(x: torch.Tensor, mask: torch.Tensor, a: dict[str, Any]) -> torch.Tensor:
    shape = (x.shape[0], a["num_groups"], -1)
    mean, var = _moments(x.reshape(shape), mask.reshape(shape), [2])
    y = ((x.reshape(shape) - mean) * (var + a["eps"]).rsqrt()).reshape(x.shape)
    per_channel = (-1, *(1,) * (x.dim() - 2))
    return _scaled(
        y, *(None if t is None else t.reshape(per_channel) for t in (a.get("weight"), a.get("bias")))
    )


def _batch_norm(x: torch.Tensor, mask: torch.Tensor, a: dict[str, Any]) -> torch.Tensor:
    mean, var = _moments(x, mask, [d for d in range(x.dim()) if d != 1])
    per_channel = (-1, *(1,) * (x.dim() - 2))
    affine = [None if t is None else t.reshape(per_channel) for t in (a.get("weight"), a.get("bias"))]
    return _scaled((x - mean) * (var + a["eps"]).rsqrt(), *affine)


def _reduced(x: torch.Tensor, mask: torch.Tensor, a: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    dims = a.get("dim")
    dims = list(range(x.dim())) if dims in (None, []) else [dims] if isinstance(dims, int) else list(dims)
    correction = a.get("correction", 1.0 if a.get("unbiased", True) else 0.0)
    mean, var = _moments(x, mask, dims, 1.0 if correction is None else float(correction))
    if not a.get("keepdim"):
        for d in sorted((d % x.dim() for d in dims), reverse=True):
            mean, var = mean.squeeze(d), var.squeeze(d)
    return mean, var


def _scaled(y: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


_REFERENCES = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
    "mean": lambda x, mask, a: _reduced(x, mask, a)[0],
    "var": lambda x, mask, a: _reduced(x, mask, a)[1],
    "std": lambda x, mask, a: _reduced(x, mask, a)[1].sqrt(),
    "var_mean": lambda x, mask, a: _reduced(x, mask, a)[::-1],
    "std_mean": lambda x, mask, a: (_reduced(x, mask, a)[1].sqrt(), _reduced(x, mask, a)[0]),
}
