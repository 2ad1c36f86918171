"""Greedy merge and greedy split of stages, where cuts are choices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable

import numpy as np

from ...results.objective import Objective
from ...results.trial import Trial
from ...spaces import Candidate, Choice, Space
from ..generator import Remembering, Scored, Steps


def is_cut(choice: Choice) -> bool:
    """A choice named ``cut:...`` with the two options False (the parts are one) and True (cut here)."""
    return choice.name.startswith("cut:") and set(choice.options) == {False, True}


class GreedyPartition(Remembering):
    """Walks between no cut and all cuts, in every round by the one flip that is best.

    Best is the least violation of the limits, then the first objective, then the second, and so on. The walk
    goes on to its end also when objectives get worse, so that the run holds the walk's partition for every
    number of parts that limits allow; the front picks. Choices that are no cuts stay as in the unchanged
    model. Greedy is not optimal: a bad early flip is never taken back.

    Args:
        cuts: which choices are cuts (:func:`is_cut`); their option False, else their first one, means that
            the parts on both sides are one, their option True, else their last one, a cut.

    Raises:
        ValueError: the space has no such choice.
    """

    def __init__(
        self,
        space: Space,
        objectives: Iterable[Objective | str],
        *,
        seed: int = 0,
        cuts: Callable[[Choice], bool] = is_cut,
    ) -> None:
        super().__init__(space, objectives, seed=seed)
        self.cuts = [d for d, choice in enumerate(space.choices) if cuts(choice)]
        if not self.cuts:
            names = ", ".join(repr(c.name) for c in space.choices[:3])
            raise ValueError(
                f"{type(self).__name__} searches partitions and needs choices named 'cut:...' with the "
                f"options False and True; this space has none (its choices are {names}, ...). Search a space "
                "of splits, or take another searcher"
            )

    @abstractmethod
    def ends(self) -> tuple[bool, bool]:
        """Whether the cuts are present at the start, and at the end."""

    def search(self) -> Steps:
        first, last = ([self._option(d, present) for d in self.cuts] for present in self.ends())
        here = np.array(self.space.baseline.indices)
        here[self.cuts] = first
        yield from self._judged([self._candidate(here)])
        while True:
            flips = []
            for d, option in zip(self.cuts, last, strict=True):
                if here[d] != option:
                    flipped = here.copy()
                    flipped[d] = option
                    flips.append(flipped)
            if not flips:
                return
            trials = yield from self._judged([self._candidate(flip) for flip in flips])
            here = flips[min(range(len(flips)), key=lambda i: self._badness(trials[i]))]

    def _judged(self, candidates: list[Candidate]) -> Scored:
        """Their trials; what breaks a limit on analytic costs is not scored, these costs alone judge it."""
        allowed = set(self.allowed(candidates))
        scored = yield from self.score(c for c in candidates if c in allowed)
        known = {trial.candidate: trial for trial in scored}
        costs = self.space.cost_arrays(candidates)
        return [
            known[c] if c in known else Trial(-1, c, {name: float(of[i]) for name, of in costs.items()})
            for i, c in enumerate(candidates)
        ]

    def _badness(self, trial: Trial) -> tuple[float, ...]:
        return (self.violation(trial), *self.loss(trial).tolist())

    def _option(self, d: int, present: bool) -> int:
        options = self.space.choices[d].options
        if set(options) == {False, True}:
            return options.index(present)
        return len(options) - 1 if present else 0

    def _candidate(self, indices: np.ndarray) -> Candidate:
        return Candidate(tuple(indices.tolist()), self.space.choices)


# -- Greedy merge of adjacent parts ---------------------------------------------------------------------


class GreedyMerge(GreedyPartition):
    """Starts with every cut present, the finest partition, and in every round merges the two adjacent parts
    whose merging is best: it removes one cut, until one part is left (the bottom-up counterpart of
    :class:`GreedySplit`; agglomeration in the sense of Ward, JASA 58, 1963).

    n cuts take at most 1 + n (n + 1) / 2 trials. Best, options, errors: :class:`GreedyPartition`.
    """

    def ends(self) -> tuple[bool, bool]:
        return True, False


# -- Greedy split of parts ------------------------------------------------------------------------------


class GreedySplit(GreedyPartition):
    """Starts with one part and in every round splits a part where that is best: it adds one cut, until all
    are present (top down; the better of the two where few parts are wanted, since its first rounds decide).

    n cuts take at most 1 + n (n + 1) / 2 trials. Best, options, errors: :class:`GreedyPartition`.
    """

    def ends(self) -> tuple[bool, bool]:
        return False, True
