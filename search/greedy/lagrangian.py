"""Lagrangian sweep: sensitivities and exact cost gradients give a whole front from one table."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from ...results.hypervolume import nondominated
from ...results.objective import Objective
from ...spaces import Candidate, Space
from .additive import Additive, Cost
from .sensitivity import candidates_of, cost_table, predict

ROUNDS = 3  # re-linearisations of the cost around solutions that were found


class Lagrangian(Additive):
    """Minimises damage(x) + lambda cost(x) for every lambda >= 0 at once, proposes the minima, refines.

    With damages that add up and a cost linear around an anchor the problem falls apart into the choices, and
    each answers alone (Shoham and Gersho, IEEE Trans. ASSP 36(9), 1988; Everett, Operations Research 11(3),
    1963): as lambda grows a choice walks down the lower convex hull of its own (cost, damage) points, so all
    solutions come from sorting the hulls' slopes, without a search over lambda. The cost's gradient is exact:
    differences of ``space.cost_arrays`` around the unchanged model, the most compressed, the middle, and then
    around the solutions themselves.

    Fewer measurements than :class:`Additive` before the first proposals (``levels`` per choice, the rest
    interpolated) and time linear in the table's size, so that it is the one for hundreds of choices;
    it misses what lies off the convex hull of the predicted front, where only the neighbours of the measured
    front come. In everything else like :class:`Additive`.
    """

    def __init__(
        self,
        space: Space,
        objectives: Iterable[Objective | str],
        *,
        seed: int = 0,
        levels: int | None = 2,
        batch: int = 8,
    ) -> None:
        super().__init__(space, objectives, seed=seed, levels=levels, batch=batch)

    def combine(self, damage: np.ndarray, cost: Cost) -> list[Candidate]:
        return supported(self.space, damage, cost)


def supported(space: Space, damage: np.ndarray, cost: Cost, *, rounds: int = ROUNDS) -> list[Candidate]:
    """Candidates that minimise damage + lambda cost for some lambda >= 0: a front from a filled table alone.

    Exactly the vertices of the convex hull of the front where the cost adds up over choices. Elsewhere the
    non-dominated of what linearisations around several anchors give, under the exact cost.

    Args:
        damage: filled table [choices, options]; inf entries are never taken.
        cost: float64 [n] for candidates, to minimise.
        rounds: at least 1; in all but the first the anchors are solutions of the round before.

    Returns:
        Least damage first.
    """
    anchors = [space.decode(np.full(len(space), share)) for share in (0.0, 0.5, 1.0)]
    linearised: set[Candidate] = set()
    found: dict[Candidate, float] = {}
    for _ in range(rounds):
        for anchor in anchors:
            if anchor not in linearised:
                linearised.add(anchor)
                walk = candidates_of(space, hull_walk(damage, cost_table(space, cost, anchor)[1]))
                new = [c for c in dict.fromkeys(walk) if c not in found]
                if new:
                    found.update(zip(new, np.asarray(cost(new)).tolist(), strict=True))
        best = _front(found, damage)
        anchors = [best[i] for i in np.linspace(0, len(best) - 1, 4).astype(int)[1:3]]
    return _front(found, damage)


def hull_walk(damage: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Minimisers of damage + lambda cost as lambda grows from 0, int64 [n, choices]; both tables add up.

    Args:
        damage, cost: [choices, options]; options that are inf in either are never taken.

    Raises:
        ValueError: a choice without a finite option.
    """
    start, moves = [], []
    for d in range(len(damage)):
        corners = _lower_hull(cost[d], damage[d])
        if not corners:
            raise ValueError(f"choice {d} has no option with finite entries")
        start.append(corners[0])
        for a, b in pairwise(corners):  # damage rises, cost falls
            moves.append(((damage[d, b] - damage[d, a]) / (cost[d, a] - cost[d, b]), d, b))
    # Stable: of equal slopes a choice's own come in order. Rows between equal slopes are extra, but harmless.
    moves.sort(key=lambda move: move[0])
    walk = np.tile(np.array(start, dtype=np.int64), (len(moves) + 1, 1))
    for row, (_, d, option) in enumerate(moves, start=1):
        walk[row:, d] = option
    return walk


def _lower_hull(cost: np.ndarray, damage: np.ndarray) -> list[int]:
    """Options on the lower left convex hull, from the least damage to the least cost."""
    usable = np.flatnonzero(np.isfinite(cost) & np.isfinite(damage))
    hull: list[int] = []
    for i in sorted(usable.tolist(), key=lambda i: (damage[i], cost[i])):
        if hull and cost[i] >= cost[hull[-1]]:
            continue  # dominated
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            cross = (cost[b] - cost[a]) * (damage[i] - damage[a]) - (damage[b] - damage[a]) * (
                cost[i] - cost[a]
            )
            if cross < 0.0:  # strictly convex at b
                break
            hull.pop()
        hull.append(i)
    return hull


def _front(found: dict[Candidate, float], damage: np.ndarray) -> list[Candidate]:
    candidates = list(found)
    points = np.stack(
        [predict(damage, np.array([c.indices for c in candidates])), np.array(list(found.values()))], axis=1
    )
    _, first = np.unique(points, axis=0, return_index=True)
    best = first[nondominated(points[first])]
    return [candidates[i] for i in best[np.argsort(points[best, 0], kind="stable")]]
