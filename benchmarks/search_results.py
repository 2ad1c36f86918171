"""What the search benchmark measures, and what of it the goals ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

MARKS = (50, 100, 200)  # evaluations
SHARE = 0.995  # of the true hypervolume
WITHIN = 0.98  # of the best fixed searcher
CHOSEN = "auto"


@dataclass(frozen=True)
class Result:
    """One searcher on one problem."""

    name: str
    peer: bool
    curves: np.ndarray  # [seeds, evaluations] hypervolume
    reason: str = ""  # why there are no curves

    def at(self, mark: int) -> np.ndarray:
        """Hypervolume by seed after ``mark`` evaluations."""
        return self.curves[:, mark - 1]

    def needed(self) -> float:
        """Evaluations until :data:`SHARE` of the truth, median over the seeds; inf where not reached."""
        return float(np.median([reached(values, SHARE) for values in self.curves]))


Results = Mapping[str, list[Result]]  # by problem


def reached(values: np.ndarray, share: float) -> float:
    """Evaluations until a curve reaches ``share``; inf where it does not."""
    at = np.flatnonzero(values >= share)
    return float(at[0] + 1) if len(at) else np.inf


def average_ranks(results: Results) -> dict[str, float]:
    """Mean rank (1 is best, ties share) over problems and marks; only of those that did every problem."""
    ranks: dict[str, list[float]] = {}
    for found in results.values():
        done = [r for r in found if len(r.curves)]
        for mark in MARKS:
            means = np.array([r.at(mark).mean() for r in done])
            for r, mean in zip(done, means, strict=True):
                tied = np.isclose(means, mean, rtol=1e-6)
                rank = 1 + int(((means > mean) & ~tied).sum()) + (int(tied.sum()) - 1) / 2
                ranks.setdefault(r.name, []).append(rank)
    full = len(MARKS) * len(results)
    return {name: float(np.mean(r)) for name, r in ranks.items() if len(r) == full}


def goals(results: Results) -> Iterator[tuple[str, bool | None]]:
    """``(what was found, whether the goal is met)`` by goal; None where something is missing for it."""
    yield _fewer_evaluations(results.get("truth", []))
    yield _ahead_at_half(results.get("large", []))
    yield _never_far(results)


def _fewer_evaluations(found: list[Result]) -> tuple[str, bool | None]:
    goal = f"truth: {CHOSEN} needs at most half the evaluations of the best peer to {SHARE:.1%}"
    own, peers = _split(found)
    if own is None or not peers:
        return f"{goal}: not measured", None
    best = min(peers, key=lambda r: (r.needed(), -r.curves[:, -1].mean()))
    # A peer that never gets there would need more than it was given.
    most = min(best.needed(), best.curves.shape[1] + 1)
    text = f"{goal}: {_count(own.needed())} against {_count(best.needed())} ({best.name}{_without(found)})"
    return text, own.needed() <= most / 2


def _ahead_at_half(found: list[Result]) -> tuple[str, bool | None]:
    goal = f"large: {CHOSEN} at 100 ahead of every peer's mean at 200 by more than both deviations"
    own, peers = _split(found)
    if own is None or not peers:
        return f"{goal}: not measured", None
    best = max(peers, key=lambda r: r.at(200).mean())
    mine, theirs = own.at(100), best.at(200)
    met = mine.mean() - theirs.mean() > mine.std() + theirs.std()
    text = f"{goal}: {_plus_minus(mine)} against {_plus_minus(theirs)} ({best.name}{_without(found)})"
    return text, bool(met)


def _never_far(results: Results) -> tuple[str, bool | None]:
    goal = f"{CHOSEN} within {1 - WITHIN:.0%} of the best fixed searcher everywhere, best average rank"
    ratios = {}
    for name, found in results.items():
        own, _ = _split(found)
        fixed = [r for r in found if not r.peer and r.name != CHOSEN and len(r.curves)]
        if own is None or not fixed:
            return f"{goal}: not measured", None
        for mark in MARKS:
            best = max(fixed, key=lambda r: r.at(mark).mean())
            ratios[own.at(mark).mean() / max(best.at(mark).mean(), 1e-12)] = f"{name} at {mark}, {best.name}"
    ranks = average_ranks({n: [r for r in found if not r.peer] for n, found in results.items()})
    best_rank = min(ranks, key=lambda n: ranks[n])
    least = min(ratios)
    met = bool(least >= WITHIN and ranks.get(CHOSEN, np.inf) <= ranks[best_rank])
    text = f"{goal}: least {least:.3f} ({ratios[least]}), best rank {best_rank} {ranks[best_rank]:.1f}"
    return text, met


def _split(found: list[Result]) -> tuple[Result | None, list[Result]]:
    """The chosen searcher, if it ran, and the peers that did."""
    own = next((r for r in found if r.name == CHOSEN and len(r.curves)), None)
    return own, [r for r in found if r.peer and len(r.curves)]


def _without(found: list[Result]) -> str:
    """The peers that a goal says nothing about, or not as much as about the chosen searcher."""
    seeds = max(len(r.curves) for r in found)
    missing = [r.name for r in found if r.peer and not len(r.curves)]
    fewer = [f"{r.name} of {len(r.curves)} seeds" for r in found if r.peer and 0 < len(r.curves) < seeds]
    without = [f"without {', '.join(missing)}"] if missing else []
    return "".join(f"; {part}" for part in without + fewer)


def _count(evaluations: float) -> str:
    return f"{evaluations:.0f}" if np.isfinite(evaluations) else "never"


def _plus_minus(values: np.ndarray) -> str:
    return f"{values.mean():.3f} +- {values.std():.3f}"
