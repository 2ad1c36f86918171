"""Branch and bound: what is proven to be best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ...results.objective import Objective
from ...results.trial import Trial
from ...spaces import Candidate, Space
from ..base import Searcher
from ..bayesian.acquisition import most_gaining
from ..generator import diagonal
from .certificate import Certificate, contradictions
from .discrepancy import RISES, Discrepancies, MonotoneTrials, directions
from .tree import Bounds, Tree

POOL = 256  # points of the front among which the next are chosen
DRAWN = 512  # random candidates, at most, whose costs are computed before the proof starts


class BranchAndBound(Searcher):
    """Depth first over all choices, closing what cannot hold anything better (Land and Doig 1960).

    **Everything analytic** (objectives and limits are all costs that the space computes): proves first, with
    a bounded number of nodes per ``ask``, then proposes the certified front, the points that say most first,
    and has finished. A proof that takes longer goes on from ask to ask, and meanwhile the best known so far
    are proposed. A certified candidate that fails is left out and the rest is proven again.

    **Something measured** (accuracy, ...): candidates come in the order of limited discrepancy search
    (:class:`~netcarve.search.exact.discrepancy.Discrepancies`); exact costs cut boxes that break limits, and
    boxes that cannot be better in the analytic objectives where these are all. A measured objective has
    no bound unless ``assume_monotone`` gives one; without any bound all that keeps the limits is enumerated,
    and the certificate says so.

    Bounds are never guessed: see :class:`.tree.Bounds` for where they come from. What is proven is in
    :attr:`certificate`, and :func:`.certificate.check_certificate` verifies it.

    Args:
        assume_monotone: ``True``, or names of metrics, to state that with compression maximised metrics and
            costs never rise, and ``loss`` (or a first objective that is minimised and no known cost) never
            falls. The certificate holds as far as this does; noise in the scores breaks it, and the
            certificate counts the trials that contradict it.
        prove: nodes before the first proposal, where everything is analytic.
        step: nodes of each further ``ask``; up to ``prove`` of them while nothing else is under way.
    """

    def __init__(
        self,
        space: Space,
        objectives: Iterable[Objective | str],
        *,
        seed: int = 0,
        assume_monotone: bool | Iterable[str] = False,
        prove: int = 1_000_000,
        step: int = 20_000,
    ) -> None:
        super().__init__(space, objectives, seed=seed)
        for name, value in (("prove", prove), ("step", step)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.assume_monotone = (
            assume_monotone if isinstance(assume_monotone, bool | str) else tuple(assume_monotone)
        )
        self.prove, self.step = prove, step
        self.known: dict[Candidate, Trial] = {}
        self._computed = dict(self.baseline)  # analytic costs of the unchanged model
        self._tree: Tree | None = None
        self._search: Discrepancies | None = None
        self._proposed: set[tuple[int, ...]] = set()
        self._under_way: set[tuple[int, ...]] = set()
        self._all_out = False  # the certified front has been proposed
        self._failed: set[tuple[int, ...]] = set()

    def ask(self, n: int) -> list[Candidate]:
        if self._tree is None and self._search is None:
            if (first := self._needs_baseline()) is not None:
                return first
            self._begin()
        return self._ask_proven(n) if self._tree is not None else self._ask_scored(n)

    def tell(self, trials: Sequence[Trial]) -> None:
        super().tell(trials)
        failed = len(self._failed)
        for trial in trials:
            self.known[trial.candidate] = trial
            self._under_way.discard(trial.candidate.indices)
            if self._search is not None:
                self._search.tell(trial, self.loss(trial), self.violation(trial) == 0.0)
            elif self._tree is not None and trial.failed and trial.candidate.indices in self._proposed:
                self._failed.add(trial.candidate.indices)
        if len(self._failed) > failed:
            self._begin()

    @property
    def finished(self) -> bool:
        if self._tree is not None:
            return self._tree.done and self._all_out
        return self._search is not None and self._search.done and not self._under_way

    @property
    def certificate(self) -> Certificate | None:
        """What is proven by now; None before the first ``ask``."""
        work = self._tree or self._search
        if work is None:
            return None
        units = [abs(self.baseline.get(o.name, 1.0)) or 1.0 for o in self.objectives]
        if self._tree is not None:
            gap, units = self._tree.gap(), self._tree.scale.tolist()
            assumed = {m: how for m, how in self._assumed.items() if self._bounds.origin[m] == "assumed"}
        else:
            assert self._search is not None
            unknown = any(m.relative and m.metric not in self.baseline for m in self.limits)
            open_ = unknown or bool(self._under_way)
            gap = float("inf") if open_ else self._search.gap(np.array(units))
            assumed = self._assumed
        origin = dict(self._bounds.origin)
        origin |= {m: "monotone" for m in assumed if origin[m] == "none"}
        return Certificate(
            objectives=[f"{o.name}:{o.goal}" for o in self.objectives],
            limits=[m.text for m in self.limits],
            front=[self._entry(row) for row in work.incumbents.rows.tolist()],
            gap=gap if np.isfinite(gap) else None,
            scale=units,
            origin=origin,
            assumed=assumed,
            order=work.order,
            nodes=work.nodes,
            leaves=work.leaves,
            cuts=dict(work.cuts),
            failed=[Candidate(row, self.space.choices).values for row in sorted(self._failed)],
            scored=0 if self._tree is not None else len(self.known),
            contradicted=contradictions(
                self.known.values(), {m: how for m, how in assumed.items() if origin[m] == "monotone"}
            ),
        )

    # How the work begins.

    def _needs_baseline(self) -> list[Candidate] | None:
        """The unchanged model, as long as a limit refers to what is not known of it."""
        base = self.space.baseline
        if base in self.known or all(not m.relative or m.metric in self.baseline for m in self.limits):
            return None
        if base.indices in self._proposed:
            return []
        return self._propose([base.indices])

    def _begin(self) -> None:
        """Build the tree, with all that is known by now."""
        self._assumed = directions(self.objectives, self.limits, self.assume_monotone)
        analytic = self._analytic()
        self._bounds = Bounds(
            self.space,
            self.objectives,
            self.limits,
            self.baseline,
            analytic=analytic,
            falling=[m for m, how in self._assumed.items() if how != RISES],
        )
        if all(name in analytic for name in self._bounds.origin):
            self._tree = Tree(self._bounds, excluded=self._failed)
            drawn = self.space.sample(np.random.default_rng(self.seed), min(DRAWN, self.space.size // 64))
            some = [*diagonal(self.space), *drawn]
            self._tree.suggest(np.array([c.indices for c in some]))
            return
        assumed = {m: how for m, how in self._assumed.items() if self._bounds.origin.get(m) == "none"}
        measured = [
            (m.metric, "<=" in m.text, m.bound(self.baseline))
            for m in self.limits
            if m.metric not in analytic and (not m.relative or m.metric in self.baseline)
        ]
        self._search = Discrepancies(self._bounds, MonotoneTrials(self.space, assumed), measured)
        for trial in self.known.values():
            self._search.tell(trial, self.loss(trial), self.violation(trial) == 0.0)

    def _analytic(self) -> set[str]:
        """Costs that the space computes, but for those that trials measured otherwise."""
        told = [t for t in self.known.values() if not t.failed]
        costs = self.space.cost_arrays([t.candidate for t in told]) if told else {}
        names = set(self._computed)
        for i, trial in enumerate(told):
            for name in [m for m in names if m in trial.scores]:
                value = float(costs[name][i])
                if abs(trial.scores[name] - value) > 1e-9 * max(abs(value), 1e-300):
                    names.discard(name)
        return names

    # Proposals.

    def _ask_proven(self, n: int) -> list[Candidate]:
        assert self._tree is not None
        tree = self._tree
        stop = tree.nodes + self.prove
        tree.run(self.prove if tree.nodes == 1 else self.step)
        new = self._unproposed(tree)
        while not (new or self._under_way or tree.done) and tree.nodes < stop:
            tree.run(self.step)
            new = self._unproposed(tree)
        rows, values = tree.incumbents.rows.tolist(), tree.incumbents.values
        fresh = set(new)
        old = [i for i in range(len(rows)) if i not in fresh]
        self._all_out = len(new) <= n
        some = [new[i] for i in np.linspace(0, len(new) - 1, POOL).astype(int)] if len(new) > POOL else new
        chosen = [some[i] for i in most_gaining(values[some], values[old], n)]
        taken = set(chosen)
        return self._propose([tuple(rows[i]) for i in (chosen + [i for i in new if i not in taken])[:n]])

    def _unproposed(self, tree: Tree) -> list[int]:
        """Rows of the incumbents."""
        return [i for i, r in enumerate(tree.incumbents.rows.tolist()) if tuple(r) not in self._proposed]

    def _ask_scored(self, n: int) -> list[Candidate]:
        assert self._search is not None
        out: list[Candidate] = []
        stop = self._search.nodes + self.prove
        while len(out) < n:
            if (candidate := self._search.next(self.step)) is not None:
                out += self._propose([candidate.indices])
            elif self._search.done or self._under_way or self._search.nodes >= stop:
                break
        return out

    def _propose(self, rows: list[tuple[int, ...]]) -> list[Candidate]:
        self._proposed.update(rows)
        self._under_way.update(rows)
        return [Candidate(row, self.space.choices) for row in rows]

    def _entry(self, row: list[int]) -> dict[str, Any]:
        candidate = Candidate(tuple(row), self.space.choices)
        costs = self.space.cost_arrays([candidate])
        trial = self.known.get(candidate)
        names = [o.name for o in self.objectives]
        analytic = self._bounds.analytic
        scores = {m: float(costs[m][0]) for m in names if m in analytic}
        if trial is not None:
            scores |= {m: trial.scores[m] for m in names if m not in analytic and m in trial.scores}
        return {"candidate": candidate.values, "scores": scores}
