"""What trials say about candidates that nobody scored, if scores are monotone in compression."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ...results.objective import Limit, Objective
from ...results.trial import Trial
from ...spaces import Space

# Values of a metric never rise with compression (accuracy, and what a cost measures), or never fall.
FALLS, RISES = "falls", "rises"


def directions(
    objectives: Sequence[Objective], limits: Iterable[Limit], assumed: bool | Iterable[str]
) -> dict[str, str]:
    """What is assumed of each metric: nothing for those that are not in the result.

    With compression, maximised metrics and costs fall; ``loss``, and a first objective that is minimised and
    no known cost, rise.

    Args:
        assumed: ``True`` for all metrics of the objectives and limits, or the names of some.

    Raises:
        ValueError: a name that is neither an objective's nor a limit's.
    """
    names = [o.name for o in objectives] + [m.metric for m in limits]
    if isinstance(assumed, bool):
        wanted = set(names) if assumed else set()
    else:
        wanted = {assumed} if isinstance(assumed, str) else set(assumed)
        if unknown := sorted(wanted - set(names)):
            raise ValueError(
                f"assume_monotone names {unknown}, which are neither objectives nor limited; those are "
                f"{sorted(set(names))}"
            )
    first = objectives[0]
    rising = {"loss"} | ({first.name} if first.goal == "min" and not first.unit else set())
    return {name: RISES if name in rising else FALLS for name in wanted}


class MonotoneTrials:
    """Envelopes of measured metrics over boxes of candidates, from trials inside and outside of them.

    If a metric never rises with compression, no candidate has more than one that is less compressed in every
    choice, and none has less than one that is more compressed in every choice.

    Args:
        assumed: metric -> ``FALLS`` or ``RISES``.
    """

    def __init__(self, space: Space, assumed: dict[str, str]) -> None:
        self.assumed = assumed
        self._rows = np.empty((0, len(space)), dtype=np.int64)
        self._values = {name: np.empty(0) for name in assumed}

    def add(self, trial: Trial) -> None:
        """A failed trial says nothing about others."""
        if self.assumed and not trial.failed:
            self._rows = np.concatenate([self._rows, [trial.candidate.indices]])
            for name, values in self._values.items():
                self._values[name] = np.append(values, trial.scores.get(name, np.nan))

    def over(self, low: np.ndarray, high: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Metric -> least and largest value in each of the boxes [n, choices], infinite where unknown."""
        if not self.assumed:
            return {}
        before = np.ones((len(low), len(self._rows)), dtype=bool)  # the trial is compressed less, everywhere
        after = before.copy()
        for d in range(low.shape[1]):
            before &= self._rows[:, d] <= low[:, d, None]
            after &= self._rows[:, d] >= high[:, d, None]
        out = {}
        for name, direction in self.assumed.items():
            values = self._values[name]
            known = np.isfinite(values)
            small, large = (after, before) if direction == FALLS else (before, after)
            least = np.where(small & known, values, -np.inf).max(axis=1, initial=-np.inf)
            most = np.where(large & known, values, np.inf).min(axis=1, initial=np.inf)
            out[name] = least, most
        return out
