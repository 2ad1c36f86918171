"""Uniform cuts: one ratio for all choices, the opening of every sweep, the line that a search has to beat."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..results.objective import Limit
from ..search.wrappers import violations
from ..spaces import Candidate, Choice, Space

RUNGS = 7  # most that a sweep opens with: all of the ladder, where choices have eight options
SHARE = 8  # one trial of so many, at most, goes into the opening


def ladder(space: Space) -> list[Candidate]:
    """All ratios (of units pruned, of weights masked) raised together, mildest first; nothing else changes.

    Evenly spaced from the first to the last option, :data:`RUNGS` of them, equal ones once. Empty where the
    space has no model, or no choice among ratios: one may drop a block or not, but not uniformly so.
    """
    graded = np.array([_is_ratio(choice) for choice in space.choices])
    if space.model is None or not graded.any():
        return []
    last = np.where(graded, space.counts - 1, 0)
    rows = [np.floor(rung / RUNGS * last + 0.5).astype(np.int64) for rung in range(1, RUNGS + 1)]
    found = dict.fromkeys(space.candidate(row) for row in rows)
    found.pop(space.baseline, None)
    return list(found)


def opening(space: Space, limits: Iterable[Limit], trials: int | None) -> list[Candidate]:
    """The uniform cuts that a sweep begins with: those that keep the limits on analytic costs, evenly spaced
    where the number of trials leaves room for some only.

    Args:
        trials: of the sweep; None: as many as there is time for.
    """
    rungs = ladder(space)
    if not rungs:
        return []
    baseline = {name: float(values[0]) for name, values in space.cost_arrays([space.baseline]).items()}
    kept = violations(space, list(limits), baseline, rungs) <= 0.0
    rungs = [rung for rung, keeps in zip(rungs, kept, strict=True) if keeps]
    count = min(len(rungs), RUNGS if trials is None else trials // SHARE)
    return [rungs[int((k + 0.5) * len(rungs) / count)] for k in range(count)]


def _is_ratio(choice: Choice) -> bool:
    """Are its options ratios, 0.0 (unchanged) first? Decisions that are not graded have other options."""
    return (
        len(choice) > 1
        and choice.options[0] == 0.0
        and all(isinstance(option, float) and 0.0 <= option < 1.0 for option in choice.options)
    )
