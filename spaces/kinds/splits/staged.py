"""A built network really cut into stages, each a module of its own on its device."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any, cast

import numpy as np
from torch import fx, nn

from ....model.capture import CaptureError, capture
from ....model.captured_module import CapturedModule
from ....model.coupling.walk import operator_name
from ....model.stages import Cut, CutError, Stage, functionalise, split
from ....model.stages.cuts import Order
from ....model.stages.staging import Staging
from .plan import SplitPlan


@dataclass(frozen=True)
class PlacedStage:
    """One stage and the name of the device that runs it."""

    stage: Stage
    device: str


class Staged(nn.Module):
    """A network as consecutive stages; called, it runs them one after the other in this process.

    It trains, copies and pickles as any module; parameters carry the user's names below ``parts.<number>``.
    """

    def __init__(self, placed: Iterable[PlacedStage]) -> None:
        super().__init__()
        self._placed = tuple(placed)
        self.parts = nn.ModuleList(p.stage.module for p in self._placed)

    @property
    def stages(self) -> list[PlacedStage]:
        """The stages in order; their modules are those of :attr:`parts`."""
        pairs = zip(self._placed, self.parts, strict=True)
        return [replace(p, stage=replace(p.stage, module=cast(CapturedModule, m))) for p, m in pairs]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        first, *others = self.parts
        out = first(*args, **kwargs)
        for part in others:
            out = part(*out)
        return out


def place(
    network: nn.Module,
    example: tuple[tuple[Any, ...], dict[str, Any]],
    plan: SplitPlan,
    staging: Staging,
    boundaries: Sequence[int],
    on: Sequence[int],
    dropped: np.ndarray,
) -> list[PlacedStage]:
    """Capture a built network again and cut it where the plan of the unchanged one says.

    Args:
        network: built of the traced model; it stays as it is.
        boundaries: segment at which stage 2, 3, ... really begins (see :attr:`Segments.snap`), rising.
        on: number of the device of each stage.
        dropped: [blocks] bool, blocks that it lacks.

    Raises:
        CutError: it cannot be captured or cut there, or stages and whole differ (see :func:`.stages.split`).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch's copies of captured graphs
            captured = capture(network, example)
    except CaptureError as error:
        raise CutError(f"the built network cannot be captured, so not cut: {error}") from error
    functional = functionalise(captured)
    order = Order(functional)
    there = staging.there(dropped[None])[0]
    calls = [i for i in range(len(staging.calls)) if there[i]]
    at = _aligned([_key(staging, i, dropped) for i in calls], order.calls)
    edges = [0, *boundaries, plan.segments]
    stages = [(a, b, on[k]) for k, (a, b) in enumerate(pairwise(edges)) if b > a]
    cuts = []
    for begin, _, _ in stages[1:]:
        before = [at[k] for k, i in enumerate(calls) if staging.calls[i].segment < begin]
        where = staging.places[begin - 1]
        index = max((i for i in before if i is not None), default=None)
        if index is None or order.crossing(index) is None:
            raise CutError(f"the built network cannot be cut after {where.name!r}; take another candidate")
        cuts.append(replace(where, index=index))
    made = split(functional, _distinct(cuts))
    return [PlacedStage(s, plan.devices[d].name) for s, (_, _, d) in zip(made, stages, strict=True)]


def _distinct(cuts: list[Cut]) -> list[Cut]:
    indices = [c.index for c in cuts]
    if len(set(indices)) < len(indices):
        names = ", ".join(c.name for c in cuts)
        raise CutError(f"nothing is computed between two of the cuts after {names}; take another candidate")
    return cuts


def _key(staging: Staging, i: int, dropped: np.ndarray) -> str:
    """What a call of the unchanged network is in one without some blocks."""
    call = staging.calls[i]
    return "clone" if call.copies and dropped[call.gate] else call.kind


def _aligned(expected: Sequence[str], calls: Sequence[fx.Node]) -> list[int | None]:
    """For each expected call its position among ``calls``, by the order of operators; ``None``: not there.

    A pruned network has the very sequence; one with rewritten layers has most of it.
    """
    found = [operator_name(n.target)[0] for n in calls]
    if list(expected) == found:
        return list(range(len(found)))
    out: list[int | None] = [None] * len(expected)
    for a, b, size in SequenceMatcher(None, expected, found, autojunk=False).get_matching_blocks():
        out[a : a + size] = range(b, b + size)
    return out
