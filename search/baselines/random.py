"""Uniform random search: the yardstick for every other searcher."""

from __future__ import annotations

from ...spaces import Candidate
from ..base import Searcher


class Random(Searcher):
    """Candidates drawn uniformly and independently (Bergstra and Bengio, JMLR 13, 2012)."""

    def ask(self, n: int) -> list[Candidate]:
        return self.space.sample(self.rng, n)
