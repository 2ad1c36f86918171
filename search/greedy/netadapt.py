"""NetAdapt: a budget on one cost that is tightened step by step."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ...results.objective import Objective, full_name
from ...results.trial import Trial
from ...spaces import Candidate, Space
from ..generator import Remembering, Steps
from .sensitivity import damage_table, fill, fit, losses_of, predict, probes


class NetAdapt(Remembering):
    """Progressive tightening (Yang et al., "NetAdapt", ECCV 2018, arXiv 1804.03230, algorithm 1).

    Each round announces a budget on the cost, a step below where it stands. For every choice alone it takes
    the smallest further compression that meets the budget, scores these candidates, and goes to the one with
    the least damage (the first objective) among those that meet the budget. Steps shrink from round to round.
    Where no choice can meet a budget alone, the step is halved until one can. At the end of the way it starts
    again with half the first step, known trials for free, until that brings no new candidate.

    The cost is computed by the space, or measured (latency). For a measured cost the table of what each
    option saves alone is scored first, as the paper's look-up tables; it chooses the compressions and every
    trial corrects it, but whether a budget is met is for the measurement to say.

    Args:
        metric: the cost; by default the second objective, or the first where there is one alone.
        step: of the first round, as a share of the first candidate's cost, in (0, 1).
        decay: of the step per round, in (0, 1]; 0.96 to 0.98 in the paper.

    Attributes:
        budgets: (budget, candidate) of every round that met its budget, in order.
    """

    def __init__(
        self,
        space: Space,
        objectives: Iterable[Objective | str],
        *,
        seed: int = 0,
        metric: str | None = None,
        step: float = 0.1,
        decay: float = 0.96,
    ) -> None:
        super().__init__(space, objectives, seed=seed)
        if not 0.0 < step < 1.0:
            raise ValueError(f"step must be in (0, 1), got {step}")
        if not 0.0 < decay <= 1.0:
            raise ValueError(f"decay must be in (0, 1], got {decay}")
        default = self.objectives[min(1, len(self.objectives) - 1)]
        self.metric = default.name if metric is None else full_name(metric)
        self.sign = next((o.sign for o in self.objectives if o.name == self.metric), 1.0)
        self.step, self.decay = step, decay
        self.budgets: list[tuple[float, Candidate]] = []
        self._analytic = self.metric in space.cost_arrays([space.baseline])

    def search(self) -> Steps:
        started = yield from self.start()
        if started is None or not np.isfinite(first := self._cost(started)):
            return
        if not self._analytic:
            yield from self.score(self.allowed(probes(self.space, levels=2, anchor=started.candidate)))
        step = self.step
        asked = -1
        while asked < len(self.known):  # until a whole way brings nothing new
            asked = len(self.known)
            yield from self._way(started, step * abs(first))
            step /= 2.0

    def _way(self, here: Trial, step: float) -> Steps:
        """From one candidate to where nothing saves more."""
        while True:
            budget = self._cost(here) - step
            candidates = self._meeting(here.candidate, budget)
            if not candidates:
                smaller = self._largest_saving(here.candidate)
                if smaller is None or step <= 1e-6 * abs(self._cost(here)):
                    return
                step = min(step / 2.0, max(smaller, step / 1024.0))
                continue
            trials = yield from self.score(candidates)
            met = [t for t in trials if np.isfinite(self.loss(t)[0]) and self._cost(t) <= budget]
            if met:
                here = min(met, key=lambda t: (self.loss(t)[0], self._cost(t)))
                self.budgets.append((self.sign * budget, here.candidate))
            else:  # the measured cost fell short of the table: go on from what came nearest
                lower = [t for t in trials if self._cost(t) < self._cost(here)]
                if not lower:
                    return
                here = min(lower, key=self._cost)
            step *= self.decay

    def _meeting(self, candidate: Candidate, budget: float) -> list[Candidate]:
        """Of each choice the smallest further compression that meets the budget, where there is one."""
        further = self._further(candidate)
        costs = self._expected([c for row in further for c in row])
        out, at = [], 0
        for row in further:
            meets = np.flatnonzero(costs[at : at + len(row)] <= budget)
            out += [row[int(meets[0])]] if len(meets) else []
            at += len(row)
        return out

    def _largest_saving(self, candidate: Candidate) -> float | None:
        """What the best single change saves; None when none does."""
        further = [c for row in self._further(candidate) for c in row]
        costs = self._expected([candidate, *further])
        saving = float(costs[0] - costs[1:].min(initial=np.inf))
        return saving if saving > 0.0 else None

    def _further(self, candidate: Candidate) -> list[list[Candidate]]:
        """By choice, the candidates that compress it further, that keep the limits and have not failed."""
        base = candidate.indices
        rows = [
            [Candidate((*base[:d], i, *base[d + 1 :]), self.space.choices) for i in range(base[d] + 1, count)]
            for d, count in enumerate(self.space.counts.tolist())
        ]
        kept = set(self.allowed([c for row in rows for c in row]))
        kept -= {c for c in kept if c in self.known and self.known[c].failed}
        return [[c for c in row if c in kept] for row in rows]

    def _cost(self, trial: Trial) -> float:
        """The metric to minimise; inf where there is none."""
        return self.sign * trial.scores[self.metric] if self.metric in trial.scores else np.inf

    def _expected(self, candidates: list[Candidate]) -> np.ndarray:
        """The cost [n]: exact, or measured where it is known, else from the table fitted to all trials."""
        if not candidates:
            return np.empty(0)
        if self._analytic:
            return self.sign * self.space.cost_arrays(candidates)[self.metric]
        trials = list(self.known.values())
        rows, values = losses_of(trials, self._cost)
        trials = [t for t in trials if np.isfinite(self._cost(t))]  # what failed has an unknown cost
        table = fill(damage_table(self.space, trials, self._cost), self.space.counts)
        at, table = fit(self.space, rows, values, table)
        costs = at + predict(table, np.array([c.indices for c in candidates]))
        for i, c in enumerate(candidates):
            if c in self.known and np.isfinite(known := self._cost(self.known[c])):
                costs[i] = known
        return costs
