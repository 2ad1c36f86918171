"""Plan: what the splitting choices of a space mean together. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from ....devices import Device, Link
from ...choice import AnyKind, Choice, Option

START, END = "start", "end"  # places before the first call and after the last
Encoding = Literal["positions", "each"]
Placement = Literal["ordered", "free"]


@dataclass(frozen=True, eq=False)
class SplitPlan:
    """What the splitting choices of one space mean together.

    A network with P places has the segments 0..P between them; a stage is a run of segments. A boundary is
    the segment at which a stage begins: 0 is the start, P + 1 the end.
    """

    places: tuple[str, ...]  # names of places that choices offer, in the network's order
    indices: tuple[int, ...]  # their cuts' indices
    encoding: Encoding
    placement: Placement
    parts: int  # stages at most
    devices: tuple[Device, ...]
    links: tuple[Link, ...]
    forced: tuple[int, ...] = ()  # places where a stage begins in every candidate
    sensitivity: bool = False  # costs say how latency and throughput change with devices and links

    @property
    def segments(self) -> int:
        return len(self.places) + 1

    def to_json(self) -> dict[str, Any]:
        """What :meth:`decode` needs to know, with the names of the devices."""
        return {
            "places": list(self.places),
            "encoding": self.encoding,
            "placement": self.placement,
            "parts": self.parts,
            "devices": [d.name for d in self.devices],
            "forced": list(self.forced),
        }

    @classmethod
    def from_json(cls, made: dict[str, Any]) -> SplitPlan:
        """A plan of devices that have names alone: what it costs is not known."""
        return cls(
            **made
            | {
                "places": tuple(made["places"]),
                "devices": tuple(map(Device, made["devices"])),
                "forced": tuple(made["forced"]),
                "indices": (),
                "links": (),
            }
        )

    def decode(self, choices: Sequence[Choice], indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boundaries and devices of candidates given as option indices [n, choices].

        Returns:
            int64 [n, parts - 1], the segment at which stage 2, 3, ... begins, rising, may repeat, 0..S;
            int64 [n, parts], the device of each stage.
        """
        n, s = len(indices), self.segments
        cuts = [(i, c) for i, c in enumerate(choices) if is_split(c) and c.about.what == "cut"]
        always = np.tile(np.array([p + 1 for p in self.forced], dtype=np.int64), (n, 1))
        begins = np.full((n, len(cuts)), s, dtype=np.int64)
        for column, (i, choice) in enumerate(cuts):
            begins[:, column] = np.array([choice.about.begins[o] for o in choice.options], dtype=np.int64)[
                indices[:, i]
            ]
        if self.encoding == "positions":
            begins = np.maximum.accumulate(begins, axis=1)
        begins = np.sort(np.concatenate([begins, always], axis=1), axis=1)
        on = np.tile(np.arange(begins.shape[1] + 1) % len(self.devices), (n, 1))
        names = [d.name for d in self.devices]
        for i, choice in enumerate(choices):
            if is_split(choice) and choice.about.what == "place":
                option = np.array([names.index(str(o)) for o in choice.options], dtype=np.int64)
                on[:, choice.about.stage] = option[indices[:, i]]
        return begins, on


@dataclass(frozen=True, slots=True)
class Split:
    """What a choice is about. It changes where a network runs, never what it computes."""

    plan: SplitPlan = field(repr=False)
    what: Literal["cut", "place"]
    begins: Mapping[Option, int] = field(default_factory=dict)  # "cut": segment at which a stage begins
    stage: int = 0  # "place": whose device it is


def is_split(choice: Choice) -> bool:
    return isinstance(choice.about, Split)


def plan_of(choices: Sequence[Choice]) -> SplitPlan | None:
    """The plan that a space's splitting choices share; ``None`` where it has none."""
    return next((c.about.plan for c in choices if is_split(c)), None)


def boundary_columns(choices: Sequence[Choice]) -> list[int]:
    """Places of the choices of where a stage begins, the first stage first; none with one for every place."""
    return [i for i, c in enumerate(choices) if is_split(c) and c.about.what == "cut" and len(c) > 2]


def with_sensitivity(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """The choices, asking for ``latency_change`` and ``throughput_change`` too (see :class:`SplitPlan`)."""
    plan = plan_of(choices)
    assert plan is not None
    asked = replace(plan, sensitivity=True)
    return tuple(replace(c, about=replace(c.about, plan=asked)) if is_split(c) else c for c in choices)


def splitting_choices(plan: SplitPlan, kind: AnyKind | None = None) -> list[Choice]:
    """The choices of a plan: ``cut:...`` first, then ``place:...`` where placement is free."""
    choices = []
    free = [p for p in range(len(plan.places)) if p not in plan.forced]
    if plan.encoding == "each":
        for p in free:
            about = Split(plan, "cut", {False: plan.segments, True: p + 1})
            choices.append(Choice(f"cut:{plan.places[p]}", (False, True), kind, about))
        return choices
    begins: dict[Option, int] = {END: plan.segments}
    begins |= {plan.places[p]: p + 1 for p in reversed(free)}
    begins[START] = 0
    for k in range(1, plan.parts - len(plan.forced)):
        choices.append(Choice(f"cut:{k}", tuple(begins), kind, Split(plan, "cut", begins)))
    if plan.placement == "free":
        devices = [d.name for d in plan.devices]
        for k in range(plan.parts):
            first = k % len(devices)
            order = (*devices[first:], *devices[:first])
            choices.append(Choice(f"place:{k + 1}", order, kind, Split(plan, "place", stage=k)))
    return choices
