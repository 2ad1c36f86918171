"""Cheap before dear: what analytic costs already rule out is never proposed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
