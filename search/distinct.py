"""No candidate is scored twice, whatever the algorithm proposes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..results.fidelity import Proposal, proposals
from ..results.trial import Trial
from ..spaces import Candidate
from .base import Searcher, Wrapper

PATIENCE = 64  # duplicates in a row before something new is put in their place
LARGEST = 1e100  # score that an algorithm is told: it may multiply three of them, or divide by a small one
DRAWS = 64  # random candidates tried in a row before the space is gone through systematically


def _within(trial: Trial) -> Trial:
    """The trial with scores whose differences and squares a float holds."""
    if all(-LARGEST <= value <= LARGEST for value in trial.scores.values()):
        return trial
    return replace(trial, scores={n: min(max(v, -LARGEST), LARGEST) for n, v in trial.scores.items()})


class Distinct(Wrapper):
    """Never proposes a candidate twice on one fidelity, and finishes when every candidate has been proposed.

    A duplicate is answered from memory, or by the trial that is under way. After ``patience`` of them in a
    row an unseen neighbour of the last one comes out instead (where the algorithm wanted to be), else a
    random candidate, else any unseen neighbour of a seen one: in that order the whole space is reached. The
    inner searcher is told of these like of any trial.

    Args:
        inner: the algorithm.
        repair: makes a substitute acceptable, or gives None (:meth:`Feasible.repair`).
        patience: at least 1.
    """

    def __init__(
        self,
        inner: Searcher,
        *,
        repair: Callable[[Candidate], Candidate | None] | None = None,
        patience: int = PATIENCE,
    ) -> None:
        super().__init__(inner)
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}")
        self.rng = np.random.default_rng([inner.seed, 2])  # not the stream that the inner searchers draw from
        self.patience = patience
        self.exhausted = False
        self._repair = repair
        self._seen: dict[Proposal, Trial | None] = {}  # proposed or told; None: under way
        self._under_way = 0
        self._unfolded = 0  # how many of the seen have had all their neighbours looked at
        self._order: list[Candidate] = []  # the seen, in order

    def ask(self, n: int) -> list[Candidate | Proposal]:
        out: list[Candidate | Proposal] = []
        duplicates = 0
        while len(out) < n and not self.exhausted:
            proposed = self.inner.ask(n - len(out))
            if not proposed:
                if not self._under_way and not self.inner.finished:  # it waits for nothing: help it on
                    self._note(self._substitute(self.space.baseline), out)
                break
            again = [c for c in proposed if not self._note(c, out)]
            answers = [t for c in dict.fromkeys(self._keys(again)) if (t := self._seen[c]) is not None]
            if answers:
                self.inner.tell(answers)
            duplicates = duplicates + len(again) if len(again) == len(proposed) else 0
            if duplicates >= self.patience:
                duplicates = 0
                self._note(self._substitute(self._keys(again)[-1].candidate), out)
        return out

    def tell(self, trials: Sequence[Trial]) -> None:
        trials = [_within(trial) for trial in trials]
        for trial in trials:
            if trial.proposal not in self._seen:
                self._order.append(trial.candidate)
            elif self._seen[trial.proposal] is None:
                self._under_way -= 1
            self._seen[trial.proposal] = trial
        super().tell(trials)

    @property
    def finished(self) -> bool:
        return self.exhausted or self.inner.finished

    def _keys(self, asked: Iterable[Candidate | Proposal]) -> list[Proposal]:
        return proposals(asked, self.rungs)

    def _note(self, asked: Candidate | Proposal | None, out: list[Candidate | Proposal]) -> bool:
        """Put an unseen candidate out, as it was asked for; False for a seen one."""
        if asked is None or (key := self._keys([asked])[0]) in self._seen:
            return False
        self._seen[key] = None
        self._under_way += 1
        self._order.append(key.candidate)
        out.append(asked)
        return True

    def _substitute(self, wanted: Candidate) -> Candidate | None:
        """An unseen acceptable candidate; None (and exhausted) when there is none left."""
        for candidate in self._nearby(wanted):
            accepted = self._repair(candidate) if self._repair else candidate
            if accepted is not None and self._keys([accepted])[0] not in self._seen:
                return accepted
        self.exhausted = True
        return None

    def _nearby(self, wanted: Candidate) -> Iterator[Candidate]:
        neighbours = self.space.neighbours(wanted)
        self.rng.shuffle(neighbours)
        yield from neighbours
        yield from self.space.sample(self.rng, DRAWS)
        # Complete: every candidate is joined to the seen ones by single steps. With upper limits on costs
        # that fall with compression so is every feasible one, by way of the most compressed candidate.
        yield self.space.candidate(self.space.counts - 1)
        while self._unfolded < len(self._order):
            yield from self.space.neighbours(self._order[self._unfolded])
            self._unfolded += 1
