"""Any searcher under rungs: little effort for many candidates, more for those that earn it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..results.fidelity import FULL, Fidelity, Proposal, parse_rungs
from ..results.objective import Objective
from ..results.trial import Trial
from ..spaces import Candidate, Space
from .base import Searcher
from .evolutionary.ranking import best_first

INNER = "auto"
REDUCTION = 3  # one of so many goes on to the next rung (eta)
AT_LEAST = 3  # candidates that a search promotes to the top rung, however few its trials
SIGNIFICANCE = 0.05  # of the paired test that stops a candidate

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate on a rung."""

    trial: Trial
    loss: np.ndarray  # [objectives], minimised; inf where failed
    violation: float  # of the limits


def trials_needed(rungs: int, reduction: int = REDUCTION) -> int:
    """Trials with which :data:`AT_LEAST` candidates come to the top of so many rungs by themselves."""
    return AT_LEAST * reduction**rungs


def warn_of_few(trials: int, rungs: Sequence[Fidelity]) -> None:
    """Say so where so few trials are to be made that nothing comes to the top by itself."""
    if trials < (need := trials_needed(len(rungs))):
        log.warning(
            "%d trials are few for the rungs %s: with %d or more the best come to the top by themselves; at "
            "the end, at most %d are promoted anyway",
            *(trials, ", ".join(rung.name for rung in reversed(rungs)), need, AT_LEAST),
        )


class Progressive(Searcher):
    """Asynchronous successive halving for several objectives (Li et al. 2020, arXiv 1810.05934, alg. 2).

    The inner searcher's candidates are scored on the lowest rung. One of every ``reduction``
    that are scored on a rung leaves it upwards, the first at once: the best that is still there, best by
    non-dominated rank, then by crowding, among all that were scored on this rung; those that break a limit
    on a measured metric rank behind, by how much, since a higher rung may lift them. The inner searcher
    hears of every result, the latest of a candidate being the most thorough.

    A candidate is stopped, and never goes on, when another on its rung costs no more and was right
    significantly more often on the samples that both have seen: McNemar's exact test (1947) on the samples
    where they disagree, one-sided. It needs accuracy as the first objective, evaluated with ``each=True``,
    and costs known exactly; without these only the ranks decide.

    Without rungs this is the inner searcher.

    Args:
        rungs: fidelities (:class:`netcarve.results.Fidelity`) or names of known ones, the most thorough
            first; at least two, or none.
        inner: name of the searcher that proposes (:func:`known_searchers`).
        reduction: eta, at least 2.
        significance: level of the test, in [0, 0.5); 0 switches it off.

    Raises:
        ValueError: a number out of its range, one rung, an unknown one, or an unknown inner searcher.
    """

    def __init__(
        self,
        space: Space,
        objectives: Iterable[Objective | str],
        *,
        seed: int = 0,
        rungs: Sequence[Fidelity | str] = (),
        inner: str = INNER,
        reduction: int = REDUCTION,
        significance: float = SIGNIFICANCE,
    ) -> None:
        super().__init__(space, objectives, seed=seed)
        if reduction < 2:
            raise ValueError(f"reduction must be at least 2, got {reduction}")
        if not 0.0 <= significance < 0.5:
            raise ValueError(f"significance must lie in [0, 0.5), got {significance}")
        self.reduction, self.significance = reduction, significance
        self.rungs = parse_rungs(rungs) if rungs else (FULL,)
        self._climbs = len(self.rungs) > 1
        self._name = inner
        self._inner: Searcher | None = None
        self._results: list[dict[Candidate, Scored]] = [{} for _ in self.rungs]
        self._left: list[set[Candidate]] = [set() for _ in self.rungs]  # asked for on the next rung up
        self._stopped: list[set[Candidate]] = [set() for _ in self.rungs]  # by the paired test, for good
        self._up: tuple[int, Candidate] | None = None  # who goes up next, where that is
        self._decided = False
        self._under_way: set[Proposal] = set()
        self._analytic = [o for o in self.objectives if o.name in self.baseline]

    def ask(self, n: int) -> Sequence[Candidate | Proposal]:
        if not self._climbs:
            return self.inner.ask(n)
        asked: list[Proposal] = []
        while len(asked) < n and (up := self._promoted()) is not None:
            rung, candidate = up
            self._left[rung].add(candidate)
            self._decided = False
            asked.append(self._on(candidate, rung - 1))
        last = len(self.rungs) - 1
        if len(asked) < n:
            # By name it is a plain searcher: it asks for candidates.
            asked += [self._on(c, last) for c in self.inner.ask(n - len(asked)) if isinstance(c, Candidate)]
            self._decided = False  # the inner searcher may have finished
        self._under_way.update(asked)
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        super().tell(trials)
        if not self._climbs:
            self.inner.tell(trials)
            return
        self._decided = False
        names = [rung.name for rung in self.rungs]
        for trial in sorted(trials, key=lambda t: (t.number, t.candidate.indices)):
            self._under_way.discard(trial.proposal)
            if trial.fidelity in names:  # else it is of another search, and of use to the inner one alone
                held = self._results[names.index(trial.fidelity)]
                held[trial.candidate] = Scored(trial, self.loss(trial), self.violation(trial))
            # The inner searcher knows of no rungs: to it the latest is in full.
            self.inner.tell([replace(trial, fidelity=FULL.name)])

    def closing(self, n: int) -> list[Proposal]:
        """The best candidates, straight to the top rung, until :data:`AT_LEAST` have been promoted to it.

        Fewer trials than the rungs need promote nothing by themselves.
        """
        asked: list[Proposal] = []
        for rung in range(1, len(self.rungs)):
            while len(self._left[1]) < AT_LEAST and len(asked) < n:
                if (candidate := self._best(rung)) is None:
                    break
                for passed in range(1, rung + 1):
                    self._left[passed].add(candidate)
                asked.append(self._on(candidate, 0))
        self._decided = False
        self._under_way.update(asked)
        return asked

    @property
    def finished(self) -> bool:
        return self.inner.finished and not self._under_way and self._promoted() is None

    @property
    def inner(self) -> Searcher:
        """The searcher for candidates, made when the limits are known."""
        if self._inner is None:
            from .registry import searcher

            self._inner = searcher(
                self._name, self.space, self.objectives, seed=self.seed, limits=self.limits
            )
        return self._inner

    def _on(self, candidate: Candidate, rung: int) -> Proposal:
        return Proposal(candidate, self.rungs[rung].name)

    def _promoted(self) -> tuple[int, Candidate] | None:
        """Who goes up next, with the rung that it leaves; highest rungs first."""
        if not self._decided:
            self._up, self._decided = self._choose(), True
        return self._up

    def _choose(self) -> tuple[int, Candidate] | None:
        for rung in range(1, len(self.rungs)):
            scored, left = len(self._results[rung]), self._left[rung]
            share = -(-scored // self.reduction)  # rounded up: a short search has results on top as well
            if len(left) < share and (candidate := self._best(rung)) is not None:
                return rung, candidate
        return None

    def _best(self, rung: int) -> Candidate | None:
        """The best candidate on a rung that has not left it and was not stopped."""
        scored = [s for s in self._results[rung].values() if np.isfinite(s.loss).all()]
        gone = self._left[rung] | self._results[rung - 1].keys() | self._stopped[rung]
        trials = [s.trial for s in scored]
        if all(t.candidate in gone for t in trials):
            return None
        for i in best_first(np.array([s.loss for s in scored]), np.array([s.violation for s in scored])):
            if trials[i].candidate in gone:
                continue
            if not self._is_beaten(trials[i], trials):
                return trials[i].candidate
            self._stopped[rung].add(trials[i].candidate)
        return None

    def _is_beaten(self, trial: Trial, others: Sequence[Trial]) -> bool:
        """Is there one that costs no more and was right significantly more often?"""
        mine = trial.detail.get("right")
        lead, *costs = self.objectives
        if not self.significance or mine is None or lead.name != "accuracy" or costs != self._analytic:
            return False
        for other in others:
            theirs = other.detail.get("right")
            if theirs is None or theirs[0] != mine[0]:
                continue
            if other.scores[lead.name] <= trial.scores[lead.name]:
                continue  # right no more often, let alone significantly
            if all(o.sign * other.scores[o.name] <= o.sign * trial.scores[o.name] for o in costs) and (
                mcnemar(*disagreements(theirs, mine)) < self.significance
            ):
                return True
        return False


def disagreements(first: Sequence[object], second: Sequence[object]) -> tuple[int, int]:
    """Samples on which only ``first`` was right, and only ``second``; both ``[count, hex digits]``."""
    a, b = int(str(first[1]), 16), int(str(second[1]), 16)
    return (a & ~b).bit_count(), (b & ~a).bit_count()


def mcnemar(wins: int, losses: int) -> float:
    """Exact one-sided p-value: at least ``wins`` heads in ``wins + losses`` throws of a fair coin."""
    from scipy.special import bdtr

    return float(bdtr(losses, wins + losses, 0.5))  # at most as many tails
