"""Liveness: nodes of a captured graph that are still computed once some residual blocks are dropped."""

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
        trailing = trailing_nodes(graph)
        for n in reversed(nodes):
            if not n.users or n.op == "placeholder":
                self.of[n.name] = ALWAYS
                continue
            readers = [u for u in n.users if u not in trailing]
            ids = [
                self._and(self.of[u.name], gates[u.name]) if u.name in gates else self.of[u.name]
                for u in readers
            ]
            ids += [self.of[out] for out in kept.get(n.name, ())]
            self.of[n.name] = self._or(ids) if ids else ALWAYS
        constant = constants(graph)
        for n in nodes:
            if n in trailing and n not in constant:  # goes with what it looks at or writes into
                self.of[n.name] = next((c for i in n.all_input_nodes if (c := self.of[i.name])), ALWAYS)
        for n in reversed(nodes):
            if n in constant and n.users and n.users.keys() <= trailing:  # goes with what it is written into
                self.of[n.name] = self._or([self.of[u.name] for u in n.users])
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


def trailing_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that lead to no result: checks, constants written into a value, and what only these read."""
    constant = constants(graph)
    trailing: set[fx.Node] = set()
    for n in reversed(graph.nodes):
        if n.op != "call_function":
            continue
        writes = operator_name(n.target)[1]
        ends = not n.users and (not writes or all(i in constant for i in n.all_input_nodes[1:]))
        if ends or (n.users and n.users.keys() <= trailing):
            trailing.add(n)
    return trailing


def constants(graph: fx.Graph) -> set[fx.Node]:
    """Parameters, buffers, and what is computed from them alone."""
    constant: set[fx.Node] = set()
    for n in graph.nodes:
        computed = n.op == "call_function" and n.all_input_nodes and constant.issuperset(n.all_input_nodes)
        if n.op == "get_attr" or computed:
            constant.add(n)
    return constant
