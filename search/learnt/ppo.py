"""Proximal policy optimisation over the same episodes."""

from __future__ import annotations

import numpy as np

from .policy import entropy_gradient, log_gradient
from .reinforce import Reinforce

EPOCHS = 4  # passes over a batch
CLIP = 0.2  # epsilon
CRITIC = 0.5  # weight of the value's squared error


class PPO(Reinforce):
    """Clipped surrogate objective with a learned critic (Schulman et al. 2017, arXiv 1707.06347, equation 7).

    Each batch is used several times; what would move a probability by more than a fifth is cut off. The
    critic says what a state is worth, in spreads of the returns above the baseline of :class:`Reinforce`, so
    that a decision is judged by what was still open when it was taken. All else as there.
    """

    def _update(
        self, taken: np.ndarray, preferences: np.ndarray, advantages: np.ndarray, old: np.ndarray
    ) -> None:
        _, policy = self._parts()
        x, allowed, steps, actions = self._flat(taken, preferences)
        rows = np.arange(len(actions))
        returns = np.tile(advantages, taken.shape[1])
        before = old.T.reshape(-1)
        start = policy.hidden(x)
        imitated = np.isnan(before)
        # What is imitated has no policy of its own: it may move as far as own episodes, from where it is.
        now = policy.log_probabilities(start, steps, allowed)[rows, actions]
        before = np.where(imitated, now, before)
        worth = policy.values(start, steps)
        # Self-imitation learns from what was better than expected only.
        gain = np.where(imitated, np.maximum(0.0, returns - worth), returns - worth)
        for _ in range(EPOCHS):
            h = policy.hidden(x)
            log_p = policy.log_probabilities(h, steps, allowed)
            ratio = np.exp(np.clip(log_p[rows, actions] - before, -20.0, 20.0))
            cut = np.where(gain > 0, ratio > 1.0 + CLIP, ratio < 1.0 - CLIP)
            weight = np.where(cut, 0.0, ratio * gain)[:, None]
            push = weight * log_gradient(log_p, actions) + self.entropy * entropy_gradient(log_p)
            error = np.where(imitated, 0.0, policy.values(h, steps) - returns)
            policy.update(
                x, h, steps, -push / len(taken), CRITIC * 2.0 * error / len(taken), rate=self.rate / 2
            )
