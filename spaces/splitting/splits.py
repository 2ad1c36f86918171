"""Cutting a network into stages as choices: where the stages begin, and which device runs each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from ..choice import Candidate, Choice
from ..devices import Device, Link

START, END = "start", "end"  # places before the first call and after the last
Encoding = Literal["positions", "each"]
Placement = Literal["ordered", "free"]


@dataclass(frozen=True, eq=False)
class Plan:
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
    def from_json(cls, made: dict[str, Any]) -> Plan:
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
        cuts = [(i, c) for i, c in enumerate(choices) if is_split(c) and c.edit.what == "cut"]
        always = np.tile(np.array([p + 1 for p in self.forced], dtype=np.int64), (n, 1))
        begins = np.full((n, len(cuts)), s, dtype=np.int64)
        for column, (i, choice) in enumerate(cuts):
            begins[:, column] = np.array(choice.edit.begins, dtype=np.int64)[indices[:, i]]
        if self.encoding == "positions":
            begins = np.maximum.accumulate(begins, axis=1)
        begins = np.sort(np.concatenate([begins, always], axis=1), axis=1)
        on = np.tile(np.arange(begins.shape[1] + 1) % len(self.devices), (n, 1))
        names = [d.name for d in self.devices]
        for i, choice in enumerate(choices):
            if is_split(choice) and choice.edit.what == "place":
                option = np.array([names.index(str(o)) for o in choice.options], dtype=np.int64)
                on[:, choice.edit.stage] = option[indices[:, i]]
        return begins, on


@dataclass(frozen=True, slots=True)
class Split:
    """The edit of one splitting choice. It changes where a network runs, never what it computes."""

    plan: Plan = field(repr=False)
    neutral: ClassVar[bool] = True  # see Space.neutral

    what: Literal["cut", "place"]
    begins: tuple[int, ...] = ()  # "cut": per option, the segment at which a stage begins
    stage: int = 0  # "place": whose device it is


def is_split(choice: Choice) -> bool:
    return isinstance(choice.edit, Split)


def plan_of(choices: Sequence[Choice]) -> Plan | None:
    """The plan that a space's splitting choices share; ``None`` where it has none."""
    return next((c.edit.plan for c in choices if is_split(c)), None)


def unsplit(candidate: Candidate) -> Candidate:
    """The candidate in one piece: its splitting choices at their first options; itself where there are none.

    Candidates with the same unsplit one are the same network, with the same accuracy.
    """
    if not any(map(is_split, candidate.choices)):
        return candidate
    pairs = zip(candidate.choices, candidate.indices, strict=True)
    return Candidate(tuple(0 if is_split(c) else i for c, i in pairs), candidate.choices)


def splitting_choices(plan: Plan) -> list[Choice]:
    """The choices of a plan: ``cut:...`` first, then ``place:...`` where placement is free."""
    choices = []
    free = [p for p in range(len(plan.places)) if p not in plan.forced]
    if plan.encoding == "each":
        for p in free:
            edit = Split(plan, "cut", (plan.segments, p + 1))
            choices.append(Choice(f"cut:{plan.places[p]}", (False, True), edit=edit))
        return choices
    names = [plan.places[p] for p in free]
    options = (END, *reversed(names), START)
    begins = (plan.segments, *(p + 1 for p in reversed(free)), 0)
    for k in range(1, plan.parts - len(plan.forced)):
        choices.append(Choice(f"cut:{k}", options, edit=Split(plan, "cut", begins)))
    if plan.placement == "free":
        devices = [d.name for d in plan.devices]
        for k in range(plan.parts):
            first = k % len(devices)
            order = (*devices[first:], *devices[:first])
            choices.append(Choice(f"place:{k + 1}", order, edit=Split(plan, "place", stage=k)))
    return choices
