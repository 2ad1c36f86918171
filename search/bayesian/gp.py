"""A Gaussian process on what is unknown, and expected hypervolume improvement."""

from __future__ import annotations

import numpy as np

from ..evolutionary.variation import scattered
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
