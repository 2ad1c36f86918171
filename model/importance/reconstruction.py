"""Importance by reconstruction: how well the layers that read a group do without a unit.

Optimal brain surgery (Hassibi & Stork 1993, NIPS 5, eq. 5) for sets of weights, with the inverse downdated
after every removal as in Optimal Brain Compression (Frantar & Alistarh 2022, arXiv 2208.11580, lemma 1).
Since only saliencies are wanted, the weights are carried as their products W W^T, and the downdates are
applied to the matrices many at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..coupling import Group
from ..repair import Calibration
from ..repair.consumers import Consumer, block_weights
from ..repair.least_squares import moments
from .weights import l1

PENDING = 64  # columns of downdates collected before the matrices are rewritten


@dataclass(frozen=True)
class Quadratic:
    """A loss tr((V - W)^T S (V - W)) over weights V; giving up a unit sets its p rows of V to zero.

    Rows are ordered unit by unit. They may be part of a larger problem: ``inverse`` is the part of the
    inverse of the *whole* S.
    """

    units: np.ndarray  # [m] int64, which units have rows here
    inverse: np.ndarray  # [m p, m p] float64, rows and columns of S^-1
    products: np.ndarray  # [m p, m p] float64, W W^T
    weight: float = 1.0  # of this loss in the sum


def backward_elimination(units: int, losses: Sequence[Quadratic]) -> tuple[np.ndarray, np.ndarray]:
    """Give up one unit after the other, each time the one that raises the summed loss least.

    Returns:
        order [units], first given up first, and the increase of the loss at each step [units] (the last
        unit's is infinite: it stays).
    """
    states = [_State(loss) for loss in losses]
    gone = np.zeros(units, dtype=bool)
    order, increase = np.empty(units, dtype=np.int64), np.full(units, np.inf)
    for step in range(units):
        total = np.where(gone, np.inf, 0.0)
        for state in states:
            total[state.units] += state.saliency()
        unit = int(np.argmin(total))
        order[step], gone[unit] = unit, True
        if step == units - 1:
            break
        increase[step] = total[unit]
        for state in states:
            state.remove(unit)
    return order, increase


class _State:
    """One loss with some units given up: matrices as last rewritten, and low-rank changes since."""

    def __init__(self, loss: Quadratic) -> None:
        self.units = loss.units  # of the matrices; given up ones stay until the next rewriting
        self._p = len(loss.inverse) // len(loss.units)
        self._weight = loss.weight
        self._h, self._m = loss.inverse, loss.products
        self._restart()

    def _restart(self) -> None:
        m, p = len(self.units), self._p
        self._gone = np.zeros(m, dtype=bool)
        self._at = {int(u): i for i, u in enumerate(self.units)}
        every = np.arange(m)
        # Diagonal blocks [m, p, p], always up to date.
        self._dh = self._h.reshape(m, p, m, p)[every, :, every].copy()
        self._dm = self._m.reshape(m, p, m, p)[every, :, every].copy()
        # H = h - u u^T and M = m - y z^T - z y^T, with u, y, z [m p, used].
        room = max(PENDING, p)
        self._u, self._y, self._z = (np.zeros((m * p, room)) for _ in range(3))
        self._used = 0

    def saliency(self) -> np.ndarray:
        """tr(W_u^T (H_uu)^-1 W_u) of each unit, [m]; infinite for those given up."""
        if self._p == 1:
            with np.errstate(divide="ignore", invalid="ignore"):
                loss = self._dm[:, 0, 0] / self._dh[:, 0, 0]
        else:
            loss = np.einsum("mii->m", np.linalg.solve(self._dh, self._dm))
        return np.where(self._gone, np.inf, self._weight * np.maximum(loss, 0.0))

    def remove(self, unit: int) -> None:
        at = self._at.get(unit)
        if at is None:
            return
        p, used = self._p, self._used
        rows = slice(at * p, (at + 1) * p)
        u, y, z = self._u[:, :used], self._y[:, :used], self._z[:, :used]
        h = self._h[:, rows] - u @ u[rows].T
        m = self._m[:, rows] - y @ z[rows].T - z @ y[rows].T
        lower = np.linalg.cholesky(self._dh[at])
        new_u = np.linalg.solve(lower, h.T).T  # h H_rr^-1 h^T = new_u new_u^T
        new_y = np.linalg.solve(lower.T, new_u.T).T  # h H_rr^-1
        new_z = m - new_y @ m[rows] / 2
        blocks = (len(self.units), p, p)
        bu, by, bz = new_u.reshape(blocks), new_y.reshape(blocks), new_z.reshape(blocks)
        self._dh -= bu @ bu.swapaxes(1, 2)
        change = by @ bz.swapaxes(1, 2)
        self._dm -= change + change.swapaxes(1, 2)
        self._gone[at] = True
        self._dh[at], self._dm[at] = np.eye(p), 0.0
        new = slice(used, used + p)
        self._u[:, new], self._y[:, new], self._z[:, new] = new_u, new_y, new_z
        self._used += p
        if self._used + p > self._u.shape[1]:
            self._rewrite()

    def _rewrite(self) -> None:
        """Apply what is pending and drop the rows that are gone."""
        stays = np.flatnonzero(np.repeat(~self._gone, self._p))
        u, y, z = (a[stays, : self._used] for a in (self._u, self._y, self._z))
        both = np.ix_(stays, stays)
        self._h = self._h[both] - u @ u.T
        change = y @ z.T
        self._m = self._m[both] - change - change.T
        self.units = self.units[~self._gone]
        self._restart()


# -- How well the layers that read a group could do without each unit, once the others make up for it

LEAST_RIDGE = 1e-6  # downdating the inverse loses as many digits as its condition number has


class Reconstruction:
    """Scores by backward elimination on the calibration data, each order nested.

    The loss of a unit is the increase of the squared output error of the layers that read it, after the
    least-squares repair, each relative to the energy of its output. Groups that no layer's
    weights read are scored by :func:`l1`.

    See :mod:`.reconstruction` for the sources.
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
