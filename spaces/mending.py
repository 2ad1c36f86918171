"""Mending: how the sliced weights of a space's networks are repaired, by calibration data or by merging."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from ..model.capture import batch_length, of_traced_length
from ..model.facts import Facts
from ..model.repair import Calibration, Sequential, fold, gather, sequential
from ..model.repair.gram import Inputs
from ..model.repair.merging import Merging
from ..model.repair.sequential import Replacing
from ..model.surgery import Alive, Mend, Surgeon
from .space import Repair

FEW = 100  # calibration samples

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Calibrated:
    """What one network's layers read on real inputs, of :meth:`Blueprint.calibrate`.

    Attributes:
        moments: of the inputs of each layer.
        batches: the inputs, of the traced length; they do not travel.
        repair: what was asked for.
        sequential: the run that fits layer by layer, for ``repair=True``.
    """

    moments: Calibration
    batches: Sequence[Inputs]
    repair: bool | Literal["once"]
    sequential: Sequential | None

    @classmethod
    def of(
        cls, facts: Facts, batches: Sequence[Inputs], *, repair: bool | Literal["once"], ridge: float
    ) -> Calibrated:
        """See :meth:`Blueprint.calibrate`."""
        if ridge < 0:
            raise ValueError(f"ridge must not be negative, got {ridge}")
        if repair not in (True, False, "once"):
            raise ValueError(f"repair is True, False or 'once', got {repair!r}")
        captured, coupling = facts.captured, facts.coupling
        given, batches = batches, of_traced_length(captured, batches)
        samples = sum(batch_length(*one) or 1 for one in batches)
        if len(batches) < len(given) and samples < FEW:
            log.warning(
                f"repair learns from {samples} samples: {len(batches)} of {len(given)} calibration batches "
                "are as long as the example, and the others are left out; give more of that length"
            )
        moments = replace(gather(captured, coupling, batches), ridge=ridge)
        run = sequential(captured, coupling, batches) if repair is True else None
        return cls(moments, batches, repair, run)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"batches": ()}


@dataclass(frozen=True, eq=False)
class Mending:
    """How the networks of one space are repaired.

    Attributes:
        repair: of built networks, unless a call asks for another one.
        calibrated: for ``True`` and ``"once"``.
        merging: for ``"merge"``.
    """

    repair: Repair = False
    calibrated: Calibrated | None = None
    merging: Merging | None = None

    @property
    def calibration(self) -> Calibration | None:
        """Moments of what the layers read."""
        return None if self.calibrated is None else self.calibrated.moments

    @property
    def sequential(self) -> Sequential | None:
        """The run that fits layer by layer."""
        return None if self.calibrated is None else self.calibrated.sequential

    def step(
        self, surgeon: Surgeon, repair: Repair | None = None, replacing: Replacing | None = None
    ) -> Mend | None:
        """The repair of sliced parameters (``None``: :attr:`repair`), whatever units stay.

        Args:
            replacing: what stands for some layers of the network.
        """
        wanted = self.repair if repair is None else repair
        if wanted == "merge" and self.merging is not None:
            return partial(self._merge, surgeon)
        if wanted and self.calibrated is not None:
            return partial(self._repair, surgeon, run=wanted is True, replacing=replacing)
        return None

    def runs(self, repair: Repair | None = None) -> bool:
        """Does the repair run the network layer by layer? Its running statistics fit afterwards."""
        return (self.repair if repair is None else repair) is True and self.sequential is not None

    def recalibrated(self, facts: Facts, batches: Sequence[Inputs]) -> Mending:
        """The same with other data; itself where none are used."""
        if self.calibrated is None or self.repair == "merge":
            return self
        old = self.calibrated
        new = Calibrated.of(facts, batches, repair=old.repair, ridge=old.moments.ridge)
        return replace(self, calibrated=new)

    def joined(self, other: Mending) -> Mending:
        """Of two spaces that become one.

        Raises:
            ValueError: they were made with different calibrations or repairs.
        """
        used = [m for m in (self, other) if m.calibrated is not None or m.merging is not None]
        if len(used) == 2 and (self.calibrated, self.merging, self.repair) != (
            other.calibrated,
            other.merging,
            other.repair,
        ):
            raise ValueError(
                "cannot join spaces that were made with different calibrations or repairs; calibrate once, "
                "`data = blueprint.calibrate(batches)`, and give both space(..., calibration=data)"
            )
        return used[0] if used else self

    def _repair(
        self,
        surgeon: Surgeon,
        alive: Alive,
        made: dict[str, Any],
        *,
        run: bool,
        replacing: Replacing | None = None,
    ) -> None:
        assert self.calibration is not None
        fold(self.calibration, alive, surgeon.tensors, surgeon.coupling.parameters, made)
        if run and self.sequential is not None:
            self.sequential.mend(surgeon, alive, made, replacing)

    def _merge(self, surgeon: Surgeon, alive: Alive, made: dict[str, Any]) -> None:
        assert self.merging is not None
        self.merging.mend(alive, surgeon.tensors, surgeon.coupling.parameters, made)


def in_turn(steps: Sequence[Mend | None]) -> Mend | None:
    """One repair after the other; ``None`` where there is none."""
    real = [step for step in steps if step is not None]
    if len(real) < 2:
        return real[0] if real else None
    return partial(_each, real)


def _each(steps: Sequence[Mend], alive: Alive, made: dict[str, Any]) -> None:
    for step in steps:
        step(alive, made)
