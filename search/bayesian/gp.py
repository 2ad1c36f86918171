"""Gaussian process searchers: ``gp``, and ``auto``, the one to use when nothing speaks for another."""

from __future__ import annotations

import numpy as np

from ..evolutionary.evolution import scattered
from .bayesian import Bayesian

BEGIN = 10  # random candidates, beside the two extremes


class GP(Bayesian):
    """Bayesian optimisation with a kernel that knows the space, and with exact costs.

    Proposes what is expected to add most hypervolume to the front of all trials (exact expected improvement:
    Yang, Emmerich, Deutz and Bäck 2019), after a beginning of random candidates of random mean compression.
    Modelled are only the objectives that have to be measured: :class:`~.kernel.OptionKernel` (additive and
    joint, along ordered options), on a learnt scale (:class:`~.warp.Warp`). For at most a few hundred trials
    that each cost seconds or more; ``auto`` does the same for less and knows what users look for.
    """

    most = 320
    pool = 256
    patience = 500

    def design(self) -> np.ndarray:
        counts = self.space.counts
        extremes = np.stack([np.zeros_like(counts), counts - 1])
        return np.vstack([extremes, scattered(self.rng, counts, BEGIN)])

    def worth(self, away: np.ndarray, seen: np.ndarray, anchor: float) -> np.ndarray:
        return away


# -- The searcher to use when nothing speaks for another ------------------------------------------------

LADDER = 8  # candidates of uniform compression, both extremes included
ALONE = 4  # rungs of one kind's own ladder, where there are several
BASE = 1 / 3  # of the way to the most compressed: where each choice alone is pushed to its end
PROBES = 12  # at most; with more choices, neighbouring ones are pushed together
REGION = 0.1  # of the unchanged model's score, or of the range seen: the damage that users consider
EDGE = 4  # how steeply interest falls beyond it: to 1 / (1 + (damage / REGION)^EDGE)
BEYOND = 0.02  # what being better than everything seen is worth, beside being as good at less cost


class Auto(Bayesian):
    """Cheap and informative first, then what adds most to the front, region of interest first.

    1. The unchanged model, and a ladder of uniform compression down to the most compressed; where several
       kinds of choices have grades, one of each kind alone too.
    2. A sensitivity table around a mildly compressed network: each choice alone at its end. Around the
       unchanged one most choices show no damage at all, further down all do.
    3. Accuracy (whatever is not analytic) modelled by Gaussian processes, costs exact; candidates of largest
       expected hypervolume improvement, weighted by interest (Zitzler, Brockhoff and Thiele 2007): all
       of it for a damage within a tenth of the unchanged model's score (or of the range seen, if that is
       more), little beyond.

    Without a model behind the space, all objectives are modelled; an objective that compression improves, or
    does not change, is weighted evenly. Conditions on the 192 trials nearest to the front, and proposes
    several candidates at a time when there are many trials, so that a proposal stays cheap.
    """

    most = 192
    pool = 256
    patience = 25

    def design(self) -> np.ndarray:
        last = np.where(self.space.neutral, 0, self.space.counts - 1)  # of splits the costs tell all
        shares = np.concatenate([[0.0, 1.0], np.linspace(0.0, 1.0, LADDER)[1:-1]])
        ladder = np.floor(shares[:, None] * last + 0.5).astype(np.int64)
        some = np.flatnonzero(last) if last.any() else np.arange(len(last))
        bundles = np.array_split(some, min(len(some), PROBES))
        probes = np.tile(np.floor(BASE * last + 0.5).astype(np.int64), (len(bundles), 1))
        for i, bundle in enumerate(bundles):
            probes[i, bundle] = last[bundle]
        return np.vstack([ladder, *self._alone(last), probes])

    def _alone(self, last: np.ndarray) -> list[np.ndarray]:
        """Ladders of one kind of choices each, the others unchanged: [rungs, choices] each, a kind a ladder.

        Choices between there and not there have no grades. None where fewer than two kinds have some.
        """
        of: dict[int, list[int]] = {}
        for i in np.flatnonzero(last > 1).tolist():
            of.setdefault(id(self.space.choices[i].kind), []).append(i)
        if len(of) < 2:
            return []
        ladders = [np.zeros((ALONE, len(last)), dtype=np.int64) for _ in of]
        for rows, columns in zip(ladders, of.values(), strict=True):
            shares = np.arange(1, ALONE + 1)[:, None] / ALONE
            rows[:, columns] = np.floor(shares * last[columns] + 0.5)
        return ladders

    def worth(self, away: np.ndarray, seen: np.ndarray, anchor: float) -> np.ndarray:
        reach, best = float(np.abs(seen).max()), float(seen.min())
        if reach == 0.0 or -best > reach / 2:  # not harmed by compression
            return away
        region = REGION * max(reach, abs(anchor))
        density = 1.0 / (1.0 + (np.maximum(away, 0.0) / region) ** EDGE)
        density[away <= best] = BEYOND
        steps = 0.5 * (density[1:] + density[:-1]) * np.diff(away)  # trapezoids
        return np.concatenate([[0.0], np.cumsum(steps)])
