"""Reinforcement learning: REINFORCE and PPO over episodes that walk the choices."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..results.objective import Objective
from ..results.trial import Trial
from ..spaces import Candidate, Space
from .base import Searcher
from .evolutionary.evolution import first_population
from .evolutionary.ranking import chebyshev, ideal_and_span, simplex
from .policy import Episodes, Policy, entropy_gradient, log_gradient

BATCH = 8  # episodes sampled, and learned from, at a time
PREFERENCES = 12  # lattice points, at most; one policy serves them all
RECENT = 64  # trials that the baseline averages over
WARM = 32  # updates, at most, from trials that were told before the first ask
HOTTER = 1.5  # temperature goes up so when a whole batch is known already
WORST = 2.0  # loss of a candidate that failed or breaks a limit, in spans beyond the worst


@dataclass(frozen=True, slots=True)
class Episode:
    """One walk of the policy."""

    taken: np.ndarray  # option at each step, int [steps]
    preference: np.ndarray  # [objectives], sums to 1
    log_p: np.ndarray  # of the options taken, by the policy of that time, [steps]


class Reinforce(Searcher):
    """REINFORCE with a baseline (Williams 1992, Machine Learning 8, section 3) over network decisions.

    An episode takes one option for each choice, in network order (:class:`Episodes`). Its return is minus
    the augmented Chebyshev norm of the normalised losses under a preference that is drawn before it and
    seen by the policy, so that one policy learns the whole front. The baseline is what the latest trials
    would have returned under the same preference, which is known exactly, since only the weights differ.

    Beside its own episodes it learns from the best known trial under each preference, whoever proposed it:
    self-imitation (Oh et al. 2018, arXiv 1806.05635, equation 2). That is how the first population (as of
    :class:`Evolution`), earlier runs and repaired candidates teach it. Where earlier runs make a whole
    population, nothing is spent on another.

    Options from which limits on analytic costs cannot be kept any more are masked.

    Args:
        rate: of Adam.
        entropy: weight of the entropy bonus, in units of the returns' spread.
        imitation: weight of the best known trials against own episodes.
        population: size of the first population.
    """

    def __init__(
        self,
        space: Space,
        objectives: Iterable[Objective | str],
        *,
        seed: int = 0,
        rate: float = 0.05,
        entropy: float = 0.02,
        imitation: float = 1.0,
        population: int = 16,
    ) -> None:
        super().__init__(space, objectives, seed=seed)
        if rate <= 0 or entropy < 0 or imitation < 0:
            raise ValueError(
                "rate must be positive, entropy and imitation not negative; "
                f"got {rate}, {entropy} and {imitation}"
            )
        self.rate, self.entropy, self.imitation = rate, entropy, imitation
        self.population = population
        self._begun = False
        self._queue = deque(first_population(space, self.rng, population))
        self._lattice = simplex(PREFERENCES, len(self.objectives))
        self._made: tuple[Episodes, Policy] | None = None
        self._pending: dict[Candidate, list[Episode]] = {}
        self._done: list[tuple[Episode, Candidate]] = []  # own episodes with known outcome, not learned from
        self._losses: dict[Candidate, np.ndarray] = {}  # [objectives]; inf where failed or limits are broken
        self._temperature = 1.0

    def ask(self, n: int) -> list[Candidate]:
        if not self._begun:
            self._begun = True
            if len(self._losses) >= self.population:  # earlier runs are as good as a first population
                self._queue.clear()
                for _ in range(min(len(self._losses) // BATCH, WARM)):
                    self._learn()
        asked: list[Candidate] = []
        idle = 0
        while len(asked) < n and idle < 8:
            if not self._queue:
                self._sample()
                idle = 0 if self._queue else idle + 1
            while self._queue and len(asked) < n:
                asked.append(self._queue.popleft())
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        super().tell(trials)
        for trial in sorted(trials, key=lambda t: (t.number, t.candidate.indices)):
            loss = self.loss(trial)
            fine = np.isfinite(loss).all() and self.violation(trial) <= 0.0
            self._losses[trial.candidate] = loss if fine else np.full(len(loss), np.inf)
            self._done += [(e, trial.candidate) for e in self._pending.pop(trial.candidate, ())]
        if len(self._done) >= BATCH:
            self._learn()
            self._done = []

    # Walking.

    def _sample(self) -> None:
        """A batch of walks: new candidates are queued, of known ones the outcome is known already."""
        episodes, policy = self._parts()
        preferences = self._draw(BATCH)
        taken = np.zeros((BATCH, episodes.steps), dtype=np.int64)
        log_p = np.zeros((BATCH, episodes.steps))
        rows = np.arange(BATCH)
        for step in range(episodes.steps):
            at = np.full(BATCH, step)
            x, allowed = episodes.states(at, taken, preferences)
            logs = policy.log_probabilities(policy.hidden(x), at, allowed)
            # Hotter only to leave what is known; learned from as if it were the policy's own.
            tempered = np.exp(logs / self._temperature)
            cumulated = (tempered / tempered.sum(axis=1, keepdims=True)).cumsum(axis=1)
            drawn = (self.rng.random((BATCH, 1)) < cumulated).argmax(axis=1)
            taken[:, step], log_p[:, step] = drawn, logs[rows, drawn]
        new = 0
        for k in rows:
            candidate = Candidate(tuple(taken[k].tolist()), self.space.choices)
            episode = Episode(taken[k], preferences[k], log_p[k])
            if candidate in self._losses:
                self._done.append((episode, candidate))
            else:
                new += candidate not in self._pending
                if candidate not in self._pending:
                    self._queue.append(candidate)
                self._pending.setdefault(candidate, []).append(episode)
        self._temperature = 1.0 if new else self._temperature * HOTTER

    def _draw(self, n: int) -> np.ndarray:
        """Preferences [n, objectives], around lattice points."""
        centres = self._lattice[self.rng.integers(len(self._lattice), size=n)]
        noise = self.rng.dirichlet(np.ones(centres.shape[1]), size=n)
        return 0.8 * centres + 0.2 * noise

    def _parts(self) -> tuple[Episodes, Policy]:
        if self._made is None:  # the limits are known by now
            episodes = Episodes(self.space, self.objectives, self.limits, self.baseline)
            policy = Policy(episodes.steps, episodes.options, episodes.features, rng=self.rng)
            self._made = episodes, policy
        return self._made

    # Learning.

    def _learn(self) -> None:
        """One update from own episodes and from the best known trials."""
        good = [c for c, loss in self._losses.items() if np.isfinite(loss).all()]
        if len(good) < 2:
            return
        known = np.array([self._losses[c] for c in good])  # [trials, objectives]
        ideal, span = ideal_and_span(known)
        scaled = (known - ideal) / span
        parts = []
        if self._done:
            worst = scaled.max(axis=0) + WORST
            losses = np.array([self._losses[c] for _, c in self._done])
            losses = np.where(np.isfinite(losses), (losses - ideal) / span, worst)
            preferences = np.array([e.preference for e, _ in self._done])
            mean, spread = self._baseline(scaled, preferences)
            advantages = (-chebyshev(losses, preferences) - mean) / spread
            taken, old = (np.array([getattr(e, name) for e, _ in self._done]) for name in ("taken", "log_p"))
            parts.append((taken, preferences, advantages, old))
        if self.imitation:
            preferences = self._draw(len(self._done) or BATCH)
            value = -chebyshev(scaled[:, None], preferences[None])  # [trials, preferences]
            best = value.argmax(axis=0)
            mean, spread = self._baseline(scaled, preferences)
            gain = np.maximum(0.0, value[best, np.arange(len(best))] - mean) / spread
            taken = np.array([good[i].indices for i in best])
            parts.append((taken, preferences, self.imitation * gain, np.full(taken.shape, np.nan)))
        if parts:
            taken, preferences, advantages, old = map(np.concatenate, zip(*parts, strict=True))
            self._update(taken, preferences, np.clip(advantages, -3.0, 3.0), old)

    @staticmethod
    def _baseline(scaled: np.ndarray, preferences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the returns of the latest trials under each preference, [n] both."""
        returns = -chebyshev(scaled[-RECENT:, None], preferences[None])
        return returns.mean(axis=0), returns.std(axis=0) + 1e-6

    def _update(
        self, taken: np.ndarray, preferences: np.ndarray, advantages: np.ndarray, old: np.ndarray
    ) -> None:
        """Up the gradient of the expected return.

        Args:
            taken: options [n, steps].
            preferences: [n, objectives].
            advantages: [n], in spreads of the returns.
            old: log-probabilities [n, steps] when sampled; NaN for episodes that are imitated.
        """
        _, policy = self._parts()
        x, allowed, steps, actions = self._flat(taken, preferences)
        h = policy.hidden(x)
        log_p = policy.log_probabilities(h, steps, allowed)
        weight = np.tile(advantages, taken.shape[1])[:, None]
        push = weight * log_gradient(log_p, actions) + self.entropy * entropy_gradient(log_p)
        policy.update(x, h, steps, -push / len(taken), np.zeros(len(steps)), rate=self.rate)

    def _flat(
        self, taken: np.ndarray, preferences: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """States, allowed options, steps and options taken, of all steps one after the other."""
        episodes, _ = self._parts()
        steps = np.repeat(np.arange(episodes.steps), len(taken))
        actions = taken.T.reshape(-1)
        walks = np.tile(np.arange(len(taken)), episodes.steps)
        x, allowed = episodes.states(steps, taken[walks], preferences[walks])
        allowed[np.arange(len(actions)), actions] = True  # a trial of somebody else's may break the limits
        return x, allowed, steps, actions


# -- Proximal policy optimisation over the same episodes ------------------------------------------------

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
