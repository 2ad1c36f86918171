"""Greedy merge and greedy split of intervals, by any objective."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from .graph import Graph, parts_of


@dataclass(frozen=True, slots=True)
class Step:
    """One partition of a greedy walk."""

    parts: tuple[int, ...]  # [nodes], rising by at most 1 from node to node
    value: float  # of the objective
    at: str | None  # node after which the cut was removed or added; None: where the walk began

    @property
    def count(self) -> int:
        """Number of parts."""
        return self.parts[-1] + 1


Objective = Callable[[np.ndarray], float]  # of parts, int64 [nodes]; to minimise; inf where impossible


def greedy_merge(
    graph: Graph, objective: Objective, *, parts: int = 1, forbidden: Collection[str] = ()
) -> list[Step]:
    """From every node alone, merge the two adjacent parts that leave the least objective, and again.

    The walk goes on when the objective gets worse, so that the caller sees every number of parts and takes
    what he likes: ``min(walk, key=lambda step: step.value)``. Greedy is not optimal. O(cuts^2) evaluations.

    Args:
        objective: of the parts as a whole; what it costs to have many parts has to be in it.
        parts: where to stop.
        forbidden: names of nodes after which there is never a cut.

    Returns:
        The partitions met, in order.

    Raises:
        ValueError: fewer than one part, or more than the cuts allow.
    """
    places = _places(graph, parts, forbidden)
    return _walk(graph, objective, places, places, parts)


def greedy_split(
    graph: Graph, objective: Objective, *, parts: int, forbidden: Collection[str] = ()
) -> list[Step]:
    """From one part, add the cut that leaves the least objective, and again; else as :func:`greedy_merge`."""
    return _walk(graph, objective, _places(graph, parts, forbidden), [], parts)


def _walk(graph: Graph, objective: Objective, places: list[int], cuts: list[int], parts: int) -> list[Step]:
    cuts = list(cuts)
    steps = [_step(graph, objective, cuts, None)]
    while len(cuts) != parts - 1:
        if len(cuts) >= parts:
            flips = [(at, [cut for cut in cuts if cut != at]) for at in cuts]
        else:
            flips = [(at, sorted([*cuts, at])) for at in places if at not in cuts]
        tried = [(_step(graph, objective, flipped, at), flipped) for at, flipped in flips]
        best, cuts = min(tried, key=lambda item: item[0].value)
        steps.append(best)
    return steps


def _step(graph: Graph, objective: Objective, cuts: list[int], at: int | None) -> Step:
    parts = parts_of(cuts, len(graph))
    name = None if at is None else graph.nodes[at - 1].name
    return Step(tuple(parts.tolist()), float(objective(parts)), name)


def _places(graph: Graph, parts: int, forbidden: Collection[str]) -> list[int]:
    never = {graph.position(name) + 1 for name in forbidden}
    places = [at for at in range(1, len(graph)) if at not in never]
    if not 1 <= parts <= len(places) + 1:
        raise ValueError(
            f"this network of {len(graph)} nodes can be cut at {len(places)} places, so that it has 1 to "
            f"{len(places) + 1} parts; asked for {parts}"
        )
    return places
