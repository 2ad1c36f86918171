"""Names of calls in a profile, and the bytes that they move. Reads graphs, but needs no torch."""

from __future__ import annotations

from collections.abc import Container
from typing import Any


def operator_of(node: Any) -> str:
    """The name under which a profile holds a call of a functional graph: operator, then what it works on.

    ``"conv2d 3x3/2 28x28"`` (kernel, stride, output), ``"conv2d 3x3/1 28x28 depthwise"``, ``"linear 1"``
    (rows for one sample), ``"relu"``. Channels are no part of it, since pruning changes them.

    Args:
        node: an ``fx`` call whose ``meta["val"]``, and that of its arguments, are there.
    """
    name = _plain_name(node.target)
    if name.startswith("conv") and len(node.args) > 1:
        weight = list(_shape(node.args[1]))
        if len(weight) < 3:
            return name
        stride = node.args[3] if len(node.args) > 3 else (1,)
        steps = stride if isinstance(stride, list | tuple) else (stride,)
        groups = node.args[-1] if len(node.args) > 6 and isinstance(node.args[-1], int) else 1
        apart = "" if groups == 1 else " depthwise" if weight[1] == 1 else " grouped"
        return f"{name} {_by(weight[2:])}/{_by(steps[:1])} {_by(_shape(node)[2:])}{apart}"
    if name in ("linear", "addmm", "mm", "matmul", "bmm"):
        rows = _numel(_shape(node)[1:-1])
        return f"{name} {rows}"
    return name


def moved_bytes(node: Any, samples: int = 1, constant: Container[Any] = ()) -> float:
    """Bytes of all tensors that a call reads and writes, weights included; activations for one sample.

    Args:
        samples: that the graph's values are for; what depends on no input is not divided.
        constant: nodes that depend on no input beside those that read parameters (``get_attr``).
    """
    values = [*node.all_input_nodes, node]
    return sum(_bytes(n) / (1 if n.op == "get_attr" or n in constant else samples) for n in values)


def _plain_name(target: Any) -> str:
    """``"conv2d"`` of ``aten.conv2d.default``, without the underscores of functions that write in place."""
    schema = getattr(target, "_schema", None)
    name = schema.name.partition("::")[2] if schema is not None else getattr(target, "__name__", str(target))
    return name.strip("_")


def _shape(node: Any) -> tuple[Any, ...]:
    value = getattr(node, "meta", {}).get("val")
    return tuple(getattr(value, "shape", ()))


def _bytes(node: Any) -> float:
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return float(sum(_hint(_numel(v.shape)) * v.element_size() for v in values if hasattr(v, "element_size")))


def _numel(sizes: Any) -> Any:
    out: Any = 1
    for size in sizes:
        out = out * _hint(size)
    return out


def _hint(size: Any) -> int:
    """A size as a number; a symbolic one as its value on the example, 1 where the data decide it."""
    node = getattr(size, "node", None)
    if node is None:
        return int(size)
    return 1 if node.hint is None else int(node.hint)


def _by(sizes: Any) -> str:
    return "x".join(str(_hint(s)) for s in sizes)
