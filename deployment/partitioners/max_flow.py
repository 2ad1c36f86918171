"""Maximum flow and minimum cut by Dinic's algorithm, in exact integers."""

from __future__ import annotations

from collections import deque


class FlowNetwork:
    """Directed arcs with integer capacities of any size; vertices are numbered from 0.

    Blocking flows on level graphs: O(vertices^2 x arcs), far less on networks of layers (Dinic, Soviet
    Mathematics Doklady 11, 1970).
    """

    def __init__(self, vertices: int) -> None:
        self._arcs: list[list[int]] = [
            [] for _ in range(vertices)
        ]  # arc numbers by tail; arc ^ 1 is its reverse
        self._head: list[int] = []
        self._room: list[int] = []

    def add(self, tail: int, head: int, capacity: int, backward: int = 0) -> None:
        """An arc, and one in the other direction of capacity ``backward``."""
        self._arcs[tail].append(len(self._head))
        self._arcs[head].append(len(self._head) + 1)
        self._head += (head, tail)
        self._room += (capacity, backward)

    def maximum_flow(self, source: int, sink: int) -> int:
        """Value of a maximum flow, which is what a minimum cut costs (Ford and Fulkerson, 1956)."""
        flow = 0
        while True:
            level = self._levels(source)
            if level[sink] < 0:
                return flow
            flow += self._block(source, sink, level)

    def source_side(self, source: int) -> list[bool]:
        """After :meth:`maximum_flow`: the least set of vertices on the source's side of a minimum cut."""
        return [level >= 0 for level in self._levels(source)]

    def _levels(self, source: int) -> list[int]:
        level = [-1] * len(self._arcs)
        level[source] = 0
        queue = deque([source])
        while queue:
            tail = queue.popleft()
            for arc in self._arcs[tail]:
                head = self._head[arc]
                if level[head] < 0 and self._room[arc] > 0:
                    level[head] = level[tail] + 1
                    queue.append(head)
        return level

    def _block(self, source: int, sink: int, level: list[int]) -> int:
        """Push along shortest paths until every one of them is full."""
        following = [0] * len(self._arcs)  # the first arc of each vertex that may still carry
        path: list[int] = []
        flow = 0
        at = source
        while True:
            if at == sink:
                least = min(self._room[arc] for arc in path)
                for arc in path:
                    self._room[arc] -= least
                    self._room[arc ^ 1] += least
                flow += least
                full = next(i for i, arc in enumerate(path) if self._room[arc] == 0)
                at = self._head[path[full] ^ 1]
                del path[full:]
                continue
            arcs = self._arcs[at]
            while following[at] < len(arcs):
                arc = arcs[following[at]]
                if self._room[arc] > 0 and level[self._head[arc]] == level[at] + 1:
                    break
                following[at] += 1
            else:
                if not path:
                    return flow
                at = self._head[path.pop() ^ 1]
                following[at] += 1
                continue
            path.append(arc)
            at = self._head[arc]
