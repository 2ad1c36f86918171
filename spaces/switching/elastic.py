"""Score without building: one resident network that switches from candidate to candidate.

Units are sorted once into nested importance order, so a candidate is a set of leading slices and its weights
are views (as in once-for-all networks: Cai et al. 2020, arXiv 1908.09791, section 3).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..capture import fresh
from ..choice import Candidate, Choice
from ..coupling import Group
from ..proving.proof import relative_difference
from ..prune import Prune
from ..space import Repair
from ..splitting.splits import is_split
from ..surgery import Alive, Mend, Surgeon
from .elastic_module import Resident
from .elastic_storage import Storage, Widths


class Elastic:
    """The resident network of one space.

    Args:
        choices: of the space; candidates are read by position.
        orders: units of each pruned group, best first, by the name of the order and of the group.
        own: switch the user's module; else the captured graph.
        alive: the labels that stay for a candidate.
        mending: the repair of a candidate's sliced parameters, ``None`` for the space's own; where there is
            one, a switch copies them all, in the order in which they are built.
        example: ``(args, kwargs)`` on which sorting is checked to leave the outputs unchanged; without one,
            or where it does not, a switch copies too.
    """

    def __init__(
        self,
        surgeon: Surgeon,
        choices: Sequence[Choice],
        orders: Mapping[str, Mapping[str, np.ndarray]],
        *,
        own: bool,
        alive: Callable[[Candidate], Alive],
        mending: Callable[[Candidate, Repair | None], Mend | None] = lambda *_: None,
        example: tuple[tuple[Any, ...], dict[str, Any]] | None = None,
    ) -> None:
        self.choices = tuple(choices)
        self._surgeon, self._alive, self._mending, self._example = surgeon, alive, mending, example
        pruned = {c.edit.group: orders[c.edit.order] for c in choices if isinstance(c.edit, Prune)}
        self._groups: list[Group] = [g for g in surgeon.coupling.groups if g.name in pruned]
        self._sizes = np.array([g.size for g in self._groups])
        self._orders = {g.name: pruned[g.name][g.name] for g in self._groups}
        at = {g.name: i for i, g in enumerate(self._groups)}
        cuts = {i: c.edit for i, c in enumerate(choices) if isinstance(c.edit, Prune)}
        # place among the choices -> (group, units kept per option)
        self._cuts = {i: (at[edit.group], edit.kept) for i, edit in cuts.items()}
        self._foreign = [i for i, c in enumerate(choices) if i not in cuts and not _keeps_the_network(c)]
        self._resident = Resident(surgeon, own=own)
        labels = surgeon.coupling.parameters
        vectors = [v for axes in labels.values() for v in axes] + self._resident.counted
        self._widths = Widths(surgeon.coupling.units, self._groups, vectors)
        self._originals = self._resident.originals()
        self._lent = threading.Lock()

    def switches(self, candidate: Candidate) -> bool:
        """Whether :meth:`switch` can make it: its choices are this space's, and all it changes is widths."""
        return candidate.choices == self.choices and not any(candidate.indices[i] for i in self._foreign)

    @property
    def free(self) -> bool:
        """Whether nobody has it from :meth:`lend`."""
        return not self._lent.locked()

    def switch(
        self, candidate: Candidate, *, copies: bool = False, repair: Repair | None = None
    ) -> nn.Module:
        """The network of ``candidate`` in eval mode: always the same module, valid until the next switch.

        Its outputs are those of the built network: to the last bit where parameters are copied, else up to
        the order of summation. It must not be changed, but for one-dimensional tensors (see :meth:`lend`).

        Args:
            copies: give parameters of its own, which may be changed in place.
            repair: in place of the space's own.

        Raises:
            ValueError: the candidate is not among those that :meth:`switches` tells.
        """
        if not self.switches(candidate):
            raise ValueError(f"{candidate} does more than prune this space's groups; build it instead")
        kept = self._sizes.copy()
        for i, (group, units) in self._cuts.items():
            kept[group] = units[candidate.indices[i]]
        mend = self._mending(candidate, repair)
        with torch.inference_mode(False), torch.no_grad():
            if copies or mend is not None or self._storage is None:
                alive = self._alive(candidate)
                self._copy(alive, mend)
            else:
                alive = self._widths.leading(kept)
                self._storage.cut(kept)
        self._count(kept, alive)
        return self._resident.module

    @contextmanager
    def lend(
        self, candidate: Candidate, *, copies: bool = False, repair: Repair | None = None
    ) -> Iterator[nn.Module]:
        """:meth:`switch`, and afterwards put everything back that the borrower has changed.

        That is weights, attributes of modules, their children, hooks, flags and gradients.

        Raises:
            RuntimeError: the network is lent already.
        """
        if not self._lent.acquire(blocking=False):
            raise RuntimeError("the resident network is in use; build this candidate")
        try:
            yield self.switch(candidate, copies=copies, repair=repair)
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
                self._originals, self._resident.holders, labels, self._widths, self._groups, self._orders
            )
        except TypeError:
            return None
        for kept in (self._sizes, np.maximum(self._sizes // 2, 1)):
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


def _keeps_the_network(choice: Choice) -> bool:
    """Does no option change what the network computes with its weights?"""
    return choice.edit is None or is_split(choice)
