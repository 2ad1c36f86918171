"""Greedy removal: always the step that costs least for what it saves."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from ...results.objective import Objective
from ...results.trial import Trial
from ...spaces import Candidate, Space
from ..generator import Remembering, Steps, diagonal

FAILED = (math.inf, math.inf)  # the rate of a step that could not be scored


class Greedy(Remembering):
    """From the unchanged model, one option of one choice at a time, to the most compressed.

    Each round takes the step with the least damage to the first objective per unit of cost saved (with one
    objective: the least damage); an improvement counts as no damage, and of equals the larger saving wins.
    The other objectives are the costs, each relative to the unchanged model's where there are several.

    Rates of earlier rounds are kept, and only the ``width`` most promising steps are scored again before the
    best is taken ("lazy greedy", Minoux 1978): the same path as scoring every step each round wherever rates
    do not fall along the way, for several times fewer trials. Known trials are not asked for again. At the
    end of the way it starts again with twice the width, until that is plain greedy removal.

    Where limits forbid the unchanged model it starts from the nearest that they allow; where no step from
    here can be scored it compresses all choices together until it can go on.

    Args:
        width: steps scored together on the first way, at least 1. More keep more workers busy and cost more
            trials; the number of choices gives plain greedy removal.
    """

    def __init__(
        self, space: Space, objectives: Iterable[Objective | str], *, seed: int = 0, width: int = 2
    ) -> None:
        super().__init__(space, objectives, seed=seed)
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        self.width = width

    def search(self) -> Steps:
        width = self.width
        while True:
            yield from self._walk(width)
            if width >= len(self.space):
                return
            width *= 2

    def _walk(self, width: int) -> Steps:
        """Once from the start to the most compressed."""
        here = (yield from self.score([self._start()]))[0]
        unknown = [(-math.inf, 0.0)] * len(self.space)  # never scored comes first
        rates = unknown.copy()  # [choices]: of the next step in each, as last scored
        while steps := self._steps_from(here.candidate):
            if here.failed:
                here = (yield from self.score([self._diagonal(here.candidate)]))[0]
                rates = unknown.copy()
                continue
            order = sorted(steps, key=lambda d: rates[d])
            scored: dict[int, Trial] = {}
            while order and (not scored or min(rates[d] for d in scored) > rates[order[0]]):
                block, order = order[:width], order[width:]
                trials = yield from self.score(steps[d] for d in block)
                for d, trial in zip(block, trials, strict=True):
                    scored[d], rates[d] = trial, self._rate(here, trial)
            here = scored[min(scored, key=lambda d: rates[d])]

    def _start(self) -> Candidate:
        """The unchanged model, or what is nearest to it within the limits."""
        return next(map(self.relaxed, self.allowed(diagonal(self.space))), self.space.baseline)

    def _steps_from(self, candidate: Candidate) -> dict[int, Candidate]:
        """The next option of each choice that has one."""
        base = candidate.indices
        return {
            d: Candidate((*base[:d], base[d] + 1, *base[d + 1 :]), self.space.choices)
            for d, count in enumerate(self.space.counts.tolist())
            if base[d] + 1 < count
        }

    def _diagonal(self, candidate: Candidate) -> Candidate:
        """The next option of every choice that has one."""
        indices = np.minimum(np.add(candidate.indices, 1), self.space.counts - 1)
        return Candidate(tuple(indices.tolist()), self.space.choices)

    def _rate(self, before: Trial, after: Trial) -> tuple[float, float]:
        """(damage per unit saved, -saved): the smaller the better. A step that saves nothing comes last."""
        if not (np.isfinite(self.loss(before)).all() and np.isfinite(self.loss(after)).all()):
            return FAILED
        change = self.loss(after) - self.loss(before)
        if len(change) == 1:
            return float(change[0]), 0.0
        damage, saved = max(0.0, float(change[0])), -float(change[1])
        if len(change) > 2:
            saved = -float((change[1:] / self._scale).sum())
        return (damage / saved, -saved) if saved > 0 else (math.inf, -saved)

    @property
    def _scale(self) -> np.ndarray:
        """What one unit of each cost is: the unchanged model's, else 1; [costs]."""
        units = [abs(self.baseline.get(o.name, 1.0)) for o in self.objectives[1:]]
        return np.array([unit or 1.0 for unit in units])
