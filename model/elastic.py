"""Resident network: one module that switches from candidate to candidate, so that scoring builds nothing.

Units are sorted once into nested importance order, so a candidate is a set of leading slices and its weights
are views (as in once-for-all networks: Cai et al. 2020, arXiv 1908.09791, section 3).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from .capture import fresh
from .captured_module import CapturedModule
from .coupling import Group
from .coupling.units import Vector
from .elastic_storage import Storage, Widths
from .modules import ModuleState
from .proof import relative_difference
from .surgery import Alive, Mend, Sizing, Surgeon, groups_of, rewrite


class Resident:
    """An uncut copy whose tensors may be swapped for smaller ones, and whose integers follow.

    Attributes:
        module: the user's module or the captured graph, in eval mode.
        holders: its tensor objects by canonical name. They are the same ones at every size (their data
            changes), wherever the module refers to them.
        counted: labels of the positions that its integers count.
        slots: calls that something else may stand for, by node of the captured graph.
    """

    def __init__(self, surgeon: Surgeon, *, own: bool, places: Sequence[str] = ()) -> None:
        self.holders: dict[str, torch.Tensor] = {}
        self._surgeon = surgeon
        uncut = np.ones(surgeon.coupling.units + 1, dtype=bool)
        make = surgeon.own if own else surgeon.graph
        self.module = make(uncut, lambda _, made: self.holders.update(_tensors(made)))
        # (attributes of a layer, tensor that tells them, how, labels its groups count, or their number)
        self._sized: list[tuple[dict[str, Any], torch.Tensor, Sizing, Vector | None, int]] = []
        self._widths: dict[str, Vector] = {}  # attribute of the captured graph -> what it counts
        self.slots: dict[str, Slot] = {}
        if isinstance(self.module, CapturedModule):
            self._widths = _widths_as_attributes(self.module, surgeon)
            self.slots = _calls_as_slots(self.module, places)
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


class Slot(nn.Module):
    """A call of a graph, in whose place a module may stand.

    Attributes:
        inside: that module, which reads the call's first operand; ``None``: the call itself.
    """

    def __init__(self, call: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.call = call
        self.inside: nn.Module | None = None

    def forward(self, x: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        return self.call(x, *others, **named) if self.inside is None else self.inside(x)


def _calls_as_slots(module: CapturedModule, places: Sequence[str]) -> dict[str, Slot]:
    """Let slots make the calls of these nodes; by name of the node."""
    slots: dict[str, Slot] = {}
    for node in list(module.graph.nodes):
        if node.name in places:
            slots[node.name] = slot = Slot(node.target)
            module.add_submodule(name := f"slot_{len(slots)}", slot)
            with module.graph.inserting_before(node):
                new = module.graph.call_module(name, node.args, node.kwargs)
            node.replace_all_uses_with(new)
            module.graph.erase_node(node)
    if slots:
        module.recompile()
    return slots


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


# -- Score without building: one resident network that switches from candidate to candidate -------------


class Elastic:
    """The resident network of one space.

    Args:
        orders: units of each group that may be cut, best first, by name of the group.
        own: switch the user's module; else the captured graph.
        example: ``(args, kwargs)`` on which sorting is checked to leave the outputs unchanged; without one,
            or where it does not, a switch copies all parameters, in the order in which they are built.
        places: nodes that something else may stand for; with any, the captured graph is switched.

    Attributes:
        groups: names of those groups, in the network's order.
        sizes: [groups] int64, their units.
    """

    def __init__(
        self,
        surgeon: Surgeon,
        orders: Mapping[str, np.ndarray],
        *,
        own: bool,
        example: tuple[tuple[Any, ...], dict[str, Any]] | None = None,
        places: Sequence[str] = (),
    ) -> None:
        self._surgeon, self._orders, self._example = surgeon, orders, example
        self._groups: list[Group] = [g for g in surgeon.coupling.groups if g.name in orders]
        self.groups = [g.name for g in self._groups]
        self.sizes = np.array([g.size for g in self._groups], dtype=np.int64)
        self._resident = Resident(surgeon, own=own, places=places)
        labels = surgeon.coupling.parameters
        vectors = [v for axes in labels.values() for v in axes] + self._resident.counted
        self._widths = Widths(surgeon.coupling.units, self._groups, vectors)
        self._originals = self._resident.originals()
        self._lent = threading.Lock()

    @property
    def free(self) -> bool:
        """Whether nobody has it from :meth:`lent`."""
        return not self._lent.locked()

    def switch(
        self,
        kept: np.ndarray,
        mend: Mend | None = None,
        *,
        copies: bool = False,
        planted: Mapping[str, nn.Module] = MappingProxyType({}),
    ) -> nn.Module:
        """The network with so many units in eval mode: always the same module, valid until the next switch.

        Its outputs are those of the built network: to the last bit where parameters are copied, else up to
        the order of summation. It must not be changed, but for one-dimensional tensors (see :meth:`lent`).

        Args:
            kept: [groups] int64, units of each that stay, at least 1.
            mend: repair of sliced parameters; with one, they are all copied.
            copies: give parameters of its own, which may be changed in place.
            planted: what stands for calls, by node, once ``mend`` is done.
        """
        with torch.inference_mode(False), torch.no_grad():
            if copies or mend is not None or self._storage is None:
                alive = self._best(kept)
                self._copy(alive, mend)
            else:
                alive = self._widths.leading(kept)
                self._storage.cut(kept)
        self._count(kept, alive)
        for name, slot in self._resident.slots.items():
            slot.inside = planted.get(name)
        return self._resident.module

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Within, the network is one borrower's; afterwards everything is put back that it has changed.

        That is weights, attributes of modules, their children, hooks, flags and gradients.

        Raises:
            RuntimeError: the network is lent already.
        """
        if not self._lent.acquire(blocking=False):
            raise RuntimeError("the resident network is in use; build this candidate")
        try:
            yield
        finally:
            self.reset()
            self._lent.release()

    def reset(self) -> None:
        """Put everything back but the sizes, which the next switch sets."""
        self._resident.reset()
        storage = self.__dict__.get("_storage")
        if storage is not None:
            storage.forget()
            storage.restore()

    def _copy(self, alive: Alive, mend: Mend | None = None) -> None:
        made = self._surgeon.parameters(alive, mend)
        if (storage := self.__dict__.get("_storage")) is not None:
            storage.forget()
        for name, holder in self._resident.holders.items():
            new = made[name] if name in made else self._originals[name].clone()
            holder.data = new.detach()

    def _count(self, kept: np.ndarray, alive: Alive) -> None:
        lengths = self._widths.lengths(kept, alive)
        self._resident.restate(lambda v: lengths[self._widths.index(v)])  # type: ignore[index]

    @cached_property
    def _storage(self) -> Storage | None:
        """The sorted weights; ``None`` where they cannot be had, or change what the network computes."""
        if self._example is None:
            return None
        labels = self._surgeon.coupling.parameters
        try:
            storage = Storage(
                self._originals,
                self._resident.holders,
                labels,
                self._widths,
                self._groups,
                dict(self._orders),
            )
        except TypeError:
            return None
        for kept in (self.sizes, np.maximum(self.sizes // 2, 1)):
            alive = self._best(kept)
            self._copy(alive)
            self._count(kept, alive)
            expected = self._outputs()
            storage.cut(kept)
            self._count(kept, self._widths.leading(kept))
            off, allowed = relative_difference(self._outputs(), expected)
            if not off <= allowed:
                return None
        return storage

    def _best(self, kept: np.ndarray) -> Alive:
        """The labels that stay where each group keeps its best units: [units + 1] bool."""
        alive = np.ones(self._surgeon.coupling.units + 1, dtype=bool)
        for group, units in zip(self._groups, kept.tolist(), strict=True):
            alive[group.labels[self._orders[group.name][units:]]] = False
        return alive

    def _outputs(self) -> list[Any]:
        """On the example, forgetting what the modules keep of it (a table computed at the first call)."""
        assert self._example is not None
        args, kwargs = fresh(self._example)
        with torch.no_grad():
            outputs = pytree.tree_leaves(self._resident.module(*args, **kwargs))
        self._resident.reset()
        return outputs
