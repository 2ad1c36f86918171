"""Shapley values: what each of several players adds to a worth that they make together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import factorial

import numpy as np

MOST_EXACT = 10  # players: 1024 coalitions
Worth = Callable[[np.ndarray], float]  # [players] bool, who takes part -> worth


@dataclass(frozen=True)
class Values:
    """What each player adds."""

    values: np.ndarray  # [players]; they sum to worth(all) - worth(none)
    errors: np.ndarray  # [players]: standard errors, 0 where exact
    alone: np.ndarray  # [players]: worth(player alone) - worth(none)
    last: np.ndarray  # [players]: worth(all) - worth(all but the player)
    interactions: np.ndarray | None  # [players, players], zero diagonal; None where values were sampled
    none: float  # worth of nobody
    all: float  # worth of everybody
    exact: bool
    evaluations: int  # coalitions whose worth was asked for


def exact_values(table: np.ndarray) -> np.ndarray:
    """Shapley values [players] of a worth known for all coalitions.

    Args:
        table: [2^players]; bit i of the position says whether player i takes part (Shapley 1953).
    """
    n = _players(table)
    sizes, members = _coalitions(n)
    out = np.empty(n)
    # phi_i = sum over S without i of |S|! (n-|S|-1)! / n! (v(S+i) - v(S))
    weights = np.array([factorial(s) * factorial(n - s - 1) / factorial(n) for s in range(n)])
    for i in range(n):
        without = np.flatnonzero(~members[:, i])
        out[i] = np.sum(weights[sizes[without]] * (table[without | (1 << i)] - table[without]))
    return out


def interaction_index(table: np.ndarray) -> np.ndarray:
    """Pairwise Shapley interaction index [players, players], zero diagonal (Grabisch and Roubens 1999).

    Positive where two players add more together than apart; 0 for all pairs of an additive worth.

    Args:
        table: as for :func:`exact_values`.
    """
    n = _players(table)
    sizes, members = _coalitions(n)
    out = np.zeros((n, n))
    weights = np.array([factorial(s) * factorial(n - s - 2) / factorial(n - 1) for s in range(max(0, n - 1))])
    for i in range(n):
        for j in range(i):
            without = np.flatnonzero(~(members[:, i] | members[:, j]))
            one, other = without | (1 << i), without | (1 << j)
            second = table[one | other] - table[one] - table[other] + table[without]
            out[i, j] = out[j, i] = np.sum(weights[sizes[without]] * second)
    return out


def shapley(
    worth: Worth,
    players: int,
    *,
    most_exact: int = MOST_EXACT,
    permutations: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Values:
    """Shapley values, exact for few players, else by sampled permutations.

    Sampling takes permutations in antithetic pairs, each with its reverse (Mitchell et al. 2022, section 4),
    and keeps efficiency: the values add up to worth(all) - worth(none) exactly.

    Args:
        worth: called once for each coalition; must give the same for the same.
        players: at least 1.
        most_exact: players for whom all coalitions are asked for.
        permutations: sampled where there are too many players; rounded up to an even number.
        progress: told (coalitions done, most that may come).

    Raises:
        ValueError: no players.
    """
    if players < 1:
        raise ValueError(f"Shapley values need at least one player, got {players}")
    known: dict[bytes, float] = {}
    most = (
        2**players
        if players <= most_exact
        else (permutations + permutations % 2) * (players - 1) + 2 * players + 2
    )

    def of(members: np.ndarray) -> float:
        key = np.packbits(members).tobytes()
        if key not in known:
            known[key] = float(worth(members.copy()))
            progress(len(known), max(most, len(known)))
        return known[key]

    everyone, eye = np.ones(players, dtype=bool), np.eye(players, dtype=bool)
    none, whole = of(~everyone), of(everyone)
    alone = np.array([of(row) for row in eye]) - none
    last = whole - np.array([of(~row) for row in eye])
    if players <= most_exact:
        table = np.array([of(row) for row in _coalitions(players)[1]])
        values, errors = exact_values(table), np.zeros(players)
        interactions = interaction_index(table)
    else:
        values, errors = _sampled(of, players, permutations, seed)
        interactions = None
    return Values(
        values, errors, alone, last, interactions, none, whole, players <= most_exact, evaluations=len(known)
    )


def _sampled(of: Worth, players: int, permutations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pairs = [_pair(of, rng.permutation(players)) for _ in range((permutations + 1) // 2)]
    gains = np.array(pairs)  # [pairs, players]
    spread = gains.std(axis=0, ddof=1) if len(gains) > 1 else np.full(players, np.nan)
    return gains.mean(axis=0), spread / np.sqrt(len(gains))


def _pair(of: Worth, order: np.ndarray) -> np.ndarray:
    """Mean gain of each player when all come in this order, and in the reverse."""
    return (_gains(of, order) + _gains(of, order[::-1])) / 2


def _gains(of: Worth, order: Sequence[int] | np.ndarray) -> np.ndarray:
    members = np.zeros(len(order), dtype=bool)
    gains = np.empty(len(order))
    before = of(members)
    for player in order:
        members[player] = True
        after = of(members)
        gains[player] = after - before
        before = after
    return gains


def _players(table: np.ndarray) -> int:
    n = len(table).bit_length() - 1
    if table.ndim != 1 or n < 1 or len(table) != 1 << n:
        raise ValueError(f"a worth of all coalitions has 2^players values, got shape {table.shape}")
    return n


def _coalitions(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Sizes [2^n] and members [2^n, n] bool of all coalitions."""
    members = (np.arange(1 << n)[:, None] >> np.arange(n)) & 1 == 1
    return members.sum(axis=1), members
