"""Searcher: an algorithm that is asked for candidates and told what came of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..results.fidelity import FULL, Fidelity, Proposal
from ..results.objective import Limit, Objective, total_violation
from ..results.trial import Trial
from ..spaces import Candidate, Space

if TYPE_CHECKING:
    from .exact.certificate import Certificate


class Searcher(ABC):
    """Proposes candidates and learns from trials. Sees no executor, no model, no clock.

    The loop around it is::

        while candidates := searcher.ask(8):
            searcher.tell([score(candidate) for candidate in candidates])

    What an algorithm must keep to (``testing.py`` checks it):

    * It is a function of (space, objectives, seed, sequence of calls): its randomness is ``self.rng``.
    * Trials are matched by their candidate, never by position. They may come late, in any order within one
      call, failed, and for candidates that it never asked for (the unchanged model, earlier runs, repairs).
    * ``ask`` may return fewer than wanted. ``[]`` means that it waits for trials, or has finished.
    * Candidates are judged in full. An algorithm over several fidelities names them in :attr:`rungs`, asks
      for :class:`~netcarve.results.Proposal`, and finds in each trial the fidelity on which it was judged.

    Args:
        space: where to search.
        objectives: at least one, as :class:`Objective` or text (``"accuracy"``, ``"my_metric:max"``).
        seed: of all randomness.

    Raises:
        ValueError: no objectives, one named twice, or an unknown metric without a goal.
    """

    limits: tuple[Limit, ...] = ()  # what a wanted candidate keeps; set by `searcher()` and `sweep()`
    rungs: tuple[Fidelity, ...] = (FULL,)  # on which it has candidates judged, the most thorough first

    def __init__(self, space: Space, objectives: Iterable[Objective | str], *, seed: int = 0) -> None:
        self.space = space
        self.objectives = parse_objectives(objectives)
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        # Scores of the unchanged model, which relative limits refer to: analytic ones at once, measured
        # ones when its trial is told.
        costs = space.cost_arrays([space.baseline])
        self.baseline: dict[str, float] = {name: float(values[0]) for name, values in costs.items()}

    @abstractmethod
    def ask(self, n: int) -> Sequence[Candidate | Proposal]:
        """At most ``n`` candidates to score; ``[]`` while waiting for trials, or when finished."""

    def tell(self, trials: Sequence[Trial]) -> None:
        """Outcomes, in number order. An algorithm that learns extends this."""
        for trial in trials:
            if not trial.failed and not any(trial.candidate.indices):
                self.baseline.update(trial.scores)

    def closing(self, n: int) -> Sequence[Candidate | Proposal]:
        """At most ``n`` candidates that a sweep scores beyond its budget, once, when the budget is spent.

        For algorithms whose best candidates may not have been judged in full by then.
        """
        return []

    @property
    def finished(self) -> bool:
        """True when there is nothing more to propose, whatever is told."""
        return False

    @property
    def certificate(self) -> Certificate | None:
        """What is proven by now, for searchers that prove something; a run keeps it."""
        return None

    def loss(self, trial: Trial) -> np.ndarray:
        """The objectives as numbers to minimise, float64 [objectives]; inf where failed or not measured."""
        scores = trial.scores
        return np.array([o.sign * scores[o.name] if o.name in scores else np.inf for o in self.objectives])

    def violation(self, trial: Trial) -> float:
        """Total relative violation of ``self.limits``: 0 when all are kept, inf for a failed trial.

        A limit relative to what is not known yet of the unchanged model counts as kept.
        """
        if trial.failed:
            return float("inf")
        known = [m for m in self.limits if not m.relative or m.metric in self.baseline]
        return total_violation(known, trial.scores, self.baseline)


class Wrapper(Searcher):
    """A searcher around another, with the same space, objectives, seed and limits."""

    def __init__(self, inner: Searcher) -> None:
        super().__init__(inner.space, inner.objectives, seed=inner.seed)
        self.inner = inner
        self.limits, self.rungs = inner.limits, inner.rungs

    def tell(self, trials: Sequence[Trial]) -> None:
        super().tell(trials)
        self.inner.tell(trials)

    def closing(self, n: int) -> Sequence[Candidate | Proposal]:
        return self.inner.closing(n)

    @property
    def finished(self) -> bool:
        return self.inner.finished

    @property
    def certificate(self) -> Certificate | None:
        return self.inner.certificate


def set_limits(searcher: Searcher, limits: tuple[Limit, ...]) -> None:
    """Make the limits known to a searcher and to all that it wraps."""
    searcher.limits = limits
    while isinstance(searcher, Wrapper):
        searcher = searcher.inner
        searcher.limits = limits


def innermost(searcher: Searcher) -> Searcher:
    """The algorithm itself, without its wrappers."""
    while isinstance(searcher, Wrapper):
        searcher = searcher.inner
    return searcher


def parse_objectives(
    objectives: Iterable[Objective | str], goals: Mapping[str, str] = {}
) -> tuple[Objective, ...]:
    """Objectives from text or instances; ``goals`` of metrics that netcarve does not know, by name.

    Raises:
        ValueError: none given, one named twice, or an unknown metric without a goal.
    """
    if isinstance(objectives, str | Objective):
        objectives = [objectives]
    parsed = tuple(o if isinstance(o, Objective) else Objective.parse(o, goals) for o in objectives)
    names = [o.name for o in parsed]
    if not parsed:
        raise ValueError("a search needs at least one objective, got none; for example ('accuracy', 'macs')")
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"objectives must be distinct; given more than once: {twice}")
    return parsed


def parse_limits(limits: Iterable[Limit | str]) -> tuple[Limit, ...]:
    """Limits from text or instances.

    Raises:
        ValueError: a text that cannot be read as a limit, or one that cannot be meant (see
            :meth:`Limit.check`).
    """
    if isinstance(limits, str | Limit):
        limits = [limits]
    parsed = tuple(m if isinstance(m, Limit) else Limit(m) for m in limits)
    for limit in parsed:
        limit.check()
    return parsed
