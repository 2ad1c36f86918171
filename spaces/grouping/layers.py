"""Which layers of a captured graph may become grouped ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from ..coupling import Coupling
from ..coupling.walk import bind, operator_name

_LAYERS = ("linear", "conv1d", "conv2d", "conv3d")


@dataclass(frozen=True, slots=True)
class Layer:
    """A dense layer whose weight and bias only it reads; names are those of the captured graph."""

    name: str  # of the module, or of the weight where that has none
    node: str
    weight: str  # canonical name, [outputs, inputs, kernel]
    outputs: int
    inputs: int


def dense_layers(graph: fx.Graph, coupling: Coupling) -> tuple[list[Layer], dict[str, str]]:
    """In the graph's order; and why other layers of these types are none, by name."""
    readers: dict[str, set[fx.Node]] = {}
    for n in graph.nodes:
        if n.op == "get_attr" and (name := coupling.canonical.get(str(n.target))):
            readers.setdefault(name, set()).update(n.users)
    layers: list[Layer] = []
    reasons: dict[str, str] = {}
    for n in graph.nodes:
        if n.op != "call_function" or operator_name(n.target)[0] not in _LAYERS:
            continue
        bound = bind(n)
        held = [bound["weight"], bound.get("bias")]
        read = [t for t in held if isinstance(t, fx.Node)]
        if any(t.op != "get_attr" for t in read):
            reasons[n.name] = "its weights are computed"
            continue
        names = [coupling.canonical[str(t.target)] for t in read]
        layer = names[0].rpartition(".")[0] or names[0]
        outputs, inputs = bound["weight"].meta["val"].shape[:2]
        if any(readers[name] != {n} for name in names):
            reasons[layer] = "shares its weights"
        elif bound.get("groups", 1) != 1:
            reasons[layer] = f"has {bound['groups']} groups already"
        else:
            layers.append(Layer(layer, n.name, names[0], outputs, inputs))
    return layers, reasons
