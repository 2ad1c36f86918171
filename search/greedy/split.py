"""Greedy split of parts."""

from __future__ import annotations

from .partition import GreedyPartition


class GreedySplit(GreedyPartition):
    """Starts with one part and in every round splits a part where that is best: it adds one cut, until all
    are present (top down; the better of the two where few parts are wanted, since its first rounds decide).

    n cuts take at most 1 + n (n + 1) / 2 trials. Best, options, errors: :class:`GreedyPartition`.
    """

    def ends(self) -> tuple[bool, bool]:
        return False, True
