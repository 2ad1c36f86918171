"""Which nodes of a captured graph are still computed once some residual blocks are dropped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from torch import fx

from .coupling.walk import operator_name

ALWAYS = 0  # id of the condition that holds whatever is dropped


class Gate(Protocol):
    """What liveness must know of a block: when it is dropped, ``keep`` takes the place of ``out``."""

    @property
    def keep(self) -> str: ...

    @property
    def out(self) -> str: ...


class Liveness:
    """For every node a condition on the dropped blocks under which something that stays reads it.

    Equal conditions have one id: a branch is one condition, the trunk is the condition 0, a mask that all
    blocks read lives as long as one of them.
    """

    def __init__(self, graph: fx.Graph, blocks: Sequence[Gate]) -> None:
        self._blocks = len(blocks)
        self._made: list[tuple[int, int] | tuple[int, ...]] = [()]  # and: (condition, block); or: conditions
        self._is_and: list[bool] = [False]
        self._known: dict[tuple[bool, tuple[int, ...]], int] = {}
        self._implied: list[set[int]] = [{ALWAYS}]
        self.of: dict[str, int] = {}  # node -> id of its condition
        gates = {b.out: k for k, b in enumerate(blocks)}
        kept: dict[str, list[str]] = {}
        for b in blocks:
            kept.setdefault(b.keep, []).append(b.out)
        nodes = list(graph.nodes)
        for n in reversed(nodes):
            if not n.users or n.op == "placeholder":
                self.of[n.name] = ALWAYS
                continue
            readers = [u for u in n.users if not is_check(u)]
            ids = [
                self._and(self.of[u.name], gates[u.name]) if u.name in gates else self.of[u.name]
                for u in readers
            ]
            ids += [self.of[out] for out in kept.get(n.name, ())]
            self.of[n.name] = self._or(ids) if ids else ALWAYS
        for n in nodes:
            if is_check(n):  # goes with what it looks at
                self.of[n.name] = next((c for i in n.all_input_nodes if (c := self.of[i.name])), ALWAYS)
        self._settle_unread(nodes)

    @property
    def conditions(self) -> int:
        """Number of distinct conditions; their ids are 0 to one less."""
        return len(self._made)

    def evaluate(self, dropped: np.ndarray) -> np.ndarray:
        """[conditions, n] bool: which conditions hold, for ``dropped`` [n, blocks] bool."""
        holds = np.ones((self.conditions, len(dropped)), dtype=bool)
        for i in range(1, self.conditions):
            if self._is_and[i]:
                condition, block = self._made[i]
                holds[i] = holds[condition] & ~dropped[:, block]
            else:
                holds[i] = holds[list(self._made[i])].any(axis=0)
        return holds

    def dead(self, dropped: np.ndarray) -> set[str]:
        """Names of the nodes that nothing reads any more, for ``dropped`` [blocks] bool."""
        holds = self.evaluate(dropped[None])[:, 0]
        return {name for name, i in self.of.items() if not holds[i]}

    def either(self, conditions: Iterable[int]) -> int:
        """Id of the condition that one of ``conditions`` holds; made if it is new."""
        return self._or(list(conditions))

    def _and(self, condition: int, block: int) -> int:
        made = self._intern(True, (condition, block))
        self._implied[made] |= self._implied[condition]
        return made

    def _or(self, conditions: list[int]) -> int:
        distinct = set(conditions)
        weakest = [c for c in sorted(distinct) if not any(d in self._implied[c] for d in distinct if d != c)]
        return weakest[0] if len(weakest) == 1 else self._intern(False, tuple(weakest))

    def _intern(self, is_and: bool, parts: tuple[int, ...]) -> int:
        if (is_and, parts) not in self._known:
            self._known[is_and, parts] = len(self._made)
            self._implied.append({len(self._made), ALWAYS})
            self._made.append(parts)
            self._is_and.append(is_and)
        return self._known[is_and, parts]

    def _settle_unread(self, nodes: Sequence[fx.Node]) -> None:
        """A buffer that nothing reads (a count of batches) goes with the rest of its module."""
        beside: dict[str, set[int]] = {}
        for n in nodes:
            if n.op == "get_attr" and n.users:
                beside.setdefault(str(n.target).rpartition(".")[0], set()).add(self.of[n.name])
        for n in nodes:
            if n.op == "get_attr" and not n.users:
                conditions = beside.get(str(n.target).rpartition(".")[0], set())
                self.of[n.name] = self._or(list(conditions)) if conditions else ALWAYS


def is_check(n: fx.Node) -> bool:
    """Whether a node only looks at a value: nothing reads it, and it changes nothing."""
    if n.users or n.op != "call_function":
        return False
    return not operator_name(n.target)[1]
