"""Make the smaller network: from the units that stay to an independent module.

One plan, two artifacts: the user's own module with sliced parameters, or the captured graph with its shape
constants rewritten.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .captured_module import CapturedModule, assemble
from .coupling import Constant, Coupling
from .coupling.walk import get_attribute, schema
from .skeleton import skeleton

Alive = np.ndarray  # [units + 1] bool; entry 0 (fixed positions) is True
Mend = Callable[[Alive, dict[str, Any]], None]  # changes sliced parameters, by canonical name, in place


class Surgeon:
    """Slices one captured model; holds what does not depend on the candidate."""

    def __init__(self, module: fx.GraphModule, source: nn.Module | None, coupling: Coupling) -> None:
        self.module: fx.GraphModule | None = module  # None in a copy that only slices the source
        self.source = source
        self.coupling = coupling
        self.tensors: dict[str, Any] = {name: get_attribute(module, name) for name in coupling.canonical}
        self.constants: dict[str, list[Constant]] = {}
        for c in coupling.constants:
            self.constants.setdefault(c.node, []).append(c)
        self._group_counts = _group_counts(module, coupling)

    def without_graph(self) -> Surgeon:
        """A copy that can only slice the user's module: light enough to travel."""
        lighter = copy.copy(self)
        lighter.module = None
        return lighter

    def parameters(self, alive: Alive, mend: Mend | None = None) -> dict[str, torch.Tensor]:
        """New tensors by canonical name: kept positions gathered along every followed axis, then mended."""
        kept: dict[int, torch.Tensor] = {}
        made: dict[str, torch.Tensor] = {}
        for name in dict.fromkeys(self.coupling.canonical.values()):
            old = self.tensors[name]
            new = old.detach() if isinstance(old, torch.Tensor) else old
            for axis, v in enumerate(self.coupling.parameters.get(name, ())):
                if v is None:
                    continue
                if id(v) not in kept:
                    kept[id(v)] = torch.from_numpy(np.flatnonzero(alive[v]))
                if len(kept[id(v)]) < len(v):
                    new = new.index_select(axis, kept[id(v)])
            if isinstance(new, torch.Tensor):
                new = new.clone() if new.data_ptr() == old.data_ptr() else new
                if isinstance(old, nn.Parameter):
                    new = nn.Parameter(new, requires_grad=old.requires_grad)
            made[name] = new
        if mend is not None:
            mend(alive, made)
        return made

    def graph(self, alive: Alive, mend: Mend | None = None) -> CapturedModule:
        """The captured graph on the kept positions."""
        if self.module is None:
            raise RuntimeError("this copy of the surgeon holds no captured graph")
        parameters = self.parameters(alive, mend)
        attributes: dict[str, Any] = {
            target: parameters[name] for target, name in self.coupling.canonical.items()
        }
        graph = fx.Graph()
        val_map: dict[fx.Node, fx.Node] = {}
        output = graph.graph_copy(self.module.graph, val_map)
        graph.output(output)
        graph.set_codegen(copy.copy(self.module.graph._codegen))
        for old, new in val_map.items():
            if old.op == "call_module":
                attributes[str(old.target)] = get_attribute(self.module, str(old.target))
            if old.name in self.constants:
                new.args, new.kwargs = rewrite(new, self.constants[old.name], alive)
        made = assemble(graph, attributes)
        for name in ("_in_spec", "_out_spec"):
            if hasattr(self.module, name):
                setattr(made, name, getattr(self.module, name))
        return made

    def own(self, alive: Alive, mend: Mend | None = None) -> nn.Module:
        """The user's module, same class and names, with sliced parameters.

        It is up to the caller to prove that its forward agrees with :meth:`graph`.
        """
        if self.source is None:
            raise RuntimeError("this copy of the surgeon holds no source module")
        parameters = self.parameters(alive, mend)
        memo: dict[int, Any] = {}
        for target, name in self.coupling.canonical.items():
            try:
                memo[id(get_attribute(self.source, target))] = parameters[name]
            except AttributeError:  # a constant that the capture lifted out of forward
                continue
        module = skeleton(self.source, memo)
        for name, child in module.named_modules():
            weight = f"{name}.weight" if name else "weight"
            counted = self._group_counts.get(self.coupling.canonical.get(weight, weight))
            groups = None if counted is None else int(np.count_nonzero(alive[counted]))
            _restate(child, groups)
        return module.eval()


def _restate(module: nn.Module, groups: int | None) -> None:
    """Make the size attributes of a layer say what its parameters are."""
    if isinstance(module, _ConvNd):
        module.groups = module.groups if groups is None else groups
        first, second = module.weight.shape[:2]
        if isinstance(module, _ConvTransposeNd):
            module.in_channels, module.out_channels = first, second * module.groups
        else:
            module.out_channels, module.in_channels = first, second * module.groups
    elif isinstance(module, nn.RNNBase):
        w_ih, w_hh = module.all_weights[0][:2]
        module.input_size, module.hidden_size = w_ih.shape[1], w_hh.shape[1]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NormBase):
        held = module.running_mean if module.running_mean is not None else module.weight
        if held is not None:
            module.num_features = held.shape[0]
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        module.num_groups = module.num_groups if groups is None else groups
        module.num_channels = module.weight.shape[0]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape


def rewrite(
    node: fx.Node, constants: Sequence[Constant], alive: Alive
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of ``node`` with the integers that count positions set to the numbers that are kept."""
    names = [a.name for a in schema(node)]
    args, kwargs = list(node.args), dict(node.kwargs)
    for constant in constants:
        value = -1 if constant.vector is None else int(np.count_nonzero(alive[constant.vector]))
        at = names.index(constant.argument)
        holder: Any = args if at < len(args) else kwargs
        key: Any = at if at < len(args) else constant.argument
        if constant.element is None:
            holder[key] = value
        else:
            holder[key] = [value if i == constant.element else old for i, old in enumerate(holder[key])]
    return tuple(args), kwargs


def _group_counts(module: fx.GraphModule, coupling: Coupling) -> dict[str, np.ndarray]:
    """Weight -> labels counted by its layer's ``groups`` (convolution) or ``num_groups`` (group norm)."""
    counts: dict[str, np.ndarray] = {}
    counted = {
        c.node: c.vector
        for c in coupling.constants
        if c.argument in ("groups", "num_groups") and c.vector is not None
    }
    for node in module.graph.nodes:
        if node.name in counted:
            names = [a.name for a in schema(node)]
            weight = node.args[names.index("weight")]
            if isinstance(weight, fx.Node) and weight.op == "get_attr":
                counts[coupling.canonical[str(weight.target)]] = counted[node.name]
    return counts
