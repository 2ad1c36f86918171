"""First-order Taylor expansion of the loss in a unit's presence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..capture import Captured
from ..coupling import Coupling, Group
from ..repair.gram import Inputs
from .gradients import SAMPLES, Batch, Data, Loss, per_unit, readers
from .scores import Scores


class Taylor:
    """How much the loss changes, to first order, when a unit goes: root mean square over samples.

    A unit goes when the layers that read it stop reading it, so that a sample's change is -sum(g w) over
    the weights that read it, of all layers at once; the sum comes before the square, over all positions
    (Molchanov et al. 2019, arXiv 1906.10771, eq. 8, with the weights of a gate; 2017, arXiv 1611.06440,
    eq. 8, for activations). Scores are in units of the loss and compare units of one group.

    Args:
        batches: ``(args, kwargs, targets)`` each, best not the training data (see :mod:`.gradients`); ``None``
            takes the calibration inputs and the network's own outputs.
        loss: ``loss(outputs, targets) -> scalar``, called with single samples (batches of one).
        samples: how many samples, evenly spaced.
    """

    def __init__(
        self,
        *,
        batches: Sequence[Batch] | None = None,
        loss: Loss | None = None,
        samples: int = SAMPLES,
        seed: int = 0,
    ) -> None:
        self._data = Data(batches, loss, samples, seed)

    def measure(
        self,
        captured: Captured,
        coupling: Coupling,
        groups: Sequence[Group],
        calibration: Sequence[Inputs] | None,
    ) -> Scores:
        """Scores of all groups, each [units]."""
        members = {g.name: readers(g) for g in groups}
        names = list(dict.fromkeys(m.parameter for found in members.values() for m in found))
        weights = {name: captured.graph_module.get_parameter(name) for name in names}
        squares = {g.name: np.zeros(g.size) for g in groups}
        count = 0
        for gradients in self._data.gradients(captured, names, calibration):
            count += 1
            for name, change in self._changes(members, weights, gradients).items():
                squares[name] += change**2
        return Scores({name: np.sqrt(total / count) for name, total in squares.items()})
