"""Particle swarm over distributions: a particle is a probability for every option, not a rounded point."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...results.objective import Objective
from ...results.trial import Trial
from ...spaces import Candidate, Space
from .evolution import ATTEMPTS, Evolution, mutate
from .ranking import best_first, ranks


@dataclass(frozen=True)
class _Best:
    """A candidate that was told, and how good it is."""

    indices: np.ndarray  # int [choices]
    loss: np.ndarray  # [objectives], minimised
    violation: float


@dataclass
class _Particle:
    position: np.ndarray  # expected option of every choice, in [0, options - 1]
    best: _Best
    velocity: np.ndarray  # options a move [choices]


class ParticleSwarm(Evolution):
    """Particle swarm of distributions (Kennedy and Eberhart, SMC 1997; for integers and categories: Strasser,
    Goodman, Sheppard and Butcher, GECCO 2016).

    A particle is a distribution over the options of every choice, from which candidates are sampled. Options
    are ordered, so mass is moved along the order instead of mixed between far options: the distribution lies
    on the two options next to its mean. With two options that is the probability of the binary swarm. The
    velocity of the means is ``inertia`` of the last one plus random shares of the way to the particle's best
    and to a leader's (Kennedy and Eberhart, ICNN 1995). With several objectives leaders are drawn from the
    archive of the best ``population`` trials by tournaments on front and crowding (Raquel and Naval, GECCO
    2005), and a new candidate becomes the particle's best unless the old one dominates it.

    A particle moves as soon as what it sampled last is known, so there is no barrier; with ``steady=False``
    it waits for all that was asked for. Trials that were never asked for enter the archive and so lead.
    Options as :class:`Evolution`, where ``population`` is the number of particles too.

    Args:
        inertia: in [0, 1).
        own, leader: greatest share of the way to the particle's own best, and to the leader's; positive.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        space: Space,
        objectives: Iterable[Objective | str],
        *,
        inertia: float = 0.4,
        own: float = 0.7,
        leader: float = 1.3,
        **options: Any,
    ) -> None:
        super().__init__(space, objectives, **options)
        if not (0.0 <= inertia < 1.0 and own > 0.0 and leader > 0.0):
            raise ValueError(
                f"inertia must be in [0, 1), own and leader positive, got {inertia}, {own} and {leader}"
            )
        self.inertia, self.own, self.leader = inertia, own, leader
        self._particles: list[_Particle] = []
        self._free: deque[_Particle] = deque()  # those whose sample is known, in the order of becoming so
        self._flying: dict[Candidate, _Particle] = {}
        self._archive: list[_Best] = []  # best first

    def learn(self, trial: Trial, loss: np.ndarray, violation: float) -> None:
        new = _Best(np.asarray(trial.candidate.indices), loss, violation)
        self._archive.append(new)
        order = best_first(*_arrays(self._archive))
        self._archive = [self._archive[i] for i in order[: self.population]]
        particle = self._flying.pop(trial.candidate, None)
        if particle is None and len(self._particles) < self.population:
            particle = _Particle(new.indices.astype(np.float64), new, np.zeros(len(self.space)))
            self._particles.append(particle)
        elif particle is not None:
            before, after = ranks(*_arrays([particle.best, new]))
            particle.best = new if after <= before else particle.best
        if particle is not None:
            self._free.append(particle)

    def breed(self, n: int) -> Iterable[np.ndarray]:
        waiting = self._particles[self.rng.integers(len(self._particles))]  # more is asked for than particles
        particle = self._free.popleft() if self._free else waiting
        self._move(particle)
        for attempt in range(2 * ATTEMPTS):
            indices = sample(self.rng, particle.position)
            if attempt >= ATTEMPTS:  # it has collapsed: go on from there
                indices = mutate(self.rng, indices[None], self.space.counts)[0]
            candidate = Candidate(tuple(indices.tolist()), self.space.choices)
            if not self.seen(candidate):
                self._flying[candidate] = particle
                break
        return [indices]

    def _move(self, particle: _Particle) -> None:
        d = len(self.space)
        drawn = self.rng.integers(0, len(self._archive), 2).min()  # a tournament of two: best first
        to_own = particle.best.indices - particle.position
        to_leader = self._archive[drawn].indices - particle.position
        particle.velocity = (
            self.inertia * particle.velocity
            + self.own * self.rng.random(d) * to_own
            + self.leader * self.rng.random(d) * to_leader
        )
        particle.position = np.clip(particle.position + particle.velocity, 0.0, self.space.counts - 1.0)


def sample(rng: np.random.Generator, position: np.ndarray) -> np.ndarray:
    """One of the two options next to each mean [choices], the nearer the likelier; int64 [choices]."""
    return np.floor(position + rng.random(len(position))).astype(np.int64)


def _arrays(bests: list[_Best]) -> tuple[np.ndarray, np.ndarray]:
    """Losses [n, objectives] and violations [n]."""
    return np.array([b.loss for b in bests]), np.array([b.violation for b in bests])
