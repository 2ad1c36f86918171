"""Any searcher under rungs: little effort for many candidates, more for those that earn it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ...results.objective import Objective
from ...results.trial import Trial
from ...spaces import Candidate, Choice, ModelSide, Space
from ...spaces.rung import NAME, off_rung, rungs_of
from ..base import Searcher
from ..evolutionary.ranking import best_first

if TYPE_CHECKING:
    import torch

INNER = "auto"
REDUCTION = 3  # one of so many goes on to the next rung (eta)
AT_LEAST = 3  # networks that a search promotes to the top rung, however few its trials
SIGNIFICANCE = 0.05  # of the paired test that stops a candidate


@dataclass(frozen=True, slots=True)
class Scored:
    """A network on a rung."""

    trial: Trial  # candidate without its rung, scores named as on top
    loss: np.ndarray  # [objectives], minimised; inf where failed
    violation: float  # of the limits


def trials_needed(rungs: int, reduction: int = REDUCTION) -> int:
    """Trials with which :data:`AT_LEAST` networks come to the top of so many rungs by themselves."""
    return AT_LEAST * reduction**rungs


class Progressive(Searcher):
    """Asynchronous successive halving for several objectives (Li et al. 2020, arXiv 1810.05934, alg. 2).

    The inner searcher's candidates are scored on the lowest rung of the space. One of every ``reduction``
    that are scored on a rung leaves it upwards, the first at once: the best that is still there, best by
    non-dominated rank, then by crowding, among all that were scored on this rung; those that break a limit
    on a measured metric rank behind, by how much, since a higher rung may lift them. The inner searcher
    hears of every result, the latest of a candidate being the most thorough.

    A candidate is stopped, and never goes on, when another on its rung costs no more and was right
    significantly more often on the samples that both have seen: McNemar's exact test (1947) on the samples
    where they disagree, one-sided. It needs accuracy as the first objective, evaluated with ``each=True``,
    and costs known exactly; without these only the ranks decide.

    In a space without rungs (see :func:`netcarve.spaces.rung.with_rungs`) this is the inner searcher.

    Args:
        inner: name of the searcher that proposes (:func:`known_searchers`).
        reduction: eta, at least 2.
        significance: level of the test, in [0, 0.5); 0 switches it off.

    Raises:
        ValueError: a number out of its range, or an unknown inner searcher.
    """

    def __init__(
        self,
        space: Space,
        objectives: Iterable[Objective | str],
        *,
        seed: int = 0,
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
        self.rungs = rungs_of(space)
        self._name = inner
        self._inner: Searcher | None = None
        self._results: list[dict[Candidate, Scored]] = [{} for _ in self.rungs]  # by network
        self._left: list[set[Candidate]] = [set() for _ in self.rungs]  # asked for on the next rung up
        self._stopped: list[set[Candidate]] = [set() for _ in self.rungs]  # by the paired test, for good
        self._up: tuple[int, Candidate] | None = None  # who goes up next, where that is
        self._decided = False
        self._under_way: set[Candidate] = set()
        self._analytic = [o for o in self.objectives if o.name in self.baseline]

    def ask(self, n: int) -> list[Candidate]:
        if not self.rungs:
            return self.inner.ask(n)
        asked: list[Candidate] = []
        while len(asked) < n and (up := self._promoted()) is not None:
            rung, network = up
            self._left[rung].add(network)
            self._decided = False
            asked.append(self._on(network, rung - 1))
        last = len(self.rungs) - 1
        if len(asked) < n:
            asked += [self._on(c, last) for c in self.inner.ask(n - len(asked))]
            self._decided = False  # the inner searcher may have finished
        self._under_way.update(asked)
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        super().tell(trials)
        if not self.rungs:
            self.inner.tell(trials)
            return
        self._decided = False
        for trial in trials:
            self._under_way.discard(trial.candidate)
            rung = trial.candidate.indices[self._place]
            network = self._network(trial.candidate)
            scores = {off_rung(name, self.rungs[rung]): value for name, value in trial.scores.items()}
            plain = replace(trial, candidate=network, scores=scores)
            self._results[rung][network] = Scored(plain, self.loss(plain), self.violation(plain))
            self.inner.tell([plain])

    def closing(self, n: int) -> list[Candidate]:
        """The best networks, straight to the top rung, until :data:`AT_LEAST` have been promoted to it.

        Fewer trials than the rungs need promote nothing by themselves.
        """
        asked: list[Candidate] = []
        for rung in range(1, len(self.rungs)):
            while len(self._left[1]) < AT_LEAST and len(asked) < n:
                if (network := self._best(rung)) is None:
                    break
                for passed in range(1, rung + 1):
                    self._left[passed].add(network)
                asked.append(self._on(network, 0))
        self._decided = False
        self._under_way.update(asked)
        return asked

    @property
    def finished(self) -> bool:
        return self.inner.finished and not self._under_way and self._promoted() is None

    @property
    def inner(self) -> Searcher:
        """The searcher over networks, made when the limits are known."""
        if self._inner is None:
            from ..registry import searcher

            self._inner = searcher(
                self._name, self._networks(), self.objectives, seed=self.seed, limits=self.limits
            )
        return self._inner

    # Rungs.

    def _promoted(self) -> tuple[int, Candidate] | None:
        """Who goes up next, with the rung that it leaves; highest rungs first."""
        if not self._decided:
            self._up, self._decided = self._choose(), True
        return self._up

    def _choose(self) -> tuple[int, Candidate] | None:
        for rung in range(1, len(self.rungs)):
            scored, left = len(self._results[rung]), self._left[rung]
            share = -(-scored // self.reduction)  # rounded up: a short search has results on top as well
            if len(left) < share and (network := self._best(rung)) is not None:
                return rung, network
        return None

    def _best(self, rung: int) -> Candidate | None:
        """The best network on a rung that has not left it and was not stopped."""
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

    # Networks: candidates without their rung.

    @property
    def _place(self) -> int:
        return next(i for i, c in enumerate(self.space.choices) if c.name == NAME)

    def _networks(self) -> Space:
        if not self.rungs:
            return self.space
        choices = [c for c in self.space.choices if c.name != NAME]
        return Space(choices, model=None if self.space.model is None else _OnTop(self.space, self._place))

    def _network(self, candidate: Candidate) -> Candidate:
        indices = candidate.indices[: self._place] + candidate.indices[self._place + 1 :]
        return self.inner.space.candidate(indices)

    def _on(self, network: Candidate, rung: int) -> Candidate:
        indices = (*network.indices[: self._place], rung, *network.indices[self._place :])
        return Candidate(indices, self.space.choices)


class _OnTop(ModelSide):
    """The model side of the space of networks: costs do not depend on the rung."""

    def __init__(self, space: Space, place: int) -> None:
        self._space, self._place = space, place

    def cost_arrays(self, choices: tuple[Choice, ...], indices: np.ndarray) -> dict[str, np.ndarray]:
        assert self._space.model is not None
        whole = np.insert(indices, self._place, 0, axis=1)
        return self._space.model.cost_arrays(self._space.choices, whole)

    def build(self, candidate: Candidate, *, repair: object = None) -> torch.nn.Module:
        raise NotImplementedError("a searcher builds nothing")


def disagreements(first: Sequence[object], second: Sequence[object]) -> tuple[int, int]:
    """Samples on which only ``first`` was right, and only ``second``; both ``[count, hex digits]``."""
    a, b = int(str(first[1]), 16), int(str(second[1]), 16)
    return (a & ~b).bit_count(), (b & ~a).bit_count()


def mcnemar(wins: int, losses: int) -> float:
    """Exact one-sided p-value: at least ``wins`` heads in ``wins + losses`` throws of a fair coin."""
    from scipy.special import bdtr

    return float(bdtr(losses, wins + losses, 0.5))  # at most as many tails
