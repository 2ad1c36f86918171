"""A candidate as an episode: the choices are walked in network order, one option is taken at each.

The state is that of AMC (He et al. 2018, arXiv 1802.03494, section 3.1), with whatever costs the space knows
exactly in place of FLOPs, and the preference among the objectives beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..results.objective import Limit, Objective
from ..spaces import Space

Costs = dict[str, np.ndarray]


class Episodes:
    """States and allowed options of walks through a space.

    Args:
        metrics: analytic costs that a state tells, those of the objectives and the limits.
        limits: those on analytic costs restrict the options: one is allowed only where the limits can still
            be kept when all that follows is compressed most.
        baseline: scores of the unchanged model, for relative limits.
    """

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        limits: Sequence[Limit],
        baseline: dict[str, float],
    ) -> None:
        self.space = space
        self.preferences = len(objectives)
        known = self._costs(np.zeros((1, len(space)), dtype=np.int64))
        wanted = dict.fromkeys([*(o.name for o in objectives), *(m.metric for m in limits)])
        self._metrics = [m for m in wanted if m in known and known[m][0] > 0]
        self._whole = np.array([known[m][0] for m in self._metrics])
        upper = [m for m in limits if m.metric in known and "<=" in m.text]
        self._bounds = {
            m.metric: min(x.bound(baseline) for x in upper if x.metric == m.metric) for m in upper
        }
        self.steps, self.options = len(space), int(space.counts.max())
        self._last = space.counts - 1
        self._exists = np.arange(self.options) < space.counts[:, None]  # [steps, options]
        self._layers = self._describe()

    @property
    def features(self) -> int:
        """Length of a state."""
        return self._layers.shape[1] + 1 + 2 * len(self._metrics) + self.preferences

    def state(self, step: int, taken: np.ndarray, preferences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is seen before a decision.

        Args:
            taken: options [n, steps]; those from ``step`` on are not looked at.
            preferences: [n, objectives].

        Returns:
            States [n, features], and which options are allowed, bool [n, options].
        """
        n = len(taken)
        so_far, least = taken.copy(), taken.copy()
        so_far[:, step:] = 0
        least[:, step:] = self._last[step:]
        left = self._relative(so_far)  # cost if all that follows stays as it is
        floor = self._relative(least)  # and if it is compressed most
        before = taken[:, step - 1] / max(self._last[step - 1], 1) if step else np.zeros(n)
        layer = np.broadcast_to(self._layers[step], (n, self._layers.shape[1]))
        x = np.concatenate([layer, before[:, None], left, floor, preferences], axis=1)
        return x, self._allowed(step, least)

    def _allowed(self, step: int, least: np.ndarray) -> np.ndarray:
        n = len(least)
        allowed = np.broadcast_to(self._exists[step], (n, self.options)).copy()
        if not self._bounds:
            return allowed
        count = self.space.counts[step]
        rows = np.repeat(least, count, axis=0)
        rows[:, step] = np.tile(np.arange(count), n)
        costs = self._costs(rows)
        for metric, bound in self._bounds.items():
            allowed[:, :count] &= (costs[metric] <= bound * (1 + 1e-12)).reshape(n, count)
        allowed[~allowed.any(axis=1), self._last[step]] = True  # nothing keeps the limits: what comes nearest
        return allowed

    def _describe(self) -> np.ndarray:
        """By step: where it is, how many options it has, and the share of each cost that it can save."""
        place = np.linspace(0.0, 1.0, self.steps)[:, None]
        count = (self.space.counts / self.options)[:, None]
        alone = np.diag(self._last)
        return np.concatenate([place, count, 1.0 - self._relative(alone)], axis=1)

    def _relative(self, indices: np.ndarray) -> np.ndarray:
        """Costs relative to the unchanged model, [n, metrics]."""
        if not self._metrics:
            return np.zeros((len(indices), 0))
        costs = self._costs(indices)
        return np.stack([costs[m] for m in self._metrics], axis=1) / self._whole

    def _costs(self, indices: np.ndarray) -> Costs:
        model = self.space.model
        return {} if model is None else model.cost_arrays(self.space.choices, indices)
