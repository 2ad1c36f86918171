"""AGE-MOEA-II: survival by the geometry that the front turns out to have."""

from __future__ import annotations

from typing import Any

import numpy as np
from pymoo.algorithms.base.genetic import GeneticAlgorithm
from pymoo.algorithms.moo.nsga2 import NSGA2 as PymooNSGA2  # noqa: N811
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.survival import Survival

from .pymoo_algorithms import PymooSearcher
from .ranking import ranks

FLAT, SHARPEST = 0.1, 20.0  # curvatures p between which the front's is looked for


class AGEMOEA(PymooSearcher):
    """Adaptive geometry estimation (Panichella, GECCO 2019; version II: Panichella, GECCO 2022).

    The first front is taken for the part of the unit sphere of an L_p norm that fits its middle: p = 1 is a
    plane, p > 1 concave, p < 1 convex. Survivors are near the ideal point in that norm and far from each
    other along that surface. The survival is written here, in numpy: pymoo's needs numba. Options and the
    steady state as :class:`Evolution`.
    """

    def algorithm(self, **common: Any) -> GeneticAlgorithm:
        made = PymooNSGA2(survival=_Survival(), **common)
        made.tournament_type = "comp_by_rank_and_crowding"
        return made


class _Survival(Survival):
    def __init__(self) -> None:
        super().__init__(filter_infeasible=True)

    def _do(self, problem: Problem, pop: Population, *_: Any, n_survive: int, **__: Any) -> Population:
        losses = pop.get("F").astype(np.float64)
        rank = ranks(losses, np.zeros(len(losses)))
        score = survival_scores(losses, rank)
        pop.set("rank", rank, "crowding", score)
        return pop[np.lexsort((-score, rank))[:n_survive]]


def survival_scores(losses: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """How much each point is worth keeping, among those of its rank; float64 [n], inf for the extremes.

    Diversity over proximity in the first front (Panichella 2022, algorithm 3), proximity in the others.

    Args:
        losses: [n, objectives], minimised, finite.
        rank: int [n], 0 for the first front.
    """
    first = rank == 0
    translated = losses - losses[first].min(axis=0)
    extreme = _extremes(translated[first])
    points = translated / _intercepts(translated[first], extreme)
    p = curvature(points[first], extreme)
    proximity = np.maximum(_norm(points, p), 1e-8)
    score = 1.0 / proximity
    score[first] = _diversity(_distances(points[first], p) / proximity[first][:, None], extreme)
    return score


def curvature(points: np.ndarray, extreme: np.ndarray) -> float:
    """The p for which the point nearest to the ideal, not an extreme, has an L_p norm of 1.

    Args:
        points: [n, objectives], the first front with the ideal at 0 and the extremes at about 1.
        extreme: indices into ``points``.
    """
    inner = np.delete(points, extreme, axis=0)
    if not len(inner):
        return 1.0
    middle = inner[np.argmin((inner**2).sum(axis=1))]
    middle = middle[middle > 0.0]
    if len(middle) < 2 or (middle >= 1.0).any():
        return 1.0
    low, high = FLAT, SHARPEST
    for _ in range(40):  # sum of z_j^p falls with p
        p = (low + high) / 2
        low, high = (p, high) if (middle**p).sum() > 1.0 else (low, p)
    return (low + high) / 2


def _extremes(points: np.ndarray) -> np.ndarray:
    """For every objective the point nearest to its axis, each point once; int [at most objectives]."""
    chosen: list[int] = []
    for j in range(min(points.shape)):
        off_axis = np.delete(points, j, axis=1)
        distance = (off_axis**2).sum(axis=1)
        distance[chosen] = np.inf
        chosen.append(int(np.argmin(distance)))
    return np.array(chosen)


def _intercepts(points: np.ndarray, extreme: np.ndarray) -> np.ndarray:
    """Where the plane through the extremes cuts the axes, else the largest values; [objectives]."""
    largest = points.max(axis=0)
    scale = largest
    if len(extreme) == points.shape[1]:
        try:
            plane = np.linalg.solve(points[extreme], np.ones(len(extreme)))
            scale = 1.0 / plane if (plane > 1e-12).all() else largest
        except np.linalg.LinAlgError:
            pass
    return np.where(scale > 0.0, scale, 1.0)


def _norm(points: np.ndarray, p: float) -> np.ndarray:
    """L_p norms [n] of points [n, objectives], which are not negative; without overflow."""
    largest = np.maximum(points.max(axis=-1), 1e-300)
    return largest * ((points / largest[..., None]) ** p).sum(axis=-1) ** (1.0 / p)


def _distances(points: np.ndarray, p: float) -> np.ndarray:
    """Distances along the surface of L_p norm 1, by way of the projected midpoint; [n, n]."""

    def project(x: np.ndarray) -> np.ndarray:
        return x / np.maximum(_norm(x, p), 1e-12)[..., None]

    on = project(points)
    half = project((on[:, None] + on[None]) / 2)  # [n, n, objectives]
    return np.linalg.norm(on[:, None] - half, axis=-1) + np.linalg.norm(on[None] - half, axis=-1)


def _diversity(distance: np.ndarray, extreme: np.ndarray) -> np.ndarray:
    """The extremes first, then always the point farthest from the chosen: its two smallest distances."""
    n = len(distance)
    score = np.full(n, -np.inf)
    score[extreme] = np.inf
    nearest = np.sort(distance[:, extreme], axis=1)[:, :2]  # the two smallest so far
    if nearest.shape[1] == 1:
        nearest = np.hstack([nearest, nearest])
    for _ in range(n - len(extreme)):
        best = int(np.argmax(np.where(np.isneginf(score), nearest.sum(axis=1), -np.inf)))
        score[best] = nearest[best].sum()
        nearest = np.sort(np.column_stack((nearest, distance[:, best])), axis=1)[:, :2]
    return score
