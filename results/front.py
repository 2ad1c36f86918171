"""Front: the trials that no other trial beats, finished or still growing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .hypervolume import knee, nondominated, nondominated_within
from .objective import Limit, Objective, full_name, total_violation
from .points import (
    Reference,
    default_reference,
    has_scores,
    points_of,
    ranges_of,
    read_limits,
    read_objectives,
    read_reference,
    scaled_hypervolume,
)
from .trial import Trial, in_full

if TYPE_CHECKING:
    import pandas as pd


class Front:
    """The non-dominated trials among those that succeeded, have every objective and keep every limit.

    Trials on lower rungs do not count (:func:`.trial.in_full`). Of trials with equal objectives the lowest
    number stands for all. Measured latencies whose intervals
    overlap count as equal (see :func:`nondominated_within`). ``trials`` are sorted by the first objective,
    best first, then by number.

    Args:
        trials: any trials, in any order; number 0 is the unchanged model, the base of relative limits.
        objectives: what is traded off; objects or names as :meth:`Objective.parse` reads them.
        limits: what must be kept; objects or texts such as ``"macs<=0.5x"``.

    Raises:
        ValueError: no objectives, or a limit relative to what the unchanged model lacks.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        objectives: Sequence[Objective | str],
        *,
        limits: Sequence[Limit | str] = (),
    ) -> None:
        self.objectives = read_objectives(objectives)
        self.limits = read_limits(limits)
        below, trials = len(trials), in_full(trials)
        below -= len(trials)
        self.baseline = next((t for t in trials if t.number == 0 and not t.failed), None)
        complete = [t for t in trials if has_scores(t, self.objectives)]
        # [objectives], minimised
        self._worst = points_of(complete, self.objectives).max(axis=0, initial=-np.inf)
        base = self.baseline.scores if self.baseline else {}
        kept = [t for t in complete if total_violation(self.limits, t.scores, base) == 0]
        self._excluded = {
            "were judged on lower rungs": below,
            "failed": sum(t.failed for t in trials),
            "lack an objective": sum(not t.failed for t in trials) - len(complete),
            "break a limit": len(complete) - len(kept),
        }
        kept.sort(key=lambda t: t.number)
        self._kept = kept
        points = points_of(kept, self.objectives)
        low, high = ranges_of(kept, self.objectives)
        exact = bool((low == high).all())
        best = np.flatnonzero(nondominated(points) if exact else nondominated_within(points, low, high))
        first: dict[tuple[float, ...], Trial] = {}
        for i in best:
            first.setdefault(tuple(points[i]), kept[i])
        lead = self.objectives[0]
        self.trials: list[Trial] = sorted(
            first.values(), key=lambda t: (lead.sign * t.scores[lead.name], t.number)
        )

    def __len__(self) -> int:
        return len(self.trials)

    def __iter__(self) -> Iterator[Trial]:
        return iter(self.trials)

    def __repr__(self) -> str:
        return f"Front({len(self)} trials, {', '.join(o.name for o in self.objectives)})"

    def contenders(self) -> list[Trial]:
        """The front's trials, then those that may belong to it for all that is known of their latency."""
        low, high = ranges_of(self._kept, self.objectives)
        seen = set(map(tuple, self.points))
        found = list(self.trials)
        for i, trial in enumerate(self._kept):
            beaten = (high <= low[i]).all(axis=1) & (high < low[i]).any(axis=1)
            point = tuple(points_of([trial], self.objectives)[0])
            if point not in seen and not beaten.any():
                seen.add(point)
                found.append(trial)
        return found

    @property
    def points(self) -> np.ndarray:
        """Objectives of the front's trials, float64 [trials, objectives], signed so that less is better."""
        return points_of(self.trials, self.objectives)

    @property
    def table(self) -> pd.DataFrame:
        """One row per trial of the front (index ``trial``), one column per metric, the objectives first.

        Metrics that were confirmed on data that chose nothing (see :mod:`.confirmation`) follow as
        ``confirmed_accuracy`` and so on. A metric that a trial lacks is NaN.
        """
        import pandas as pd

        names = list(
            dict.fromkeys([o.name for o in self.objectives] + [name for t in self for name in t.scores])
        )
        index = pd.Index([t.number for t in self], name="trial", dtype="int64")
        columns = {n: [t.scores.get(n, np.nan) for t in self] for n in names}
        for name in dict.fromkeys(name for t in self for name in t.confirmed):
            columns[f"confirmed_{name}"] = [t.confirmed.get(name, np.nan) for t in self]
        return pd.DataFrame(columns, index=index, dtype=float)

    @property
    def reference(self) -> dict[str, float]:
        """The reference point that :meth:`hypervolume` takes by default, in the metrics' own units."""
        return default_reference(self.objectives, self.baseline, self._worst)

    def hypervolume(self, reference: Reference | None = None) -> float:
        """Volume of objective space that the front dominates: more is better, one number for a whole front.

        Every objective is divided by the size of its reference (by 1 where that is 0), so that the number has
        no unit: 0.4 for accuracy and MACs is an area of 0.4 x (accuracy 1) x (the unchanged model's MACs).
        Fronts can be compared only under one reference.

        Args:
            reference: worst values that count, by metric or in the order of the objectives. By default 0 for
                a metric to maximise (the worst of all trials given where that is negative); for a known cost
                (MACs, latency, ...) and for throughput the unchanged model's; for one that this has nothing
                of (traffic), any other metric to minimise, or without an unchanged model, the worst of all
                trials given.

        Raises:
            ValueError: a reference that does not name every objective.
        """
        given = self.reference if reference is None else read_reference(reference, self.objectives)
        return scaled_hypervolume(self.points, self.objectives, given)

    @property
    def knee(self) -> Trial:
        """The best compromise: the trial where the front bulges most (see :func:`hypervolume.knee`).

        Raises:
            ValueError: the front is empty.
        """
        self._need_trials()
        return self.trials[knee(self.points)]

    def best(self, metric: str, where: str | Limit | Sequence[str | Limit] = ()) -> Trial:
        """The front's best trial in one metric, among those that keep the limits in ``where``.

        Args:
            metric: an objective or any other metric of the trials; ``"my_metric:max"`` tells the goal of an
                unknown one.
            where: ``"macs<=0.5x"``, or several of them. A trial that lacks a limited metric does not fit.

        Raises:
            ValueError: nothing fits (the message says what can be reached), nobody has the metric, or
                the front is empty.
        """
        self._need_trials()
        goal = next((o for o in self.objectives if o.name == full_name(metric)), None)
        goal = goal or Objective.parse(metric)
        limits = read_limits([where] if isinstance(where, (str, Limit)) else where)
        for limit in limits:
            limit.check()
        for name in (goal.name, *(limit.metric for limit in limits)):
            if not any(name in t.scores for t in self):
                known = sorted({n for t in self for n in t.scores})
                raise ValueError(f"no trial of the front has {name!r}; known are {', '.join(known)}")
        base = self.baseline.scores if self.baseline else {}
        having = [t for t in self if goal.name in t.scores and all(m.metric in t.scores for m in limits)]
        fitting = [t for t in having if total_violation(limits, t.scores, base) == 0]
        if not fitting:
            wanted = " and ".join(limit.text for limit in limits)
            raise ValueError(f"no trial of the front keeps {wanted}; {self._reachable(limits, having, base)}")
        return min(fitting, key=lambda t: goal.sign * t.scores[goal.name])

    def _reachable(self, limits: Sequence[Limit], having: Sequence[Trial], base: Mapping[str, float]) -> str:
        if not having:
            return "no trial has all of these metrics"
        texts = []
        for limit in limits:
            low = "<=" in limit.text
            t = (min if low else max)(having, key=lambda t: t.scores[limit.metric])
            value, unchanged = t.scores[limit.metric], base.get(limit.metric)
            relative = f" ({value / unchanged:.3g}x)" if limit.relative and unchanged else ""
            extreme = "smallest" if low else "largest"
            texts.append(f"the {extreme} {limit.metric} is {value:.4g}{relative}, of trial {t.number}")
        if len(limits) > 1:
            near = min(having, key=lambda t: total_violation(limits, t.scores, base))
            values = ", ".join(f"{limit.metric} {near.scores[limit.metric]:.4g}" for limit in limits)
            texts.append(f"nearest to all is trial {near.number} ({values})")
        return "; ".join(texts)

    def _need_trials(self) -> None:
        if not self.trials:
            why = ", ".join(f"{n} {what}" for what, n in self._excluded.items() if n) or "there are none"
            raise ValueError(f"the front is empty: of the trials {why}; run more trials or loosen the limits")


# -- The front of a run that is still going, followed trial by trial ------------------------------------


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
