"""Layers: weights and fan-in that are left of each, and the paths from input to output through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import functional

from ..evaluators.batches import Inputs, resize
from ..model.capture import flat_inputs
from ..model.coupling.walk import operator_name
from .graphs import ACTIVATIONS, DROPOUTS, NORMS, LayerGraph, parameter, uses_of, weight_of
from .section import Section, SectionFigure, Skipped, clipped, series
from .subject import Subject

# Operators that move values without changing them, or average them.
# fmt: off
LINEAR = frozenset([
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze",
    "unsqueeze", "contiguous", "clone", "alias", "detach", "slice", "narrow", "select", "split_with_sizes",
    "split", "chunk", "unbind", "expand", "movedim", "cat", "stack", "pad", "constant_pad_nd", "mean", "sum",
    "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "getitem", "channel_shuffle",
    "pixel_shuffle", "upsample_nearest2d",
])
# fmt: on
POOLS: dict[str, Callable[..., Tensor]] = {
    "max_pool2d": functional.avg_pool2d,
    "max_pool1d": functional.avg_pool1d,
}


def layers_section(subject: Subject) -> Section:
    """Density, fan-in and live paths of each layer against the original.

    Raises:
        Skipped: a network cannot be captured.
    """
    before, after = subject.graphs
    names = list(before.layers)
    weights = [_weight(before, node) for node in before.layers.values()]
    held = np.array([sum(_held(after, node) for node in uses_of(after, name)) for name in names])
    density = held / np.array([w.numel() for w in weights])
    fan_was = np.array([_fan_in(before, n) for n in names])
    fan_is = np.array([_fan_in(after, n) for n in names])
    new = [n for n in after.layers if n not in before.layers and n.partition("#")[0] not in before.layers]
    figures = [
        SectionFigure(
            "bars",
            "Weights that are left",
            "Each bar is the share of a layer's weights that the subnetwork still has and that are not zero; "
            "layers come in network order.",
            {"labels": names, "series": series(subnetwork=clipped(density)), "percent": True, "whole": True,
             "axis": "share of the original's weights"},
        ),
        SectionFigure(
            "bars",
            "Fan-in",
            "Each pair of bars is how many inputs one unit of the layer adds up, before and after.",
            {"labels": names, "series": series(original=clipped(fan_was), subnetwork=clipped(fan_is)),
             "percent": False, "axis": "inputs a unit"},
        ),
    ]  # fmt: skip
    data: dict[str, Any] = {
        "layers": names,
        "density": density,
        "fan_in": [fan_was, fan_is],
        "new_layers": new,
    }
    summary = f"{held.sum() / sum(w.numel() for w in weights):.1%} of the layers' weights are left"
    basis = "weights of convolutions, linear and embedding layers"
    try:
        whole, through = path_counts(before, subject.whole.example)
        less, less_through = path_counts(after, subject.whole.example)
    except Skipped as why:
        basis += f"; live paths are not counted: {why}"
    else:
        share = np.array([less_through.get(n, 0.0) / through[n] if through[n] else 0.0 for n in names])
        figures.append(
            SectionFigure(
                "bars",
                "Live paths",
                "Each mark is the share of the paths from input to output through this layer that are still "
                "there, on a logarithmic scale; no mark is a layer that has gone.",
                {"labels": names, "series": series(subnetwork=clipped(share)), "percent": True,
                 "axis": "share of the original's paths", "log": True},
            )
        )  # fmt: skip
        data |= {"paths": less / whole, "layer_paths": share}
        summary += f"; of the paths from input to output a share of {_small(less / whole)}"
    if new:
        summary += f"; {len(new)} layers are there that the original does not have"
        basis += f"; {len(new)} layers that the original does not have: {', '.join(new[:5])}"
    return Section("layers", "What is left, layer by layer", summary, basis, tuple(figures), data)


def path_counts(graph: LayerGraph, example: Inputs) -> tuple[float, dict[str, float]]:
    """How many paths lead from the inputs to the outputs, and how many of them through each layer.

    A path takes one weight that is not zero in every layer that it passes. Counted as in SynFlow (Tanaka et
    al. 2020, equation 4): ones are sent through the network with each such weight set to 1, norms and
    activations left out; sum_w w dP/dw over a layer's weights is the number of the P paths that run through
    it. Averages over places (pooling) divide counts by a constant, the same in every smaller network.

    Raises:
        Skipped: the network multiplies activations with each other, or does what is not known here; or there
            are more than a float can count.
    """
    counter = _Paths(graph.module)
    args, kwargs = resize(example, 1)
    inputs = [
        torch.ones_like(v, dtype=torch.float64) if isinstance(v, Tensor) and v.is_floating_point() else v
        for v in flat_inputs(graph.module, args, kwargs)
    ]
    with torch.enable_grad():
        outputs = counter.run(*inputs, enable_io_processing=False)
        leaves = [v for v in outputs if isinstance(v, Tensor) and v.requires_grad]
        if not leaves:
            raise Skipped("no path was found")
        total = torch.stack([v.sum() for v in leaves]).sum()
        weights = list(counter.weights)
        gradients = torch.autograd.grad(total, [counter.weights[n] for n in weights], allow_unused=True)
    if not torch.isfinite(total):
        raise Skipped("there are more than 10^308")
    through = {
        name: 0.0 if g is None else float((counter.weights[name].detach() * g).sum())
        for name, g in zip(weights, gradients, strict=True)
    }
    read = {name: weight_of(node) for name, node in graph.layers.items()}
    return float(total.detach()), {n: through[str(w.target)] for n, w in read.items() if w is not None}


class _Paths(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.weights: dict[str, Tensor] = {}

    def get_attr(
        self, target: fx.node.Target, args: tuple[fx.node.Argument, ...], kwargs: dict[str, Any]
    ) -> Any:
        value = super().get_attr(target, args, kwargs)
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1:
            live = (value.detach() != 0).double().requires_grad_()
            return self.weights.setdefault(str(target), live)
        return value

    def call_module(
        self, target: fx.node.Target, args: tuple[fx.node.Argument, ...], kwargs: dict[str, Any]
    ) -> Any:
        return None  # guards on shapes

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        name = operator_name(target)[0]
        if name in NORMS | ACTIVATIONS | DROPOUTS:
            return args[0]
        if name in POOLS:
            return POOLS[name](*args[:4])
        if name in ("conv1d", "conv2d", "conv3d"):
            return target(args[0], args[1], None, *args[3:], **kwargs)
        if name.startswith("conv_transpose"):
            return target(args[0], args[1], None, *args[3:], **kwargs)
        if name == "linear":
            return functional.linear(args[0], args[1])
        if name == "add":
            first, other = args[:2]
            return first + other if _counts(first) and _counts(other) else first if _counts(first) else other
        if name in LINEAR or not any(_counts(a) for a in _leaves(args)):
            return target(*args, **kwargs)
        raise Skipped(f"{name} is not linear in its input")


def _counts(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float64


def _leaves(value: object) -> list[Any]:
    return [v for item in value for v in _leaves(item)] if isinstance(value, tuple | list) else [value]


def _weight(graph: LayerGraph, layer: fx.Node) -> Tensor:
    node = weight_of(layer)
    assert node is not None
    return parameter(graph.module, str(node.target)).detach()


def _held(graph: LayerGraph, layer: fx.Node) -> int:
    return int(torch.count_nonzero(_weight(graph, layer)))


def _fan_in(graph: LayerGraph, name: str) -> float:
    """Mean over the layer's units of the weights that are not zero; 0 where it is gone."""
    nodes = uses_of(graph, name)
    across = [operator_name(node.target)[0].startswith("conv_transpose") for node in nodes]
    units = sum(_weight(graph, node).shape[int(t)] for node, t in zip(nodes, across, strict=True))
    return sum(_held(graph, node) for node in nodes) / units if units else 0.0


def _small(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else f"{share:.1e}"
