"""The front of a run that is still going, followed trial by trial."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .objective import Limit, Objective, total_violation
from .points import default_reference, has_scores, read_limits, read_objectives, scaled_hypervolume
from .trial import Trial


class FrontTracker:
    """The size and hypervolume of a growing front, cheap enough to follow every trial.

    Gives the same numbers as a :class:`Front` of the same trials; the unchanged model (number 0) has to come
    first where limits are relative to it.

    Args:
        objectives, limits: as for :class:`Front`.
    """

    def __init__(self, objectives: Sequence[Objective | str], limits: Sequence[Limit | str] = ()) -> None:
        self.objectives = read_objectives(objectives)
        self.limits = read_limits(limits)
        self._baseline: Trial | None = None
        self._fidelity: str | None = None  # of the first trial: others do not count, as for a front
        self._points = np.empty((0, len(self.objectives)))  # [front, objectives], minimised
        self._trials: list[Trial] = []  # in the order of the points
        self._worst = np.full(len(self.objectives), -np.inf)
        self._volume: float | None = None

    def add(self, trial: Trial) -> bool:
        """Take one more trial into account; True when it entered the front."""
        self._fidelity = self._fidelity or trial.fidelity
        if trial.fidelity != self._fidelity:
            return False
        if trial.number == 0 and not trial.failed:
            self._baseline = trial
            self._volume = None
        if not has_scores(trial, self.objectives):
            return False
        point = np.array([o.sign * trial.scores[o.name] for o in self.objectives])
        if (point > self._worst).any():
            self._worst = np.maximum(self._worst, point)
            self._volume = None
        base = self._baseline.scores if self._baseline else {}
        if self.limits and total_violation(self.limits, trial.scores, base) > 0:
            return False
        if (self._points <= point).all(axis=1).any():
            return False
        stays = (self._points < point).any(axis=1)
        self._points = np.concatenate((self._points[stays], point[None]))
        self._trials = [*(self._trials[i] for i in np.flatnonzero(stays)), trial]
        self._volume = None
        return True

    @property
    def trials(self) -> list[Trial]:
        """The front, best first objective first."""
        lead = self.objectives[0]
        return sorted(self._trials, key=lambda t: (lead.sign * t.scores[lead.name], t.number))

    @property
    def baseline(self) -> Trial | None:
        """The unchanged model's trial, once it has come."""
        return self._baseline

    @property
    def size(self) -> int:
        """Number of trials on the front."""
        return len(self._points)

    def hypervolume(self) -> float:
        """As :meth:`Front.hypervolume` with its default reference; computed only when something changed."""
        if self._volume is None:
            reference = default_reference(self.objectives, self._baseline, self._worst)
            self._volume = scaled_hypervolume(self._points, self.objectives, reference)
        return self._volume
