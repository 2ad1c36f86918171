"""Splitting: where the network is cut into stages, and which device runs each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import numpy as np
from torch import nn

from ....devices import Device, Link, devices_json, devices_of, links_of, pipeline_costs, sensitivity
from ....model.stages import Cut, CutError, after_modules, outside_modules
from ....model.stages.staging import Staging
from ...choice import Choice
from ..base import Context, Found, Kind, Making, Many, Taken
from .plan import END, START, Encoding, Placement, SplitPlan, plan_of, splitting_choices
from .staged import PlacedStage, Staged, place

if TYPE_CHECKING:
    from ....model.cost_tables import Tables
    from ....model.facts import Facts

TIMED = ("latency_ms", "throughput_per_s", "energy_mj")  # need profiles
TOGETHER = ("prune", "drop", "mask", "splits")  # kinds whose networks the cost tables follow


@dataclass(frozen=True, kw_only=True)
class SplitsKind(Kind):
    """Choices of where stages begin, and on which device each runs. Accuracy does not depend on them.

    ``encoding="positions"``: ``cut:1`` .. ``cut:<parts - 1>``, the place where stage 2, 3, ... begins: from
    ``"end"`` (there is no such stage) over the places, the last first, to ``"start"`` (those before it are
    empty). A boundary before an earlier one moves up to it. ``"each"``: ``cut:<place>``, False or True, for
    every place; merge and split moves flip them.

    ``placement="ordered"``: stage k runs on device k, counted round and round. ``"free"``: ``place:1`` ..
    ``place:<parts>`` name the device of each.

    Raises:
        ValueError: parts, places or options that cannot be, devices without a way between them.
        CutError: no legal cut, more parts than cuts, or no cut after a module that is asked for.
    """

    parts: int | None = None  # stages at most; as many as devices, at least 2. Of "positions" alone
    encoding: Encoding = "positions"
    placement: Placement = "ordered"
    places: int = 16  # offered at most
    forced: Sequence[str] = ()  # modules after which a stage begins in every candidate
    forbidden: Sequence[str] = ()  # modules that stay whole
    devices: Sequence[Any] | None = None  # see devices_of; by default as many as parts
    sensitivity: bool = False  # costs with latency_change and throughput_change; 4 times slower
    links: Any = None  # see links_of; by default one without limit

    done: ClassVar[str] = "split"
    neutral: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for option, known in (("encoding", Encoding), ("placement", Placement)):
            if getattr(self, option) not in get_args(known):
                raise ValueError(
                    f"{option} is {' or '.join(map(repr, get_args(known)))}, got {getattr(self, option)!r}"
                )
        if self.encoding == "each" and (self.parts is not None or self.placement == "free"):
            raise ValueError(
                "with encoding='each' any number of stages run on the devices in turn; leave out parts and "
                "placement, and give a limit such as 'stages<=3'"
            )
        if self.parts is not None and self.parts < 2:
            raise ValueError(f"a split has at least 2 parts, got parts={self.parts}")
        if self.places < 1:
            raise ValueError(f"at least 1 place to cut must be offered, got places={self.places}")
        for option in ("forced", "forbidden"):
            if isinstance(getattr(self, option), str):
                raise ValueError(f"{option} is a list of module names, got {getattr(self, option)!r}")
        unnamed = [Device(f"device{i + 1}") for i in range(max(2, self.parts or 0))]
        devices = devices_of(unnamed if self.devices is None else self.devices)
        object.__setattr__(self, "devices", devices)
        object.__setattr__(self, "links", links_of(Link() if self.links is None else self.links, devices))

    def recorded(self) -> dict[str, Any]:
        return {**super().recorded(), "devices": devices_json(self.devices or ())}

    def goes_with(self, kinds: Sequence[str]) -> None:
        if others := [kind for kind in kinds if kind not in TOGETHER]:
            raise ValueError(
                f"splits and {others[0]} cannot be searched together: {others[0]} changes which calls the "
                "network makes, and the costs of its parts do not follow that; search one after the other"
            )

    def find(self, facts: Facts, making: Making) -> Found:
        cuts: Sequence[Cut] = facts.cutting.followed
        if self.forbidden:
            cuts = outside_modules(cuts, self.forbidden)
        forced = after_modules(cuts, self.forced) if self.forced else []
        parts = self.parts or max(2, len(self.devices or ()))
        needed = (len(forced) + 1 if self.encoding == "each" else parts) - 1
        if len(cuts) < max(needed, 1):
            raise CutError(
                f"{needed + 1} parts need {max(needed, 1)} places to cut, but this model has {len(cuts)}"
                + (" outside the forbidden modules" if self.forbidden else "")
                + "; ask for fewer parts"
            )
        if self.encoding == "positions" and len(forced) >= parts - 1:
            raise CutError(
                f"{len(forced)} forced boundaries make {len(forced) + 1} parts, so that nothing is left to "
                f"choose with parts={parts}; ask for at least {len(forced) + 2} parts, or force fewer"
            )
        chosen = offered(cuts, max(self.places, needed), forced)
        plan = SplitPlan(
            places=tuple(_names(chosen)),
            indices=tuple(c.index for c in chosen),
            encoding=self.encoding,
            placement=self.placement,
            parts=len(chosen) + 1 if self.encoding == "each" else parts,
            devices=tuple(self.devices or ()),
            links=tuple(self.links),
            forced=tuple(chosen.index(c) for c in forced),
            sensitivity=self.sensitivity,
        )
        facts.cutting.staging(plan.indices)
        return Found(splitting_choices(plan, self))

    def costs(self, many: Many, costs: dict[str, np.ndarray], tables: Tables) -> None:
        """Add what :func:`pipeline_costs` gives, of which ``memory_mb`` takes the place of that of the whole;
        what takes time is there if all devices have profiles.
        """
        plan, begins, on = _decoded(many)
        staging = tables.facts.cutting.staging(plan.indices)
        costs |= split_costs(plan, staging, begins, on, tables.widths, tables.dropped)

    def falling(self, choices: Sequence[Choice], names: Sequence[str]) -> Sequence[str]:
        return [name for name in names if name != "memory_mb"]  # that of the devices may rise

    def wrap(self, network: nn.Module, taken: Taken, context: Context) -> nn.Module:
        plan, begins, _ = placed(taken, context)
        cut = any(0 < b < plan.segments for b in begins)
        return Staged(self.stages(network, taken, context)) if cut else network

    def stages(self, network: nn.Module, taken: Taken, context: Context) -> list[PlacedStage]:
        plan, begins, on = placed(taken, context)
        staging = context.facts.cutting.staging(plan.indices)
        captured = context.facts.captured
        return place(network, (captured.args, captured.kwargs), plan, staging, begins, on, context.dropped[0])

    def key(self, taken: Taken) -> bytes:
        return b""


def placed(taken: Taken, context: Context) -> tuple[SplitPlan, list[int], list[int]]:
    """The plan of one candidate, its boundaries [parts - 1] and devices [parts].

    Boundaries are where stages really begin (see :attr:`Segments.snap`).
    """
    plan, begins, on = _decoded([(choice, np.array([index])) for choice, index in taken])
    staging = context.facts.cutting.staging(plan.indices)
    snap = staging.evaluate(context.widths, context.dropped).snap
    return plan, snap[0, begins[0]].tolist(), on[0].tolist()


def _decoded(many: Many) -> tuple[SplitPlan, np.ndarray, np.ndarray]:
    """The plan, and what :meth:`Plan.decode` gives."""
    choices = [choice for choice, _ in many]
    plan = plan_of(choices)
    assert plan is not None
    return plan, *plan.decode(choices, np.stack([column for _, column in many], axis=1))


def split_costs(
    plan: SplitPlan,
    staging: Staging,
    begins: np.ndarray,
    on: np.ndarray,
    widths: np.ndarray,
    dropped: np.ndarray,
) -> dict[str, np.ndarray]:
    """What :func:`pipeline_costs` gives for candidates; nothing that takes time where profiles are missing.

    Where the plan says so, also what :func:`sensitivity` gives.

    Args:
        begins, on: of :meth:`Plan.decode`.
        widths, dropped: of :meth:`Staging.evaluate`.
    """
    parts = staging.evaluate(widths, dropped, plan.devices)
    begins = parts.snap[np.arange(len(begins))[:, None], begins]
    timed = parts.ms is not None
    ms = parts.ms if parts.ms is not None else np.zeros((len(begins), len(plan.devices), staging.segments))
    given = (ms, parts.sent, parts.weights, parts.peaks, begins, on, plan.devices, plan.links)
    costs = pipeline_costs(*given)
    if plan.sensitivity and timed:
        changes = sensitivity(*given)
        costs |= {name: changes[name] for name in ("latency_change", "throughput_change")}
    return {k: v for k, v in costs.items() if timed or k not in TIMED}


def offered(cuts: Sequence[Cut], places: int, forced: Sequence[Cut] = ()) -> list[Cut]:
    """At most ``places`` of the cuts, in order: the forced ones and, of as many equal shares of the
    multiply-accumulates as are left, the one with the fewest bytes each; then those with the fewest bytes.

    Of cuts with equal bytes one where a module ends is taken, then the later one.
    """
    taken = set(forced)
    total = sum(cuts[0].macs)

    def rank(c: Cut) -> tuple[float, bool, int]:
        return c.bytes, not c.ends, -c.index

    left = places - len(taken)
    shares: dict[int, list[Cut]] = {}
    for c in cuts:
        if c not in taken:
            share = int(c.macs[0] / total * left) if total else 0
            shares.setdefault(share, []).append(c)
    best = sorted((min(of, key=rank) for of in shares.values()), key=rank)
    taken.update(best[: max(left, 0)])
    for c in sorted(cuts, key=rank):
        if len(taken) >= places:
            break
        taken.add(c)
    return sorted(taken, key=lambda c: c.index)


def _names(cuts: Sequence[Cut]) -> list[str]:
    """Names of places; those that would read as an end of the network get their number."""
    return [f"{c.name}@{c.index}" if c.name in (START, END) else c.name for c in cuts]
