"""Make the smaller network: from the units that stay to an independent module.

One plan, two artifacts: the user's own module with sliced parameters, or the captured graph with its shape
constants rewritten. A dropped residual block is a module replaced by an identity in the one, and nodes that
are not there in the other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .blocks import Block
from .captured_module import CapturedModule, assemble, copy_specs
from .coupling import Constant, Coupling
from .coupling.walk import get_attribute, schema
from .liveness import Liveness
from .modules import skeleton

# [units + 1 + blocks] bool: which units stay (entry 0, the fixed positions, is True), then which residual
# blocks do; without the last part all of them.
Alive = np.ndarray
Mend = Callable[[Alive, dict[str, Any]], None]  # changes sliced parameters, by canonical name, in place
Sizing = Callable[[dict[str, Any], torch.Size, int], None]  # (attributes, shape, groups): writes sizes down


class Surgeon:
    """Slices one captured model; holds what does not depend on the candidate."""

    def __init__(
        self,
        module: fx.GraphModule,
        source: nn.Module | None,
        coupling: Coupling,
        blocks: Sequence[Block] = (),
    ) -> None:
        self.module: fx.GraphModule | None = module  # None in a copy that only slices the source
        self.source = source
        self.coupling = coupling
        self.blocks = tuple(blocks)
        self._liveness = Liveness(module.graph, blocks)
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

    def dropped(self, alive: Alive) -> np.ndarray:
        """[blocks] bool: the residual blocks that are not there."""
        gone = ~alive[self.coupling.units + 1 :]
        return gone if len(gone) else np.zeros(len(self.blocks), dtype=bool)

    def dead(self, alive: Alive) -> set[str]:
        """Nodes that only dropped blocks need, by name."""
        dropped = self.dropped(alive)
        return self._liveness.dead(dropped) if dropped.any() else set()

    def handed(self, alive: Alive) -> dict[str, tuple[str, bool]]:
        """Nodes that end dropped blocks: whose value each hands on, and whether as a copy."""
        out: dict[str, tuple[str, bool]] = {}
        dead = self.dead(alive)
        for b, is_dropped in zip(self.blocks, self.dropped(alive), strict=True):
            if is_dropped and b.out not in dead:
                out[b.add] = b.keep, b.copies
                if b.out != b.add:
                    out[b.out] = b.add, False
        return out

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

    def graph(self, alive: Alive, mend: Mend | None = None, standing: Collection[str] = ()) -> CapturedModule:
        """The captured graph on the kept positions.

        Args:
            standing: nodes that something is to stand for: those among them that end dropped blocks stay, and
                hand on their first operand.
        """
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
        if (dropped := self.dropped(alive)).any():
            self._drop(graph, val_map, dropped, standing)
            read = {str(n.target) for n in graph.nodes if n.op == "get_attr"}
            attributes = {
                k: v for k, v in attributes.items() if k in read or k not in self.coupling.canonical
            }
        made = assemble(graph, attributes)
        copy_specs(self.module, made)
        return made

    def _drop(
        self,
        graph: fx.Graph,
        made: dict[fx.Node, fx.Node],
        dropped: np.ndarray,
        standing: Collection[str],
    ) -> None:
        """Let x take the place of every dropped block in ``graph``, a copy of the captured one."""
        new = {old.name: node for old, node in made.items()}
        dead = self._liveness.dead(dropped)
        gone = set(dead)
        for block, is_dropped in zip(self.blocks, dropped, strict=True):
            if is_dropped and block.out not in dead:
                x: Any = new[block.add].args[1 - block.branch]
                out = new[block.out]
                if block.copies:
                    with graph.inserting_before(out):
                        x = graph.call_function(torch.ops.aten.clone.default, (x,))
                if block.out in standing:
                    out.target, out.args, out.kwargs = torch.ops.aten.alias.default, (x,), {}
                    continue
                out.replace_all_uses_with(x)
                gone.add(block.out)
        for old, node in reversed(made.items()):
            if old.name in gone:
                graph.erase_node(node)

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
        for block, is_dropped in zip(self.blocks, self.dropped(alive), strict=True):
            if is_dropped:
                if block.module is None:
                    raise RuntimeError(f"the residual block {block.name} is not a module of its own")
                memo[id(self.source.get_submodule(block.module))] = nn.Identity()
        module = skeleton(self.source, memo)
        for child, name, size, labels in self.sized(module):
            groups = groups_of(child) if labels is None else int(np.count_nonzero(alive[labels]))
            size(child.__dict__, getattr(child, name).shape, groups)
        return module.eval()

    def sized(self, module: nn.Module) -> Iterator[tuple[nn.Module, str, Sizing, np.ndarray | None]]:
        """Layers of the user's model: layer, tensor, attributes as that has them, labels its groups count."""
        for path, child in module.named_modules():
            weight = f"{path}.weight" if path else "weight"
            labels = self._group_counts.get(self.coupling.canonical.get(weight, weight))
            for name, size in sizing(child).items():
                yield child, name, size, labels


def groups_of(module: nn.Module) -> int:
    """Of a convolution or a group norm; else 1."""
    return getattr(module, "groups", getattr(module, "num_groups", 1))


def sizing(module: nn.Module) -> dict[str, Sizing]:
    """Which of a layer's tensors tell what size attributes it has, and who writes these down.

    The number of groups that goes in is that of a convolution or group norm.
    """
    if isinstance(module, _ConvTransposeNd):
        return {"weight": _size_transposed}
    if isinstance(module, _ConvNd):
        return {"weight": _size_convolution}
    if isinstance(module, nn.RNNBase):
        return {
            "weight_ih_l0": lambda a, s, _: a.update(input_size=s[1]),
            "weight_hh_l0": lambda a, s, _: a.update(hidden_size=s[1]),
        }
    if isinstance(module, nn.RNNCellBase):
        return {
            "weight_ih": lambda a, s, _: a.update(input_size=s[1]),
            "weight_hh": lambda a, s, _: a.update(hidden_size=s[1]),
        }
    if isinstance(module, nn.Bilinear):
        return {"weight": lambda a, s, _: a.update(out_features=s[0], in1_features=s[1], in2_features=s[2])}
    if isinstance(module, nn.Linear):
        return {"weight": lambda a, s, _: a.update(out_features=s[0], in_features=s[1])}
    if isinstance(module, nn.Embedding):
        return {"weight": lambda a, s, _: a.update(num_embeddings=s[0], embedding_dim=s[1])}
    if isinstance(module, _NormBase) and module.running_mean is not None:
        return {"running_mean": _size_norm}
    if getattr(module, "weight", None) is None:
        return {}
    if isinstance(module, _NormBase):
        return {"weight": _size_norm}
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return {"weight": lambda a, s, _: a.update(normalized_shape=tuple(s))}
    if isinstance(module, nn.GroupNorm):
        return {"weight": lambda a, s, g: a.update(num_groups=g, num_channels=s[0])}
    return {}


# Written out, since a network switches hundreds of these in a millisecond.


def _size_convolution(attributes: dict[str, Any], shape: torch.Size, groups: int) -> None:
    attributes["groups"] = groups
    attributes["out_channels"] = shape[0]
    attributes["in_channels"] = shape[1] * groups


def _size_transposed(attributes: dict[str, Any], shape: torch.Size, groups: int) -> None:
    attributes["groups"] = groups
    attributes["in_channels"] = shape[0]
    attributes["out_channels"] = shape[1] * groups


def _size_norm(attributes: dict[str, Any], shape: torch.Size, _: int) -> None:
    attributes["num_features"] = shape[0]


def rewrite(
    node: fx.Node, constants: Sequence[Constant], alive: Alive | Callable[[np.ndarray], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of ``node`` with the integers that count positions set to the numbers that are kept.

    Args:
        alive: which labels stay, or what to write for a count of some labels.
    """
    names = [a.name for a in schema(node)]
    args, kwargs = list(node.args), dict(node.kwargs)
    for constant in constants:
        value: Any = -1
        if constant.vector is not None:
            counted = constant.vector
            value = alive(counted) if callable(alive) else int(np.count_nonzero(alive[counted]))
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
