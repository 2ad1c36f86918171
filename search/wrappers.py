"""Wrappers of searchers: no candidate twice, none that analytic costs already rule out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..results.fidelity import Proposal, proposals
from ..results.objective import Limit
from ..results.trial import Trial
from ..spaces import Candidate, Space
from .base import Searcher, Wrapper, parse_limits, set_limits

ROUNDS = 64  # batches in a row without one feasible candidate, after which `ask` gives up for the moment


class Feasible(Wrapper):
    """Lets only candidates out that keep the limits on analytic costs (``space.cost_arrays``).

    A refused candidate is told to the inner searcher as a failed trial and replaced: options are compressed
    one by one, in random order, until the limits are kept. Whatever share of the space is infeasible, what
    comes out is feasible and near what the inner searcher wanted. Limits on measured metrics pass through;
    searchers see them by :meth:`Searcher.violation`.

    Args:
        inner: the algorithm.
        limits: what to keep; of these the analytic ones are checked here.
        baseline: scores of the unchanged model, for relative limits; by default its analytic costs.

    Raises:
        ValueError: a limit that no candidate can keep.
    """

    def __init__(
        self, inner: Searcher, limits: Iterable[Limit | str], baseline: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(inner)
        self.rng = np.random.default_rng([inner.seed, 1])  # not the stream that the inner searcher draws from
        self.reference = dict(self.baseline if baseline is None else baseline)
        set_limits(self, parse_limits(limits))
        check_reachable(self.space, self.limits, self.reference)

    def ask(self, n: int) -> list[Candidate | Proposal]:
        out: list[Candidate | Proposal] = []
        for _ in range(ROUNDS):
            proposed = self.inner.ask(n - len(out))
            asked = proposals(proposed, self.rungs)
            kept = self.violations([one.candidate for one in asked]) <= 0.0
            refused = [one for one, ok in zip(asked, kept, strict=True) if not ok]
            repaired = {one: self.repair(one.candidate) for one in refused}
            for given, one in zip(proposed, asked, strict=True):
                if one not in repaired:
                    out.append(given)
                elif (candidate := repaired[one]) is not None:
                    out.append(candidate if given is not one else replace(one, candidate=candidate))
            if refused:
                error = f"refused: breaks {self._limits_text}"
                self.inner.tell(
                    [Trial(-1, one.candidate, error=error, fidelity=one.fidelity) for one in refused]
                )
            if not proposed or len(out) >= n:
                break
        return out

    def repair(self, candidate: Candidate) -> Candidate | None:
        """The candidate itself when feasible, else the first feasible one on a random way to the most
        compressed, else on a random way to the unchanged one; None when there is none on either."""
        start = np.asarray(candidate.indices)
        for end in (self.space.counts - 1, np.zeros_like(start)):
            way = [Candidate(tuple(row), self.space.choices) for row in self._walk(start, end).tolist()]
            kept = np.flatnonzero(self.violations(way) <= 0.0)
            if len(kept):
                return way[int(kept[0])]
        return None

    def violations(self, candidates: list[Candidate]) -> np.ndarray:
        """Total relative violation of the analytic limits, float64 [n]; 0 when all are kept."""
        return violations(self.space, self.limits, self.reference, candidates)

    def _walk(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Every point of a random way from ``start`` to ``end``, one option a step; int [steps + 1, d]."""
        steps = np.repeat(np.arange(len(start)), np.abs(end - start))
        self.rng.shuffle(steps)
        way = np.tile(start, (len(steps) + 1, 1))
        if len(steps):
            moves = np.zeros((len(steps), len(start)), dtype=start.dtype)
            moves[np.arange(len(steps)), steps] = np.sign(end - start)[steps]
            way[1:] += moves.cumsum(axis=0)
        return way

    @property
    def _limits_text(self) -> str:
        return ", ".join(m.text for m in self.limits)


def check_reachable(space: Space, limits: Iterable[Limit], baseline: Mapping[str, float]) -> None:
    """Refuse a limit on an analytic cost that no candidate can keep.

    Raises:
        ValueError: names the limit and the nearest reachable value.
    """
    for limit in limits:
        best = least_violating(space, limit, baseline)
        if violations(space, [limit], baseline, [best])[0] <= 0.0:
            continue
        value = float(space.cost_arrays([best])[limit.metric][0])
        reach = f"{value / baseline[limit.metric]:.3g}x" if limit.relative else f"{value:.6g}"
        raise ValueError(
            f"{limit.text} cannot be met: the {'smallest' if _upper(limit) else 'largest'} candidate has "
            f"{reach}; loosen the limit or search a wider space"
        )


def violations(
    space: Space, limits: Iterable[Limit], baseline: Mapping[str, float], candidates: Sequence[Candidate]
) -> np.ndarray:
    """Total relative violation of the limits on analytic costs, float64 [n]; 0 when all are kept.

    The vectorised twin of :func:`~netcarve.results.objective.total_violation`.
    """
    total = np.zeros(len(candidates))
    costs = space.cost_arrays(candidates) if len(candidates) else {}
    for limit in limits:
        if limit.metric in costs:
            bound = limit.bound(baseline)
            excess = costs[limit.metric] - bound if _upper(limit) else bound - costs[limit.metric]
            total += np.maximum(0.0, excess / max(abs(bound), 1e-12))
    return total


def _upper(limit: Limit) -> bool:
    return "<=" in limit.text


def least_violating(space: Space, limit: Limit, baseline: Mapping[str, float]) -> Candidate:
    """Coordinate descent from the better end of the space: exact where costs are monotone in every choice."""

    def least(candidates: list[Candidate]) -> Candidate:
        return candidates[int(np.argmin(violations(space, [limit], baseline, candidates)))]

    best = least([space.candidate(space.counts - 1), space.baseline])
    for d, count in enumerate(space.counts.tolist()):
        before, after = best.indices[:d], best.indices[d + 1 :]
        best = least([Candidate((*before, i, *after), space.choices) for i in range(count)])
    return best


# -- No candidate is scored twice, whatever the algorithm proposes --------------------------------------

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
