"""Optuna's samplers as searchers: TPE and Gaussian processes, with our start, duplicates and failures."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ...results.objective import Limit, Objective, total_violation
from ...results.trial import Trial
from ...spaces import Candidate, Space
from ..evolutionary.evolution import ATTEMPTS, Evolution, mutate
from ..evolutionary.ranking import best_first

if TYPE_CHECKING:
    import optuna


STARTUP = 4  # trials that a sampler needs before it models anything; drawn at random until then


class OptunaSearcher(Evolution):
    """An Optuna sampler on a study in memory, behind the first population of :class:`Evolution`.

    Options are integers in order. Candidates under way are known to the sampler as running trials; told
    trials that were never asked for are added like any other. A proposal that was seen before is moved by
    :func:`mutate` until it is new, for a sampler asked again mostly repeats itself. Violations of limits on
    measured metrics are Optuna constraints; a failed trial has the worst losses so far, and breaks them. (The
    analytic limits need no model: what breaks them is told as failed, if it is proposed at all.)

    Args:
        history: trials that the sampler learns from, the best half and the latest half, since its time grows
            with them; the study is made anew after every ``history // 2`` trials. At least 8; None for all.

    Raises:
        ValueError: ``history`` too small.
    """

    def __init__(
        self,
        space: Space,
        objectives: Iterable[Objective | str],
        *,
        history: int | None = 100,
        **options: Any,
    ) -> None:
        super().__init__(space, objectives, **options)
        if history is not None and history < 8:
            raise ValueError(f"history must be at least 8, or None for all trials, got {history}")
        self.history = history
        self._analytic = set(self.baseline)
        self._told_trials: list[tuple[Trial, np.ndarray, float]] = []
        self._study: optuna.Study | None = None
        self._numbers: dict[Candidate, int] = {}  # in the study, of what is under way
        self._new: list[tuple[Trial, np.ndarray, float]] = []  # told, not in the study yet
        self._added = 0  # told trials added since the study was made

    @abstractmethod
    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """The sampler of a new study."""

    def learn(self, trial: Trial, loss: np.ndarray, violation: float) -> None:
        self._new.append((trial, loss, self._measured_violation(trial, violation)))

    def breed(self, n: int) -> Iterable[np.ndarray]:
        with _quiet():
            self._bring_up_to_date()
            return [self._propose() for _ in range(n)]

    def _propose(self) -> np.ndarray:
        assert self._study is not None
        from optuna.trial import TrialState

        drawn = self._study.ask(self._distributions())
        self._study.tell(drawn, state=TrialState.FAIL)  # what is really asked for is added as running
        indices = np.array([drawn.params[name] for name in self._names], dtype=np.int64)
        for _ in range(ATTEMPTS):
            if not self.seen(Candidate(tuple(indices.tolist()))):
                break
            indices = mutate(self.rng, indices[None], self.space.counts)[0]
        return indices

    def _bring_up_to_date(self) -> None:
        """Make the study know all that was asked for and told."""
        from optuna.trial import TrialState

        self._told_trials += self._new
        if self._study is None or (self.history and self._added >= self.history // 2):
            self._begin()
            self._add(self._remembered())
            self._added = 0
        else:
            for trial, _, _ in self._new:
                if (number := self._numbers.pop(trial.candidate, None)) is not None:
                    self._study.tell(number, state=TrialState.FAIL)  # in its place comes what is told
            self._add(self._new)
            self._added += len(self._new)
        self._new = []
        assert self._study is not None
        for candidate in sorted(self._asked - self._told - self._numbers.keys(), key=lambda c: c.indices):
            self._numbers[candidate] = len(self._study.get_trials(deepcopy=False))
            self._add_one(candidate, TrialState.RUNNING)

    def _begin(self) -> None:
        import optuna

        seed = int(self.rng.integers(2**31))
        directions = [optuna.study.StudyDirection.MINIMIZE] * len(self.objectives)
        self._study = optuna.create_study(directions=directions, sampler=self.sampler(seed))
        self._numbers = {}

    def _remembered(self) -> list[tuple[Trial, np.ndarray, float]]:
        """The best and the latest told trials, in the order told."""
        n = len(self._told_trials)
        if self.history is None or n <= self.history:
            return self._told_trials
        losses, violations = (np.array([told[i] for told in self._told_trials]) for i in (1, 2))
        violations = np.where(np.isfinite(losses).all(axis=1), violations, np.inf)
        best = best_first(losses, violations)[: self.history // 2]
        latest = np.setdiff1d(np.arange(n), best)[-(self.history - len(best)) :]
        return [self._told_trials[i] for i in sorted([*best.tolist(), *latest.tolist()])]

    def _add(self, told: list[tuple[Trial, np.ndarray, float]]) -> None:
        from optuna.trial import TrialState

        finite = [loss for _, loss, _ in self._told_trials if np.isfinite(loss).all()]
        if not finite:
            return  # nothing to compare a failure with
        worst = np.max(finite, axis=0)
        for trial, loss, violation in told:
            values = loss if np.isfinite(loss).all() else worst
            self._add_one(trial.candidate, TrialState.COMPLETE, values, min(violation, 1.0))

    def _add_one(
        self, candidate: Candidate, state: Any, values: np.ndarray | None = None, violation: float = 0.0
    ) -> None:
        from optuna.trial import create_trial

        assert self._study is not None
        self._study.add_trial(
            create_trial(
                state=state,
                params=dict(zip(self._names, candidate.indices, strict=True)),
                distributions=self._distributions(),
                values=None if values is None else values.tolist(),
                constraints={"limits": violation} if values is not None and self._measured else None,
            )
        )

    def _measured_violation(self, trial: Trial, violation: float) -> float:
        """Violation of the limits on measured metrics alone; inf for a trial that is of no use."""
        if not np.isfinite(violation):
            return np.inf
        known = [m for m in self._measured if not m.relative or m.metric in self.baseline]
        return total_violation(known, trial.scores, self.baseline)

    @property
    def _measured(self) -> list[Limit]:
        return [m for m in self.limits if m.metric not in self._analytic]

    @property
    def _names(self) -> list[str]:
        return [f"{d:04d}" for d in range(len(self.space))]  # Optuna sorts by name

    def _distributions(self) -> dict[str, Any]:
        from optuna.distributions import IntDistribution

        counts = self.space.counts.tolist()
        return {n: IntDistribution(0, c - 1) for n, c in zip(self._names, counts, strict=True)}


@contextmanager
def _quiet() -> Iterator[None]:
    """No messages from Optuna, whose verbosity is left as it was found."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


# -- TPE by Optuna: densities of the good and of the rest -----------------------------------------------


class TPE(OptunaSearcher):
    """Tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), for several objectives (Ozaki et al.,
    J. Artif. Intell. Res. 73, 2022) and limits (Watanabe and Hutter, IJCAI 2023), over all choices jointly.

    Takes some 10 ms a candidate (12 choices, one core, whatever the number of trials); with
    ``history=None`` 30 ms at 1,000 trials. Options as :class:`OptunaSearcher`.
    """

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        from optuna.samplers import TPESampler

        return TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True)


# -- Gaussian processes by Optuna: a model of every objective -------------------------------------------


class OptunaGP(OptunaSearcher):
    """Matern Gaussian processes, one for each objective and one for measured limits, and log expected
    (hypervolume) improvement (Ament et al., NeurIPS 2023; Daulton, Balandat and Bakshy, NeurIPS 2020).

    It knows nothing of the space: analytic costs are modelled like accuracy. Takes 1 to 2 seconds a candidate
    (12 choices, two objectives, one core, 15 others under way), bounded by ``history``. Options as
    :class:`OptunaSearcher`.
    """

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        from optuna.samplers import GPSampler

        return GPSampler(seed=seed, n_startup_trials=STARTUP, warn_independent_sampling=False)
