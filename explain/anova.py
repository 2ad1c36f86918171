"""Functional analysis of variance over a finite product of choices, each option as likely as the others.

A function f on the product falls apart into f = f_0 + sum_d f_d + sum_{d<e} f_de + ..., whose parts are
uncorrelated, so that their variances add up to that of f. For a regression tree all of it is exact, since a
tree is constant on the boxes of its leaves (Hutter, Hoos and Leyton-Brown 2014, "An efficient approach for
assessing hyperparameter importance", section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np


@dataclass(frozen=True)
class Boxes:
    """A function that is constant on boxes which share out the product of choices.

    ``inside[d]`` tells which options of choice d each box holds.
    """

    values: np.ndarray  # [boxes] float64
    inside: tuple[np.ndarray, ...]  # per choice [boxes, options] bool

    @property
    def shares(self) -> np.ndarray:
        """[boxes, choices]: the share of each choice's options that a box holds."""
        return np.stack([inside.mean(axis=1) for inside in self.inside], axis=1)


def tree_boxes(
    left: np.ndarray,
    right: np.ndarray,
    feature: np.ndarray,
    threshold: np.ndarray,
    values: np.ndarray,
    counts: Sequence[int],
) -> Boxes:
    """The leaves of a binary tree over option indices, as scikit-learn keeps it.

    Args:
        left, right: [nodes] int, children; -1 at leaves. ``x[feature] <= threshold`` goes left.
        feature, threshold, values: [nodes].
        counts: options of each choice; their indices are what the tree was grown on.
    """
    ends = np.cumsum(counts).tolist()
    starts = [0, *ends]
    children = list(zip(left.tolist(), right.tolist(), strict=True))
    # How many options of the choice go left: they are 0, 1, 2, ..., so those up to the threshold.
    lower = [
        min(max(math.floor(t) + 1, 0), counts[d]) if d >= 0 else 0
        for d, t in zip(feature.tolist(), threshold.tolist(), strict=True)
    ]
    features, means = feature.tolist(), values.tolist()
    boxes: list[np.ndarray] = []  # [options of all choices, one after the other]
    leaves: list[float] = []
    stack = [(0, np.ones(ends[-1], dtype=bool))]
    while stack:
        node, inside = stack.pop()
        below, above = children[node]
        if below < 0:
            boxes.append(inside)
            leaves.append(means[node])
            continue
        d = features[node]
        first, end = starts[d], ends[d]
        other = inside.copy()
        inside[first + lower[node] : end] = False
        other[first : first + lower[node]] = False
        stack += [(below, inside), (above, other)]
    return Boxes(np.array(leaves), tuple(np.split(np.stack(boxes), ends[:-1], axis=1)))


class Anova:
    """Means and variances of one function on boxes.

    Attributes:
        mean: f_0.
        variance: of f over the whole product.
        effects: per choice f_d [options], with mean 0.
    """

    def __init__(self, boxes: Boxes) -> None:
        self._boxes = boxes
        self._shares = boxes.shares
        self._volumes = self._shares.prod(axis=1)  # [boxes], they sum to 1
        self.mean = float(self._volumes @ boxes.values)
        # Boxes share out the product: E[f^2] is a sum over boxes too.
        self.variance = float(max(0.0, self._volumes @ (boxes.values - self.mean) ** 2))
        self.effects = [self._marginal(d) - self.mean for d in range(len(boxes.inside))]

    @cached_property
    def main(self) -> np.ndarray:
        """[choices]: variance of each f_d."""
        return np.array([np.mean(effect**2) for effect in self.effects])

    def _within(self, d: int) -> np.ndarray:
        """[boxes, options]: density of each box along one choice: 1 / (share of the options that it holds) at
        these, 0 elsewhere."""
        return self._boxes.inside[d] / self._shares[:, d, None]

    def _marginal(self, d: int) -> np.ndarray:
        """[options]: mean where the option is taken."""
        return (self._boxes.values * self._volumes) @ self._within(d)

    def pair(self, d: int, e: int) -> np.ndarray:
        """f_de [options of d, options of e]: what the two do together beyond what each does alone."""
        return self.pairs([(d, e)])[(d, e)]

    def pairs(self, wanted: Sequence[tuple[int, int]]) -> dict[tuple[int, int], np.ndarray]:
        """:meth:`pair` of several."""
        within = {d: self._within(d) for d in {d for pair in wanted for d in pair}}
        weights = self._boxes.values * self._volumes
        weighted = {d: within[d].T * weights for d in {d for d, _ in wanted}}
        return {
            (d, e): weighted[d] @ within[e] - self.mean - self.effects[d][:, None] - self.effects[e][None]
            for d, e in wanted
        }


@dataclass(frozen=True)
class Shares:
    """Which share of a function's variance comes from which choices."""

    main: np.ndarray  # [choices], of each alone
    pairs: dict[tuple[int, int], float]  # of two together, beyond each alone
    effects: list[np.ndarray]  # per choice [options]: mean of f where the option is taken, less the mean of f


def average(analyses: Sequence[Anova], pairs: Sequence[tuple[int, int]]) -> Shares:
    """Shares of each function, averaged over those that vary at all (as the paper does over trees).

    Raises:
        ValueError: none varies.
    """
    scale = max(abs(a.mean) for a in analyses)
    varied = [a for a in analyses if a.variance > (1e-12 * scale) ** 2]
    if not varied:
        raise ValueError("the function is constant, so there is no variance to share out")
    main = np.mean([a.main / a.variance for a in varied], axis=0)
    shared = dict.fromkeys(pairs, 0.0)
    for analysis in varied:
        for pair, part in analysis.pairs(pairs).items():
            shared[pair] += float(np.mean(part**2)) / analysis.variance / len(varied)
    count = len(analyses[0].effects)
    effects = [np.mean([a.effects[d] for a in analyses], axis=0) for d in range(count)]
    return Shares(main, shared, effects)


def factorial(table: np.ndarray) -> dict[tuple[int, ...], float]:
    """Variance of every part of a function that is known everywhere, by the axes of the part.

    Args:
        table: [options of choice 0, options of choice 1, ...].

    Returns:
        All non-empty subsets of axes; the variances add up to that of the table. 2^axes of them.
    """
    axes = range(table.ndim)
    parts: dict[tuple[int, ...], np.ndarray] = {(): np.asarray(table.mean()).reshape((1,) * table.ndim)}
    for size in range(1, table.ndim + 1):
        for subset in combinations(axes, size):
            others = tuple(a for a in axes if a not in subset)
            part = table.mean(axis=others, keepdims=True)
            for smaller in range(size):
                for inner in combinations(subset, smaller):
                    part = part - parts[inner]
            parts[subset] = part
    return {subset: float(np.mean(part**2)) for subset, part in parts.items() if subset}
