"""How well the layers that read a group could do without each unit, once the others make up for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from ..coupling import Group
from ..repair import Calibration
from ..repair.consumers import Consumer, block_weights
from ..repair.least_squares import moments
from .elimination import Quadratic, backward_elimination
from .magnitude import l1

LEAST_RIDGE = 1e-6  # downdating the inverse loses as many digits as its condition number has


class Reconstruction:
    """Scores by backward elimination on the calibration data, each order nested.

    The loss of a unit is the increase of the squared output error of the layers that read it, after the
    least-squares repair, each relative to the energy of its output. Groups that no layer's
    weights read are scored by :func:`l1`.

    See :mod:`.elimination` for the sources.
    """

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration
        self._inverses: dict[tuple[int, int, bool], tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, group: Group, parameters: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Scores [units]: units given up first have 0, those given up next 1, and so on."""
        losses = [
            loss
            for consumer in self._calibration.consumers
            for loss in self._losses(consumer, group, parameters[consumer.weight])
        ]
        if not losses:
            return l1(group, parameters)
        order, _ = backward_elimination(group.size, losses)
        scores = np.empty(group.size)
        scores[order] = np.arange(group.size)
        return scores

    def _losses(self, consumer: Consumer, group: Group, weight: torch.Tensor) -> Iterator[Quadratic]:
        source = self._calibration.sources[consumer.source]
        columns = source.columns
        unit_of = np.full(max(int(columns.max()), int(group.labels.max())) + 1, -1)
        unit_of[group.labels] = np.arange(group.size)
        if (unit_of[columns] < 0).all():
            return
        size = len(columns) // source.groups
        weights = [w.numpy() for w in block_weights(consumer, source, weight)]
        found, energy = [], 0.0
        for i, block in enumerate(self._calibration.blocks[consumer.source]):
            if not len(block.columns):
                continue
            at = int(block.columns[0]) // size
            rows = weights[at][:, block.columns - at * size].swapaxes(0, 1).reshape(len(block.columns), -1)
            inverse, second = self._inverse(consumer, i)
            energy += float(np.einsum("ij,ij->", second @ rows, rows))
            units = unit_of[columns[block.columns]]
            order = np.argsort(units, kind="stable")
            order = order[units[order] >= 0]
            if len(order):
                rows = rows[order]
                found.append((np.unique(units[order]), inverse[np.ix_(order, order)], rows @ rows.T))
        for units, part, products in found:
            yield Quadratic(units, part, products, 1 / max(energy, 1e-30))

    def _inverse(self, consumer: Consumer, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Inverse of the damped second moments, and the moments."""
        key = consumer.source, i, consumer.offset is not None
        if key not in self._inverses:
            block = self._calibration.blocks[consumer.source][i]
            ridge = max(self._calibration.ridge, LEAST_RIDGE)
            second = moments(block.gram, intercept=key[2], ridge=ridge)
            lower = torch.linalg.cholesky(torch.from_numpy(second))  # half the work of numpy's inverse
            self._inverses[key] = torch.cholesky_inverse(lower).numpy(), second
        return self._inverses[key]
