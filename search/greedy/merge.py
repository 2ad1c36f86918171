"""Greedy merge of adjacent parts."""

from __future__ import annotations

from .partition import GreedyPartition


class GreedyMerge(GreedyPartition):
    """Starts with every cut present, the finest partition, and in every round merges the two adjacent parts
    whose merging is best: it removes one cut, until one part is left (the bottom-up counterpart of
    :class:`~netcarve.search.greedy.split.GreedySplit`; agglomeration in the sense of Ward, JASA 58, 1963).

    n cuts take at most 1 + n (n + 1) / 2 trials. Best, options, errors: :class:`GreedyPartition`.
    """

    def ends(self) -> tuple[bool, bool]:
        return True, False
