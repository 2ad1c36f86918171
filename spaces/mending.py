"""What is done to the sliced weights of a smaller network: repair by calibration data, merging, masks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from .capture import Captured, batch_length, of_traced_length
from .choice import Candidate
from .coupling import Coupling
from .decoding import Decoder
from .masks.choice import mask_weights
from .repair import Calibration, Sequential, fold, gather, sequential
from .repair.gram import Inputs
from .repair.merging import Merging
from .rewriting.rewrite import rewrites_of
from .space import Repair
from .surgery import Alive, Mend, Surgeon

FEW = 100  # calibration samples

log = logging.getLogger(__name__)


class Mending:
    """How the networks of one blueprint are mended.

    Attributes:
        repair: of built networks, unless a call asks for another one.
        calibration: moments of what the layers read, once there were data.
        count: of calibrations so far; orders of units depend on them.
        batches: of the last calibration; they do not travel.
        merging: for ``repair="merge"``.
    """

    def __init__(self) -> None:
        self.repair: Repair = False
        self.calibration: Calibration | None = None
        self.count = 0
        self.batches: Sequence[Inputs] = ()
        self.sequential: Sequential | None = None
        self.merging: Merging | None = None
        self._calibrated: bool | Literal["once"] = False  # the repair that calibration asked for

    def calibrate(
        self,
        captured: Captured,
        coupling: Coupling,
        batches: Sequence[Inputs],
        *,
        repair: bool | Literal["once"],
        ridge: float,
    ) -> Calibration:
        """Measure, and repair in this way from now on; see :meth:`Blueprint.calibrate`."""
        given, batches = batches, of_traced_length(captured, batches)
        samples = sum(batch_length(*one) or 1 for one in batches)
        if len(batches) < len(given) and samples < FEW:
            log.warning(
                f"repair learns from {samples} samples: {len(batches)} of {len(given)} calibration batches "
                "are as long as the example, and the others are left out; give more of that length"
            )
        self.calibration = replace(gather(captured, coupling, batches), ridge=ridge)
        self.repair = self._calibrated = repair
        self.sequential = sequential(captured, coupling, batches) if repair is True else None
        self.count += 1
        self.batches = batches
        return self.calibration

    def merge(self, merging: Merging) -> None:
        """Merge from now on, instead of repairing by calibration data."""
        self.merging, self.repair = merging, "merge"

    def stop_merging(self) -> None:
        """Where it merges, repair as the last calibration asked for instead."""
        if self.repair == "merge":
            self.merging, self.repair = None, self._calibrated

    def of(self, candidate: Candidate, surgeon: Surgeon, repair: Repair | None = None) -> Mend | None:
        """For one candidate: repair (``None``: :attr:`repair`), then masks."""
        wanted = self.repair if repair is None else repair
        steps: list[Mend] = []
        if wanted == "merge" and self.merging is not None:
            steps.append(partial(self._merge, surgeon))
        elif wanted and self.calibration is not None:
            steps.append(partial(self._repair, surgeon, run=wanted is True))
        if masks := Decoder.masks(candidate):
            steps.append(partial(mask_weights, masks))
        if len(steps) < 2:
            return steps[0] if steps else None
        return partial(_each, steps)

    def moves_statistics(self, candidate: Candidate, repair: Repair | None = None) -> bool:
        """Does a built network end with running statistics that fit its activations?

        The layer-by-layer pass moves them on its way; masks and rewrites behind it shift them again.
        """
        wanted = self.repair if repair is None else repair
        layer_by_layer = wanted is True and self.sequential is not None
        return layer_by_layer and not Decoder.masks(candidate) and not rewrites_of(candidate)

    def _repair(self, surgeon: Surgeon, alive: Alive, made: dict[str, Any], *, run: bool) -> None:
        assert self.calibration is not None
        fold(self.calibration, alive, surgeon.tensors, surgeon.coupling.parameters, made)
        if run and self.sequential is not None:
            self.sequential.mend(surgeon, alive, made)

    def _merge(self, surgeon: Surgeon, alive: Alive, made: dict[str, Any]) -> None:
        assert self.merging is not None
        self.merging.mend(alive, surgeon.tensors, surgeon.coupling.parameters, made)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"batches": ()}


def _each(steps: Sequence[Mend], alive: Alive, made: dict[str, Any]) -> None:
    for step in steps:
        step(alive, made)
