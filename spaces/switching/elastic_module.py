"""One module that takes many sizes in turn, and can be put back after strangers have used it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from ..captured_module import CapturedModule
from ..coupling.units import Vector
from ..module_state import ModuleState
from ..surgery import Sizing, Surgeon, groups_of, rewrite


class Resident:
    """An uncut copy whose tensors may be swapped for smaller ones, and whose integers follow.

    Attributes:
        module: the user's module or the captured graph, in eval mode.
        holders: its tensor objects by canonical name. They are the same ones at every size (their data
            changes), wherever the module refers to them.
        counted: labels of the positions that its integers count.
    """

    def __init__(self, surgeon: Surgeon, *, own: bool) -> None:
        self.holders: dict[str, torch.Tensor] = {}
        self._surgeon = surgeon
        uncut = np.ones(surgeon.coupling.units + 1, dtype=bool)
        make = surgeon.own if own else surgeon.graph
        self.module = make(uncut, lambda _, made: self.holders.update(_tensors(made)))
        # (attributes of a layer, tensor that tells them, how, labels its groups count, or their number)
        self._sized: list[tuple[dict[str, Any], torch.Tensor, Sizing, Vector | None, int]] = []
        self._widths: dict[str, Vector] = {}  # attribute of the captured graph -> what it counts
        if isinstance(self.module, CapturedModule):
            self._widths = _widths_as_attributes(self.module, surgeon)
        else:
            for layer, name, size, labels in surgeon.sized(self.module):
                self._sized.append((layer.__dict__, getattr(layer, name), size, labels, groups_of(layer)))
        # Tensors that the capture never read, such as a batch-norm's counter.
        known = {id(t) for t in self.holders.values()}
        for name, tensor in (*self.module.named_parameters(), *self.module.named_buffers()):
            if id(tensor) not in known:
                self.holders[f"{name} (unread)"] = tensor
        layers = [labels for *_, labels, _ in self._sized if labels is not None]
        self.counted: list[Vector] = [*self._widths.values(), *layers]
        self._state = [ModuleState(m) for m in self.module.modules()]
        self._trained = [(t, t.requires_grad) for t in self.holders.values()]

    def originals(self) -> dict[str, torch.Tensor]:
        """What the holders hold at full size, by name; to be read only."""
        kept = self._surgeon.tensors
        return {n: kept[n] if n in kept else t.detach().clone() for n, t in self.holders.items()}

    def restate(self, count: Callable[[Vector], int]) -> None:
        """Make the module's integers say what its tensors are."""
        state = self.module.__dict__
        for name, counted in self._widths.items():
            state[name] = count(counted)
        for attributes, tensor, size, labels, groups in self._sized:
            size(attributes, tensor.shape, groups if labels is None else count(labels))

    def reset(self) -> None:
        """Undo whatever was done to modules and tensor objects, but for the tensors' data."""
        for state in self._state:
            state.reset()
        for tensor, trained in self._trained:
            tensor.grad = None
            if tensor.requires_grad != trained:
                tensor.requires_grad_(trained)
            if tensor._backward_hooks:
                tensor._backward_hooks = None


def _tensors(made: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in made.items() if isinstance(tensor, torch.Tensor)}


def _widths_as_attributes(module: CapturedModule, surgeon: Surgeon) -> dict[str, Vector]:
    """Let the code read its shape constants from attributes; what each of them counts, by name."""
    counts = [c.vector for constants in surgeon.constants.values() for c in constants]
    vectors = {id(v): v for v in counts if v is not None}
    names = {key: f"width_{i}" for i, key in enumerate(vectors)}
    first = next(iter(module.graph.nodes))
    read: dict[int, fx.Node] = {}
    for key, name in names.items():
        setattr(module, name, len(vectors[key]))
        with module.graph.inserting_before(first):
            read[key] = module.graph.create_node("get_attr", name)
    for node in module.graph.nodes:
        if node.name in surgeon.constants:
            node.args, node.kwargs = rewrite(node, surgeon.constants[node.name], lambda v: read[id(v)])
    module.recompile()
    return {names[key]: v for key, v in vectors.items()}
