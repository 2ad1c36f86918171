"""Sensitivity tables: what each option does alone, and the best combinations if effects add up.

A *table* is float64 [choices, options]: what taking one option of one choice adds to a quantity, everything
else as in an *anchor* (the unchanged model). Column ``anchor[d]`` of row ``d`` is 0. Entries are NaN where
nothing is known, inf where the option failed or the choice has fewer options than others.

Under the additive model, damage(x) = sum_d table[d, x_d], the best combinations for every budget on a cost
that adds up as well are a multiple-choice knapsack, solved here exactly (:func:`additive_front`). Costs that
do not add up (MACs of a layer depend on the choices before and after it) are linearised around anchors, and
the exact ones decide at the end (:func:`combinations`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...results.hypervolume import nondominated
from ...results.trial import Trial
from ...spaces import Candidate, Space

STATES = 4096  # partial combinations kept by the dynamic programme before it starts to thin them


def probes(space: Space, *, levels: int | None = None, anchor: Candidate | None = None) -> list[Candidate]:
    """Candidates that differ from the anchor in one choice: what the table is made from.

    Ordered so that any beginning is useful: the extreme options of all choices, then those half way, then
    a quarter of the way, ... (van der Corput order).

    Args:
        levels: how many per choice, spread over its options; by default every option.
        anchor: by default the unchanged model.

    Raises:
        ValueError: ``levels`` below 1.
    """
    if levels is not None and levels < 1:
        raise ValueError(f"levels must be at least 1, got {levels}")
    base = (anchor or space.baseline).indices
    out: dict[Candidate, None] = {}
    wanted = [_spread(count, base[d])[:levels] for d, count in enumerate(space.counts.tolist())]
    for level in range(max(map(len, wanted))):
        for d, options in enumerate(wanted):
            if level < len(options):
                out[_replaced(space, base, d, options[level])] = None
    return list(out)


def damage_table(
    space: Space,
    trials: Iterable[Trial],
    loss: Callable[[Trial], float],
    *,
    anchor: Candidate | None = None,
) -> np.ndarray:
    """The table of what trials that differ from the anchor in at most one choice have added to its loss.

    Args:
        trials: any; others are passed over, of equal candidates the last counts.
        loss: a number to minimise; not finite where the trial failed or lacks the metric.

    Returns:
        float64 [choices, options], relative to the anchor's loss. All NaN (but 0 at the anchor, and inf
        where there is no such option) when the anchor has no finite loss.
    """
    base = np.asarray((anchor or space.baseline).indices)
    table = np.full((len(space), int(space.counts.max())), np.nan)
    table[np.arange(table.shape[1]) >= space.counts[:, None]] = np.inf
    values: dict[tuple[int, int], float] = {}
    zero = np.nan
    for trial in trials:
        differs = np.flatnonzero(np.asarray(trial.candidate.indices) != base)
        value = np.inf if trial.failed else float(loss(trial))
        if len(differs) == 0:
            zero = value
        elif len(differs) == 1:
            d = int(differs[0])
            values[d, trial.candidate.indices[d]] = value
    table[np.arange(len(space)), base] = 0.0
    if np.isfinite(zero):
        for (d, i), value in values.items():
            table[d, i] = value - zero if np.isfinite(value) else np.inf
    return table


def fill(table: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The table without NaN: unknown entries from their neighbours.

    Between known options of a choice: linear in the option's index (never below a convex truth). Beyond the
    outermost finite option: inf when anything out there failed, else the last slope goes on. Where only the
    anchor is known: the mean of the other choices at the same share of the way from the first option to the
    last, or 0 everywhere when no choice is known.

    Args:
        table: [choices, options] of :func:`damage_table`.
        counts: [choices], options of each.
    """
    out = table.copy()
    known_rows = []
    for d, count in enumerate(np.asarray(counts).tolist()):
        row = out[d, :count]
        finite = np.flatnonzero(np.isfinite(row))
        if len(finite) > 1 or np.isinf(row).any():
            row[:] = _fill_row(row, finite)
            known_rows.append(d)
    grid = np.linspace(0.0, 1.0, 33)
    rows = [np.interp(grid, np.linspace(0, 1, counts[d]), out[d, : counts[d]]) for d in known_rows]
    rows = [row for row in rows if np.isfinite(row).all()]
    mean = np.mean(rows, axis=0) if rows else np.zeros_like(grid)
    for d, count in enumerate(np.asarray(counts).tolist()):
        row = out[d, :count]
        unknown = np.isnan(row)
        if unknown.any():
            shape = np.interp(np.linspace(0, 1, count), grid, mean)
            row[unknown] = (shape - shape[~unknown][0])[unknown]
    return out


def predict(table: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Sum of the table's entries, float64 [n], for option indices [n, choices]."""
    indices = np.asarray(indices, dtype=np.int64).reshape(-1, len(table))
    return table[np.arange(len(table)), indices].sum(axis=1)


def fit(
    space: Space,
    indices: np.ndarray,
    values: np.ndarray,
    prior: np.ndarray,
    *,
    trust: float = 0.1,
    weights: np.ndarray | None = None,
) -> tuple[float, np.ndarray]:
    """The additive model nearest to a prior table that explains any trials: ridge regression.

    value(x) = intercept + sum_d sum_{j=1..x_d} step[d, j]; the steps from one option to the next are fitted,
    so that a trial also teaches about the options beside its own. Minimises
    ``sum_k weight_k (value_k - model_k)^2 + trust * sum (step - prior step)^2``.

    Args:
        indices: int [n, choices] of trials that succeeded, at least one.
        values: float64 [n], finite.
        prior: a filled table [choices, options]; where it is inf it stays inf.
        trust: weight of the prior, above 0: that of so many trials.
        weights: float64 [n], positive: where the model has to be right; by default 1.

    Returns:
        The intercept (the unchanged model's value) and the table relative to it.
    """
    indices = np.asarray(indices, dtype=np.int64).reshape(-1, len(space))
    width = prior.shape[1]
    finite = np.isfinite(prior)
    base = np.where(finite, prior, 0.0)
    reached = indices[:, :, None] >= np.arange(1, width)  # [n, choices, options - 1]: steps taken
    design = np.concatenate([np.ones((len(indices), 1)), reached.reshape(len(indices), -1)], axis=1)
    rest = values - base[np.arange(len(space)), indices].sum(axis=1)
    ridge = np.full(design.shape[1], trust)
    ridge[0] = 1e-9 * len(values)
    weighted = design if weights is None else design * weights[:, None]
    change = np.linalg.solve(weighted.T @ design + np.diag(ridge), weighted.T @ rest)
    table = base.copy()
    table[:, 1:] += change[1:].reshape(len(space), width - 1).cumsum(axis=1)
    shift = table[:, 0].sum()
    table -= table[:, :1]
    return float(change[0] + shift), np.where(finite, table, np.inf)


def cost_table(
    space: Space, cost: Callable[[list[Candidate]], np.ndarray], anchor: Candidate
) -> tuple[float, np.ndarray]:
    """An exact cost linearised around an anchor: its value there, and what each single change adds.

    Args:
        cost: float64 [n] for candidates, for example ``lambda c: space.cost_arrays(c)["macs"]``.

    Returns:
        The anchor's cost and the table; inf where a choice has no such option.
    """
    base = anchor.indices
    at = [(d, i) for d, count in enumerate(space.counts.tolist()) for i in range(count)]
    values = np.asarray(cost([anchor, *(_replaced(space, base, d, i) for d, i in at)]), dtype=np.float64)
    table = np.full((len(space), int(space.counts.max())), np.inf)
    rows, columns = np.array(at).T
    table[rows, columns] = values[1:] - values[0]
    return float(values[0]), table


@dataclass(frozen=True, slots=True)
class AdditiveFront:
    """The non-dominated combinations under an additive damage and an additive cost, cost ascending."""

    indices: np.ndarray  # int64 [n, choices]
    damage: np.ndarray  # float64 [n], falling
    cost: np.ndarray  # float64 [n], rising
    slack: float  # 0: exact. Else for every combination one of these is no worse with at most this more cost

    def within(self, budget: float) -> int | None:
        """Row of the least damage at a cost of at most ``budget``; None when there is none."""
        affordable = int(np.searchsorted(self.cost, budget, side="right"))
        return affordable - 1 if affordable else None


def additive_front(damage: np.ndarray, cost: np.ndarray, *, states: int | None = STATES) -> AdditiveFront:
    """Every non-dominated (damage, cost) of one option per choice, both sums of table entries.

    Dynamic programming over choices on lists of non-dominated partial sums (Nemhauser and Ullmann,
    Management Science 15(9), 1969; for multiple-choice knapsacks Kellerer, Pferschy and Pisinger 2004,
    section 11.5). Exact; of combinations with equal sums one is kept. A list that outgrows ``states`` is
    thinned to the least damage in each of ``states`` equal intervals of cost, and ``slack`` says what that
    may lose: at most the sum of the interval widths. ``None`` never thins.

    Args:
        damage, cost: [choices, options], not NaN; options that are inf in either are never taken.

    Raises:
        ValueError: NaN in a table, shapes that differ, or a choice without a finite option.
    """
    if damage.shape != cost.shape or np.isnan(damage).any() or np.isnan(cost).any():
        raise ValueError(f"tables must have one shape and no NaN, got {damage.shape} and {cost.shape}")
    usable = np.isfinite(damage) & np.isfinite(cost)
    if not usable.any(axis=1).all():
        raise ValueError(f"choice {int(np.argmin(usable.any(axis=1)))} has no option with finite entries")
    spent, hurt = np.zeros(1), np.zeros(1)
    links: list[tuple[np.ndarray, np.ndarray]] = []  # per choice: parent row, option
    slack = 0.0
    for d in range(len(damage)):
        options = np.flatnonzero(usable[d])
        costs = (spent[:, None] + cost[d, options]).ravel()
        hurts = (hurt[:, None] + damage[d, options]).ravel()
        order = np.lexsort((hurts, costs))
        falls = np.minimum.accumulate(hurts[order])
        keep = order[np.concatenate([[True], falls[1:] < falls[:-1]])]
        if states is not None and len(keep) > states:
            width = (costs[keep[-1]] - costs[keep[0]]) / states
            cell = ((costs[keep] - costs[keep[0]]) / width).astype(np.int64)
            last = np.append(cell[1:] != cell[:-1], True)  # of each interval: the least damage
            last[0] = True  # what is affordable at all stays affordable
            keep = keep[last]
            slack += width
        links.append((keep // len(options), options[keep % len(options)]))
        spent, hurt = costs[keep], hurts[keep]
    indices = np.empty((len(spent), len(damage)), dtype=np.int64)
    row = np.arange(len(spent))
    for d in range(len(damage) - 1, -1, -1):
        parent, option = links[d]
        indices[:, d] = option[row]
        row = parent[row]
    return AdditiveFront(indices, hurt, spent, slack)


def combinations(
    space: Space,
    damage: np.ndarray,
    cost: Callable[[list[Candidate]], np.ndarray],
    *,
    anchors: int = 5,
    states: int | None = STATES,
) -> tuple[list[Candidate], np.ndarray]:
    """The best combinations for every budget under an additive damage and an exact cost.

    Where the cost adds up over choices the result is the exact front. Elsewhere it is linearised around
    ``anchors`` points on the diagonal from the unchanged to the most compressed candidate; the front of each
    linearisation is computed exactly, and of all of them the non-dominated under the exact cost remain: what
    is given is exact, that nothing better exists is not proven.

    Args:
        damage: a filled table [choices, options].
        cost: float64 [n] for candidates.

    Returns:
        Candidates, least damage first, and float64 [n, 2]: predicted damage, exact cost.
    """
    seen: dict[Candidate, None] = {}
    for share in np.linspace(0.0, 1.0, anchors):
        anchor = space.decode(np.full(len(space), share))
        _, table = cost_table(space, cost, anchor)
        front = additive_front(damage, table, states=states)
        seen.update(dict.fromkeys(Candidate(tuple(row), space.choices) for row in front.indices.tolist()))
        if np.abs(_curvature(space, cost, anchor, table)) <= 1e-9 * np.abs(table[np.isfinite(table)]).max():
            break
    found = list(seen)
    points = np.stack([predict(damage, np.array([c.indices for c in found])), cost(found)], axis=1)
    _, first = np.unique(points, axis=0, return_index=True)
    best = first[nondominated(points[first])]
    best = best[np.lexsort((points[best, 1], points[best, 0]))]
    return [found[i] for i in best], points[best]


def candidates_of(space: Space, indices: np.ndarray) -> list[Candidate]:
    """Rows of valid option indices [n, choices] as candidates."""
    return [Candidate(tuple(row), space.choices) for row in np.asarray(indices).tolist()]


def losses_of(trials: Sequence[Trial], loss: Callable[[Trial], float]) -> tuple[np.ndarray, np.ndarray]:
    """Option indices [n, choices] and losses [n] of the trials whose loss is finite."""
    pairs = [(t.candidate.indices, value) for t in trials if np.isfinite(value := loss(t))]
    return np.array([p[0] for p in pairs], dtype=np.int64), np.array([p[1] for p in pairs])


def _replaced(space: Space, base: tuple[int, ...], d: int, option: int) -> Candidate:
    return Candidate((*base[:d], option, *base[d + 1 :]), space.choices)


def _spread(count: int, anchor: int) -> list[int]:
    """All options but the anchor: last, first, then ever finer halves."""
    order = dict.fromkeys([count - 1, 0])
    parts = 2
    while len(order) < count:
        order.update(dict.fromkeys(round((count - 1) * k / parts) for k in range(1, parts, 2)))
        parts *= 2
    order.pop(anchor)
    return list(order)


def _fill_row(row: np.ndarray, finite: np.ndarray) -> np.ndarray:
    at = np.arange(len(row), dtype=np.float64)
    out = np.where(np.isnan(row), np.interp(at, finite, row[finite]), row)
    for outer, inner, beyond in (
        (finite[-1], finite[-2:-1], at > finite[-1]),
        (finite[0], finite[1:2], at < finite[0]),
    ):
        unknown = beyond & np.isnan(row)
        if np.isinf(row[beyond]).any() or not len(inner):
            out[unknown] = np.inf
        else:
            slope = (row[outer] - row[inner[0]]) / (outer - inner[0])
            out[unknown] = row[outer] + slope * (at[unknown] - outer)
    return out


def _curvature(
    space: Space, cost: Callable[[list[Candidate]], np.ndarray], anchor: Candidate, table: np.ndarray
) -> float:
    """How far the cost is from adding up, on candidates that change everything."""
    rng = np.random.default_rng(0)
    some = [*space.sample(rng, 64), space.candidate(space.counts - 1), space.baseline]
    linear = predict(table, np.array([c.indices for c in some]))
    exact = np.asarray(cost(some)) - float(cost([anchor])[0])
    return float(np.abs(exact - linear).max())
