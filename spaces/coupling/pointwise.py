"""Element-wise operators: operands that meet position by position keep the same positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from .units import Axes, Vector
from .walk import ALONG, AxesOrList, Walk, rule


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
