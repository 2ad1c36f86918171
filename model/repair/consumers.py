"""Layers that sum over channels which may go, and hold the weights of that sum as a parameter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from ..coupling import Coupling
from ..coupling.walk import bind, operator_name
from .recurrent import recurrent
from .sources import MomentSource, patch_of

aten = torch.ops.aten

# operator -> (weight, its input axis, its output axis, bias) by schema name; `out` is summed over `in`.
_LAYOUT = {
    "linear": ("weight", 1, 0, "bias"),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), ("weight", 1, 0, "bias")),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), ("weight", 0, 1, "bias")),
    "matmul": ("other", 0, 1, ""),
    "mm": ("mat2", 0, 1, ""),
    "addmm": ("mat2", 0, 1, "self"),
}


@dataclass(frozen=True)
class Consumer:
    """A weight that sums over removable channels."""

    weight: str  # canonical name
    calls: tuple[str, ...]  # nodes that apply it
    axis: int  # of the weight, along its inputs
    out: int  # of the weight, along its outputs
    source: int  # index of what it reads
    offset: (
        tuple[str, float] | None
    )  # parameter that takes a constant output, and the sign; None: nothing can
    coverage: (
        np.ndarray
    )  # [taps] fraction of outputs at which each kernel tap meets a real input, not padding


def find_consumers(
    graph: fx.Graph, coupling: Coupling, *, patches: bool = True
) -> tuple[list[Consumer], list[MomentSource]]:
    """Every weight that can take over what its removed inputs gave, with the tensors to measure.

    Left out: weights that are computed, that another operator reads too (a tied embedding), or whose input
    axis nothing removes; grouped transposed convolutions, whose groups share one axis of outputs.
    """
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        weight = _weight(node, coupling)
        if weight is not None:
            calls.setdefault(weight, []).append(node)
    users: dict[str, set[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "get_attr" and str(node.target) in coupling.canonical:
            users.setdefault(coupling.canonical[str(node.target)], set()).update(node.users)
    mutated = {n.args[0] for n in graph.nodes if n.op == "call_function" and operator_name(n.target)[1]}

    consumers: list[Consumer] = []
    sources: dict[Any, MomentSource] = {}
    for weight, nodes in calls.items():
        if users[weight] != set(nodes) or len({_window(n) for n in nodes}) > 1:
            continue
        first = nodes[0]
        _, axis, out, _ = _layout(first)
        argument, read = coupling.reads[first.name][0]
        operands = [bind(n)[argument] for n in nodes]
        labels = coupling.tensors[operands[0].name][read][1]
        if labels is None or coupling.parameters[weight][axis] is None:
            continue
        rank = len(coupling.tensors[operands[0].name])
        patch = patch_of(first, rank) if patches else None
        groups = bind(first).get("groups", 1)
        # A tensor that is overwritten in place may differ from one reader to the next.
        key = (
            (weight,) if len(nodes) > 1 or operands[0] in mutated else (operands[0].name, read, groups, patch)
        )
        if key not in sources:
            seen = tuple((n.name, argument) for n in nodes)
            sources[key] = MomentSource(seen, read - rank, groups, patch, labels)
        consumers.append(
            Consumer(
                weight,
                tuple(n.name for n in nodes),
                axis,
                out,
                list(sources).index(key),
                _offset(nodes, coupling, users),
                _coverage(first, coupling),
            )
        )
    for weight, node, offset, key, source in recurrent(graph, coupling, users):
        sources.setdefault(key, source)
        at = list(sources).index(key)
        consumers.append(Consumer(weight, (node.name,), 1, 0, at, offset, np.ones(1)))
    return consumers, list(sources.values())


def _layout(node: fx.Node) -> tuple[str, int, int, str]:
    layout = _LAYOUT[operator_name(node.target)[0]]
    return (layout[0], 0, 1, layout[3]) if bind(node).get("transposed") else layout


def output_axis(node: fx.Node, weight: fx.Node) -> int:
    """Axis of a weight along the outputs of the call that multiplies with it; 0 where its form is unknown."""
    if operator_name(node.target)[0] not in _LAYOUT:
        return 0
    argument, _, out, _ = _layout(node)
    return out if bind(node).get(argument) is weight else 0


def _weight(node: fx.Node, coupling: Coupling) -> str | None:
    """Canonical name of the parameter that ``node`` multiplies a followed operand with."""
    if node.op != "call_function" or operator_name(node.target)[0] not in _LAYOUT:
        return None
    reads = coupling.reads.get(node.name, ())
    weight, bound = bind(node).get(_layout(node)[0]), bind(node)
    if len(reads) != 1 or not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    if not isinstance(bound[reads[0][0]], fx.Node) or bound[reads[0][0]].name not in coupling.tensors:
        return None
    if _layout(node)[1] == 0 and bound.get("groups", 1) > 1:
        return None
    name = coupling.canonical.get(str(weight.target))
    plain = bound.get("alpha", 1) == 1 and bound.get("beta", 1) == 1
    return name if plain and len(coupling.parameters.get(name or "", ())) > 1 else None


def _window(node: fx.Node) -> str:
    """Everything about a call but its tensors: equal for calls that use a weight alike."""
    return repr({k: v for k, v in bind(node).items() if not isinstance(v, fx.Node)})


def _offset(
    nodes: list[fx.Node], coupling: Coupling, users: dict[str, set[fx.Node]]
) -> tuple[str, float] | None:
    """Where a constant added to the outputs can go: the bias, or the mean of the batch-norm that follows."""

    def own(argument: Any, readers: set[fx.Node]) -> str | None:
        if not isinstance(argument, fx.Node) or argument.op != "get_attr":
            return None
        name = coupling.canonical[str(argument.target)]
        return name if users[name] == readers and argument.meta["val"].dim() == 1 else None

    biases = {own(bind(n).get(_layout(n)[3]), set(nodes)) for n in nodes}
    if None not in biases and len(biases) == 1:
        return biases.pop(), 1.0  # type: ignore[return-value]
    followers = {follower for n in nodes for follower in n.users}
    if len(followers) == len(nodes) and all(f.target is aten.batch_norm.default for f in followers):
        means = {own(bind(f)["running_mean"], followers) for f in followers}
        if None not in means and len(means) == 1:
            return means.pop(), -1.0  # type: ignore[return-value]
    return None


def _coverage(node: fx.Node, coupling: Coupling) -> np.ndarray:
    """[taps]: the convolution of ones with one kernel tap at a time, averaged over its outputs."""
    bound = bind(node)
    if "stride" not in bound:
        return np.ones(1)
    argument, axis = coupling.reads[node.name][0]
    spatial = [length for length, _ in coupling.tensors[bound[argument].name][axis + 1 :]]
    kernel = bound["weight"].meta["val"].shape[2:]
    taps = math.prod(kernel)
    line = torch.eye(taps).reshape(taps, 1, *kernel)
    swapped = line.transpose(0, 1) if _layout(node)[1] == 0 else line
    bound |= {argument: torch.ones(1, 1, *spatial), "weight": swapped, "bias": None, "groups": 1}
    made = node.target(**bound)  # type: ignore[operator]
    return made.reshape(taps, -1).double().mean(1).numpy()


def block_weights(consumer: Consumer, source: MomentSource, weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """The weight per convolution group as float64 [outputs, columns of the source, what they share].

    The last axis holds the kernel taps where the source has no window, and has length 1 otherwise.
    """
    parts = weight.detach().movedim((consumer.out, consumer.axis), (0, 1)).double()
    inputs = parts.shape[1] * source.taps
    for part in parts.chunk(source.groups, 0):
        yield part.reshape(part.shape[0], inputs, -1)
