"""Policy of reinforcement learning: candidates as episodes, and a small stochastic policy in NumPy.

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
        limits: those on analytic costs restrict the options: one is allowed only where each limit can still
            be kept when all that follows takes the option that suits it best alone. Exact where costs are
            monotone in every choice; elsewhere a wrong proposal is left to :class:`Feasible`.
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
        self.steps, self.options = len(space), int(space.counts.max())
        self._last = space.counts - 1
        self._exists = np.arange(self.options) < space.counts[:, None]  # [steps, options]
        self._layers = self._describe()
        # What best follows by the limits, int [steps], with (metric, sign, bound) of those that say so.
        rests: dict[tuple[int, ...], list[tuple[str, float, float]]] = {}
        for m in limits:
            if m.metric in known:
                sign = 1.0 if "<=" in m.text else -1.0
                rest = tuple(self._best_alone(m.metric, sign).tolist())
                rests.setdefault(rest, []).append((m.metric, sign, m.bound(baseline)))
        self._rests = [(np.array(rest), kept) for rest, kept in rests.items()]

    @property
    def features(self) -> int:
        """Length of a state."""
        return self._layers.shape[1] + 1 + 2 * len(self._metrics) + self.preferences

    def states(
        self, steps: np.ndarray, taken: np.ndarray, preferences: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What is seen before each of ``n`` decisions.

        Args:
            steps: which decision of its walk each one is, int [n].
            taken: options of the walks, int [n, steps]; those from the decision on are not looked at.
            preferences: [n, objectives].

        Returns:
            States [n, features], and which options are allowed, bool [n, options].
        """
        n = len(steps)
        open_ = np.arange(self.steps) >= steps[:, None]
        ends = [np.where(open_, rest, taken) for rest in (0, self._last)]
        relative = self._relative(np.concatenate(ends))  # if all that follows stays, or is compressed most
        before = taken[np.arange(n), steps - 1] / np.maximum(self._last[steps - 1], 1)
        before = np.where(steps > 0, before, 0.0)[:, None]
        x = np.concatenate([self._layers[steps], before, relative[:n], relative[n:], preferences], axis=1)
        return x, self._allowed(steps, taken, open_)

    def _allowed(self, steps: np.ndarray, taken: np.ndarray, open_: np.ndarray) -> np.ndarray:
        allowed = self._exists[steps]
        option = np.tile(np.arange(self.options), len(steps))
        decided = np.repeat(steps, self.options)
        for rest, limits in self._rests:
            rows = np.repeat(np.where(open_, rest, taken), self.options, axis=0)
            rows[np.arange(len(rows)), decided] = np.minimum(option, self._last[decided])
            costs = self._costs(rows)
            before = allowed
            for metric, sign, bound in limits:
                kept = sign * (costs[metric] - bound) <= 1e-12 * abs(bound)
                allowed = allowed & kept.reshape(allowed.shape)
            none = ~allowed.any(axis=1)  # these limits cannot be kept any more: free
            allowed[none] = before[none]
        return allowed

    def _best_alone(self, metric: str, sign: float) -> np.ndarray:
        """By step, the option with the least ``sign * metric`` while all else is unchanged; int [steps]."""
        rows = np.zeros((self.steps * self.options, self.steps), dtype=np.int64)
        step = np.repeat(np.arange(self.steps), self.options)
        option = np.tile(np.arange(self.options), self.steps)
        rows[np.arange(len(rows)), step] = np.minimum(option, self._last[step])
        costs = sign * self._costs(rows)[metric].reshape(self.steps, self.options)
        costs = np.where(self._exists, costs, np.inf)
        if sign < 0:
            return costs.argmin(axis=1)  # of equals the least compressed
        return self.options - 1 - costs[:, ::-1].argmin(axis=1)  # the most

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
        return self.space.side.cost_arrays(self.space.choices, indices)


# -- A small stochastic policy in NumPy: a table of preferences a step, and a network that sees the state

Gradients = dict[str, np.ndarray]
DECAY = (0.9, 0.999)  # of Adam's moments (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1)


class Policy:
    """Probabilities of the options at a step, and the value of the state.

    logits = table[step] + tanh(x W + b) U, value = worth[step] + tanh(x W + b) v.

    Args:
        steps: number of decisions.
        options: most options of a decision.
        features: length of a state.
        rng: of the first weights; logits and values start at 0, so that the first policy is uniform.
    """

    def __init__(
        self, steps: int, options: int, features: int, *, rng: np.random.Generator, hidden: int = 32
    ) -> None:
        self.weights: Gradients = {
            "table": np.zeros((steps, options)),
            "worth": np.zeros(steps),
            "W": rng.normal(0.0, 1.0 / np.sqrt(features), (features, hidden)),
            "b": np.zeros(hidden),
            "U": np.zeros((hidden, options)),
            "v": np.zeros(hidden),
        }
        self._first = {name: np.zeros_like(w) for name, w in self.weights.items()}
        self._second = {name: np.zeros_like(w) for name, w in self.weights.items()}
        self._updates = 0

    def hidden(self, x: np.ndarray) -> np.ndarray:
        """[n, hidden] of states [n, features]."""
        return np.tanh(x @ self.weights["W"] + self.weights["b"])

    def log_probabilities(self, h: np.ndarray, steps: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """Log of the probabilities [n, options]; -inf where not ``allowed`` [n, options]."""
        logits = self.weights["table"][steps] + h @ self.weights["U"]
        logits = np.where(allowed, logits, -np.inf)
        logits -= logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def values(self, h: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Expected return of the states, [n]."""
        return self.weights["worth"][steps] + h @ self.weights["v"]

    def update(
        self,
        x: np.ndarray,
        h: np.ndarray,
        steps: np.ndarray,
        d_logits: np.ndarray,
        d_values: np.ndarray,
        *,
        rate: float,
    ) -> None:
        """One step of Adam down the gradient of a loss.

        Args:
            x, h: states [n, features] and :meth:`hidden` of them.
            d_logits, d_values: derivatives of the loss, [n, options] and [n].
        """
        gradients: Gradients = {name: np.zeros_like(w) for name, w in self.weights.items()}
        np.add.at(gradients["table"], steps, d_logits)
        np.add.at(gradients["worth"], steps, d_values)
        gradients["U"], gradients["v"] = h.T @ d_logits, h.T @ d_values
        back = (d_logits @ self.weights["U"].T + np.outer(d_values, self.weights["v"])) * (1.0 - h**2)
        gradients["W"], gradients["b"] = x.T @ back, back.sum(axis=0)
        self._updates += 1
        for name, g in gradients.items():
            self._first[name] += (1.0 - DECAY[0]) * (g - self._first[name])
            self._second[name] += (1.0 - DECAY[1]) * (g**2 - self._second[name])
            first = self._first[name] / (1.0 - DECAY[0] ** self._updates)
            second = self._second[name] / (1.0 - DECAY[1] ** self._updates)
            self.weights[name] -= rate * first / (np.sqrt(second) + 1e-8)


def entropy_gradient(log_p: np.ndarray) -> np.ndarray:
    """Derivatives [n, options] of the entropy -sum p log p by the logits."""
    p = np.exp(log_p)
    safe = np.where(p > 0.0, log_p, 0.0)
    return -p * (safe - (p * safe).sum(axis=1, keepdims=True))


def log_gradient(log_p: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Derivatives [n, options] of log p[taken] by the logits: one-hot minus p."""
    gradient = -np.exp(log_p)
    gradient[np.arange(len(taken)), taken] += 1.0
    return gradient
