"""Candidate decoder: option indices to widths, labels that stay, costs and keys, by the choices' kinds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..model.cost_tables import Tables
from ..model.facts import Facts
from ..model.proof import separating
from ..model.surgery import Alive
from .choice import Candidate, Choice
from .kinds.base import Keeps, Part, parts_of
from .space import Space

SUMS = ("macs", "flops", "params", "size_mb")  # over what is there
LIVES = ("activation_mb", "memory_mb")  # depend on which tensors are alive together


@dataclass(frozen=True)
class Pruned:
    """The choice that decides how many units of one group stay."""

    column: int  # among the space's choices
    place: int  # of the group
    group: str
    units: np.ndarray  # [options] int64
    order: np.ndarray  # [units of the group] int64, the most important first


@dataclass(frozen=True)
class Dropped:
    """The choice that decides whether one residual block is there."""

    column: int
    place: int  # of the block
    block: str
    gone: np.ndarray  # [options] bool


@dataclass(frozen=True)
class Reading:
    """What the choices of a space are about."""

    choices: tuple[Choice, ...]
    parts: tuple[Part, ...]
    pruned: tuple[Pruned, ...]
    dropped: tuple[Dropped, ...]


class Decoder:
    """Reads candidates of the spaces of one traced network. Every method is a short fold over the kinds."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._sizes = np.array([g.size for g in facts.coupling.groups], dtype=np.int64)
        self._group_at = {g.name: i for i, g in enumerate(facts.coupling.groups)}
        self._block_at = {b.name: k for k, b in enumerate(facts.all_blocks)}
        self._last: Reading | None = None  # of the choices that were read last

    def read(self, choices: tuple[Choice, ...]) -> Reading:
        """
        Raises:
            ValueError: two choices decide about one group or one block.
        """
        if self._last is None or self._last.choices is not choices:
            self._last = self._read(choices)
        return self._last

    def _read(self, choices: tuple[Choice, ...]) -> Reading:
        pruned: dict[str, Pruned] = {}
        dropped: dict[str, Dropped] = {}
        parts = parts_of(choices)
        for part in parts:
            for column, choice in zip(part.columns, part.choices, strict=True):
                for keeps in part.kind.keeps(choice):
                    name = keeps.group if isinstance(keeps, Keeps) else keeps.block
                    if name in (pruned if isinstance(keeps, Keeps) else dropped):
                        raise ValueError(
                            f"{choice.name!r} and another choice of the space both decide about {name!r}; "
                            "join spaces that decide about different ones"
                        )
                    if isinstance(keeps, Keeps):
                        units = np.array([keeps.units[o] for o in choice.options], dtype=np.int64)
                        place = self._group_at[name]
                        pruned[name] = Pruned(column, place, name, units, keeps.order)
                    else:
                        gone = np.array([o in keeps.options for o in choice.options])
                        dropped[name] = Dropped(column, self._block_at[name], name, gone)
        return Reading(choices, parts, tuple(pruned.values()), tuple(dropped.values()))

    # -- many candidates, option indices [n, choices] ------------------------------------------------

    def cost_arrays(
        self, choices: tuple[Choice, ...], indices: np.ndarray, *, whole: bool = False
    ) -> dict[str, np.ndarray]:
        """Analytic costs (see :meth:`Costs.evaluate`), as the kinds of the choices correct and add to them.

        Args:
            whole: of the networks in one piece: without what neutral choices decide.
        """
        reading = self.read(choices)
        widths, dropped = self.widths(choices, indices)
        costs = self.facts.costs.evaluate(widths, dropped)
        tables = Tables(self.facts, widths, dropped)
        for part in reading.parts:
            if not (whole and part.kind.neutral):
                part.kind.costs(part.many(indices), costs, tables)
        for part in reading.parts:
            for name in part.kind.measured:
                costs.pop(name, None)
        return costs

    def widths(self, choices: tuple[Choice, ...], indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Kept units int64 [n, groups] and dropped blocks bool [n, blocks] of candidates."""
        reading = self.read(choices)
        widths = np.tile(self._sizes, (len(indices), 1))
        dropped = np.zeros((len(indices), len(self._block_at)), dtype=bool)
        for p in reading.pruned:
            widths[:, p.place] = p.units[indices[:, p.column]]
        for d in reading.dropped:
            dropped[:, d.place] = d.gone[indices[:, d.column]]
        return widths, dropped

    def cost_bounds(
        self, choices: tuple[Choice, ...], low: np.ndarray, high: np.ndarray
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Certain bounds over boxes ``low <= indices <= high`` [n, choices]: cost -> (least, most) [n].

        Only of costs that every kind says never rise: the corners of a box bound them.
        """
        names = self.falling(choices)
        if not names:
            return {}
        least, most = (self.cost_arrays(choices, x, whole=True) for x in (high, low))
        return {name: (least[name], most[name]) for name in names}

    def falling(self, choices: tuple[Choice, ...]) -> tuple[str, ...]:
        """Names of the costs that never rise when any choice goes to a later option.

        Sums of products of axis lengths with coefficients that are not negative fall with the units kept.
        """
        names: tuple[str, ...] = SUMS + LIVES if self.facts.costs.positive else ()
        for part in self.read(choices).parts:
            names = tuple(part.kind.falling(part.choices, names))
        return names

    # -- one candidate -------------------------------------------------------------------------------

    def kept(self, candidate: Candidate) -> dict[str, np.ndarray]:
        """Units kept in each pruned group, ascending, by group name."""
        pruned = self.read(candidate.choices).pruned
        return {p.group: np.sort(p.order[: p.units[candidate.indices[p.column]]]) for p in pruned}

    def alive(self, candidate: Candidate) -> Alive:
        """Which unit labels stay, then which blocks: [units + 1 + blocks] bool (see :data:`Alive`)."""
        reading, coupling = self.read(candidate.choices), self.facts.coupling
        alive = np.ones(coupling.units + 1 + len(self._block_at), dtype=bool)
        for p in reading.pruned:
            units = int(p.units[candidate.indices[p.column]])
            alive[coupling.groups[p.place].labels[p.order[units:]]] = False
        for d in reading.dropped:
            alive[coupling.units + 1 + d.place] = not d.gone[candidate.indices[d.column]]
        return alive

    def keys(self, candidate: Candidate) -> list[bytes]:
        """What changes the network beside what stays, by kind; empty where nothing else does."""
        parts = self.read(candidate.choices).parts
        found = [part.kind.key(part.of(candidate)) for part in parts]
        return found if any(found) else []

    def unchanged(self, candidate: Candidate) -> bool:
        """Is it the given network, wherever that is cut?"""
        return not self.keys(candidate) and bool(self.alive(candidate).all())

    def network_key(self, candidate: Candidate) -> bytes:
        """Equal for candidates of a space that are the same network, wherever it is cut."""
        choices, indices = candidate.choices, candidate.indices
        others = [(c.name, i) for c, i in zip(choices, indices, strict=True) if i and c.kind is None]
        return np.packbits(self.alive(candidate)).tobytes() + repr((self.keys(candidate), others)).encode()

    # -- the space -----------------------------------------------------------------------------------

    def spanning(self, space: Space) -> list[Candidate]:
        """Candidates that take the widths and blocks that a space offers, together with each other.

        Every option of every such choice is taken once, with all blocks in place and, compressed most,
        without; of every two choices each is once compressed most while the other is unchanged.
        """
        reading = self.read(space.choices)
        drops = np.isin(np.arange(len(space)), [d.column for d in reading.dropped])
        used = drops | np.isin(np.arange(len(space)), [p.column for p in reading.pruned])
        if not used.any():
            return []
        last = np.where(used, space.counts - 1, 0)
        steps = [np.where(drops, 0, np.minimum(k, last)) for k in range(1, last.max() + 1)]
        steps += [last] if drops.any() else []
        at = np.flatnonzero(used)
        steps += [np.where(np.isin(np.arange(len(space)), at[p]), last, 0) for p in separating(len(at))]
        return [space.candidate(indices) for indices in steps]

    def decides(self, choices: tuple[Choice, ...]) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """Group -> the choice that decides about it, and block -> the choice that does, by name."""
        reading = self.read(choices)
        return (
            {p.group: choices[p.column].name for p in reading.pruned},
            {d.block: choices[d.column].name for d in reading.dropped},
        )
