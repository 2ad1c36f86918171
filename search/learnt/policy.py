"""A small stochastic policy in NumPy: a table of preferences a step, and a network that sees the state."""

from __future__ import annotations

import numpy as np

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
