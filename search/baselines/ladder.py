"""Uniform-ratio ladder: all choices compressed alike."""

from __future__ import annotations

from collections.abc import Iterable

from ...results.objective import Objective
from ...spaces import Candidate, Space
from ..base import Searcher
from ..memory import diagonal


class Ladder(Searcher):
    """Every rung of the diagonal from the unchanged to the most compressed candidate, then it has finished.

    What is usually done by hand ("prune 30 % everywhere"), and the line that any search has to beat. The
    ends come first, then halves, quarters, ..., so that a short run covers the whole range. Learns nothing
    from trials. There are as many rungs as the finest choice has options, or some more where the numbers of
    options differ.
    """

    def __init__(self, space: Space, objectives: Iterable[Objective | str], *, seed: int = 0) -> None:
        super().__init__(space, objectives, seed=seed)
        rungs = diagonal(space)
        self._left = [rungs[i] for i in halving(len(rungs))]

    def ask(self, n: int) -> list[Candidate]:
        asked, self._left = self._left[:n], self._left[n:]
        return asked

    @property
    def finished(self) -> bool:
        return not self._left


def halving(n: int) -> list[int]:
    """0..n-1, first the two ends, then ever finer halves (van der Corput order)."""
    order = dict.fromkeys([0, n - 1] if n else [])
    parts = 2
    while len(order) < n:
        order.update(dict.fromkeys(round((n - 1) * k / parts) for k in range(1, parts, 2)))
        parts *= 2
    return list(order)
