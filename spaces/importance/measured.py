"""The seam for criteria that run the network: they measure all groups at once, before any is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from ..capture import Captured
from ..coupling import Coupling, Group
from ..repair.gram import Inputs


@dataclass(frozen=True)
class Evidence:
    """What a network can be measured with."""

    captured: Captured
    coupling: Coupling
    groups: tuple[Group, ...]
    calibration: Sequence[Inputs]  # (args, kwargs) each; empty without calibration

    def inputs(self, criterion: str) -> Sequence[Inputs]:
        """The calibration inputs.

        Raises:
            ValueError: there are none; the message names the criterion and the cure.
        """
        if not self.calibration:
            raise ValueError(
                f"importance {criterion!r} needs calibration data: give space(..., calibration=batches) "
                "with batches = [(args, kwargs), ...], or another importance such as 'l1'"
            )
        return self.calibration


@dataclass(frozen=True)
class Scores:
    """A criterion whose scores are known: [units] float64 by group name, larger matters more."""

    by_group: Mapping[str, np.ndarray]

    def __call__(self, group: Group, parameters: Mapping[str, torch.Tensor]) -> np.ndarray:
        return self.by_group[group.name]


@runtime_checkable
class Measure(Protocol):
    """A criterion that needs to run the network first."""

    def measure(self, evidence: Evidence) -> Scores:
        """Scores of every group of ``evidence``."""
        ...
