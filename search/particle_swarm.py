"""Particle swarm over distributions: a particle is a probability for every option, not a rounded point."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..results.objective import Objective
from ..results.trial import Trial
from ..spaces import Candidate, Space
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
    position: np.ndarray  # probabilities [choices, most options], rows sum to 1
    best: _Best
    velocity: np.ndarray | float = 0.0  # [choices, most options]


class ParticleSwarm(Evolution):
    """Integer and categorical particle swarm (Strasser, Goodman, Sheppard and Butcher, GECCO 2016, eqs. 3 to
    7), which extends the binary swarm of Kennedy and Eberhart (SMC 1997) to any number of options.

    A particle's position is a distribution over the options of every choice; a candidate is sampled from it.
    The velocity, on the probabilities, is ``inertia`` of the last one plus random shares of the way to the
    particle's best and to a leader's. A best is a sampled candidate as a distribution that favours its
    options and, less, those near them (options are ordered). With several objectives leaders are drawn from the
    archive of the best ``population`` trials by tournaments on front and crowding (Raquel and Naval, GECCO
    2005), and a new candidate becomes the particle's best unless the old one dominates it.

    A particle moves as soon as what it sampled last is known, so there is no barrier; with ``steady=False``
    all move together. Trials that were never asked for enter the archive and so lead. Options as
    :class:`Evolution`, where ``population`` is the number of particles too.

    Args:
        inertia: in [0, 1).
        own, leader: greatest share of the way to the particle's own best, and to the leader's; positive.
        moves: choices in which a sample of a best's distribution differs from the best on average; positive.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        space: Space,
        objectives: Iterable[Objective | str],
        *,
        inertia: float = 0.5,
        own: float = 1.0,
        leader: float = 1.0,
        moves: float = 1.5,
        **options: Any,
    ) -> None:
        super().__init__(space, objectives, **options)
        if not (0.0 <= inertia < 1.0 and own > 0.0 and leader > 0.0 and moves > 0.0):
            raise ValueError(
                "inertia must be in [0, 1), own, leader and moves positive, got "
                f"{inertia}, {own}, {leader} and {moves}"
            )
        self.inertia, self.own, self.leader = inertia, own, leader
        # Weights s^|i - best| leave the best's option with probability 2 s / (1 + s), far from the ends.
        move = min(moves / len(space), 0.8)
        self.spread = move / (2.0 - move)
        self._particles: list[_Particle] = []
        self._free: list[_Particle] = []  # those whose sample is known, in the order of becoming so
        self._flying: dict[Candidate, _Particle] = {}
        self._archive: list[_Best] = []  # best first

    def learn(self, trial: Trial, loss: np.ndarray, violation: float) -> None:
        new = _Best(np.asarray(trial.candidate.indices), loss, violation)
        self._archive.append(new)
        order = best_first(*_arrays(self._archive))
        self._archive = [self._archive[i] for i in order[: self.population]]
        particle = self._flying.pop(trial.candidate, None)
        if particle is None and len(self._particles) < self.population:
            particle = _Particle(self.distribution(new.indices), new)
            self._particles.append(particle)
        elif particle is not None:
            before, after = ranks(*_arrays([particle.best, new]))
            particle.best = new if after <= before else particle.best
        if particle is not None:
            self._free.append(particle)

    def breed(self, n: int) -> Iterable[np.ndarray]:
        particle = (
            self._free.pop(0) if self._free else self._particles[self.rng.integers(len(self._particles))]
        )
        self._move(particle)
        indices = self._sample(particle)
        for _ in range(ATTEMPTS):
            candidate = Candidate(tuple(indices.tolist()), self.space.choices)
            if not self.seen(candidate):
                self._flying[candidate] = particle
                break
            indices = mutate(self.rng, indices[None], self.space.counts)[
                0
            ]  # it has collapsed: go on from there
        return [indices]

    def distribution(self, indices: np.ndarray) -> np.ndarray:
        """Probabilities [choices, most options] around a candidate; 0 for options that a choice lacks."""
        option = np.arange(self.space.counts.max())
        weight = self.spread ** np.abs(option - indices[:, None]) * (option < self.space.counts[:, None])
        return weight / weight.sum(axis=1, keepdims=True)

    def _move(self, particle: _Particle) -> None:
        shape = (len(self.space), 1)
        drawn = self.rng.integers(0, len(self._archive), 2).min()  # a tournament of two: best first
        to_own = self.distribution(particle.best.indices) - particle.position
        to_leader = self.distribution(self._archive[drawn].indices) - particle.position
        particle.velocity = (
            self.inertia * particle.velocity
            + self.own * self.rng.random(shape) * to_own
            + self.leader * self.rng.random(shape) * to_leader
        )
        moved = np.clip(particle.position + particle.velocity, 0.0, 1.0)
        total = moved.sum(axis=1, keepdims=True)
        particle.position = np.where(
            total > 0.0, moved / np.where(total > 0.0, total, 1.0), particle.position
        )

    def _sample(self, particle: _Particle) -> np.ndarray:
        """An option of every choice by inverting the cumulated probabilities; int64 [choices]."""
        below = particle.position.cumsum(axis=1) < self.rng.random((len(self.space), 1))
        return np.minimum(below.sum(axis=1), self.space.counts - 1)


def _arrays(bests: list[_Best]) -> tuple[np.ndarray, np.ndarray]:
    """Losses [n, objectives] and violations [n]."""
    return np.array([b.loss for b in bests]), np.array([b.violation for b in bests])
