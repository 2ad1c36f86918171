"""Operators: which compact operator, if any, takes a layer's place."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from ...model.capture import flat_inputs
from ...model.coupling.walk import bind
from ...model.operators.catalogue import (
    FASTER,
    GUIDING,
    WIDER,
    Offer,
    Tried,
    by_place,
    in_turn,
    worth_offering,
)
from ...model.operators.initialise import closest_map
from ...model.operators.kernels import Pace, Sparse
from ...model.operators.place import Place, Substitution, place_of
from ...model.operators.site import known_operators, operator
from ...model.operators.substitution import Substitutions, counted
from ..choice import Choice
from .base import Found, Kind, Making, Many
from .group.kind import dense_layers

if TYPE_CHECKING:
    from ...model.cost_tables import Tables
    from ...model.facts import Facts
    from ...model.operators.counting import Count

KEEP = "keep"
_MEGA = 1e6
_TOGETHER = ("group", "width", "branches", "mask", "exits")  # kinds that change layers where they stand


@dataclass(frozen=True)
class Replaced:
    """What a choice is about: a layer and, by option, what stands for it."""

    place: Place
    shape: tuple[int, ...]  # of the layer's weight
    kind: torch.dtype
    by: Mapping[str, Substitution]

    def counts(self, index: int, outputs: int, inputs: int) -> Count:
        """Of the option numbered ``index``, from 1, at some widths."""
        return counted(self._anonymous[index - 1], (outputs, inputs, *self.shape[2:]), self.kind)

    def widths(self, tables: Tables) -> tuple[np.ndarray, np.ndarray]:
        """Outputs and inputs that stay, int64 [n] each; 0 where it has gone."""
        if self.place.around is None:
            outputs, inputs = tables.lengths(self.place.weight)[:, :2].T.astype(np.int64)
            return outputs, inputs
        labels = tables.coupling.tensors[self.place.around.keep][self.place.axis][1]
        kept = tables.present(self.place.node) * (self.shape[0] if labels is None else tables.count(labels))
        return kept.astype(np.int64), kept.astype(np.int64)

    def spared(self, tables: Tables) -> tuple[np.ndarray, np.ndarray]:
        """Multiply-accumulates and parameters of the layer itself, [n] each; a branch has gone already."""
        if self.place.around is not None:
            return np.zeros(len(tables.widths)), np.zeros(len(tables.widths))
        names = [name for name in (self.place.weight, self.place.bias) if name is not None]
        held = sum((tables.lengths(name).prod(axis=1) for name in names), np.zeros(len(tables.widths)))
        return tables.macs(self.place.node), held

    @cached_property
    def _anonymous(self) -> tuple[Substitution, ...]:
        return tuple(one.anonymous for one in self.by.values())


def charge(used: Sequence[tuple[Replaced, np.ndarray]], costs: dict[str, np.ndarray], tables: Tables) -> None:
    """Costs of what stands for layers and branches, in place.

    Args:
        used: with the number of the option of each candidate, [n]: 0 where nothing stands there.
    """
    for about, column in used:
        place = about.place
        outputs, inputs = about.widths(tables)
        rows = np.flatnonzero((column > 0) & (outputs > 0))
        if not len(rows):
            continue
        wide = 1 + max(about.shape[:2])
        keys, which = np.unique((column * wide + outputs)[rows] * wide + inputs[rows], return_inverse=True)
        counts = [about.counts(int(k // wide**2), int(k // wide % wide), int(k % wide)) for k in keys]
        macs, params, size, activations, peak, output = np.array(
            [[c.macs, c.params, c.bytes, c.activations, c.peak, c.output] for c in counts], dtype=float
        )[which].T
        dense, held = (figures[rows] for figures in about.spared(tables))
        if place.around is not None and not place.around.copies:
            output = np.zeros_like(output)  # what it gives is in no table, as a layer's is
        more = macs * place.calls - dense
        costs["macs"][rows] += more
        costs["flops"][rows] += 2 * more
        costs["params"][rows] += params - held
        costs["size_mb"][rows] += (size - held * about.kind.itemsize) / _MEGA
        costs["activation_mb"][rows] += (activations - output) * place.calls / _MEGA
        within = np.zeros(len(column))
        within[rows] = (peak - output) * place.calls
        tables.within[place.node] = within
        if place.around is None:
            share = np.ones(len(column))
            share[rows] += more / np.maximum(dense, 1.0)
            tables.shares[place.node] = share.copy
            number = np.full(len(column), -1)
            number[rows] = which
            tables.standing[place.node] = number, [c.weights for c in counts]
    costs["memory_mb"] = tables.memory(costs["size_mb"])


def cheaper(
    place: Place, shape: tuple[int, ...], kind: torch.dtype, names: Sequence[str], *, narrow: bool
) -> tuple[dict[str, Substitution], str]:
    """What may stand in a place and saves multiply-accumulates or bytes there, the dearest first; and, where
    nothing may, why.

    Args:
        shape, kind: of the layer's weight.
        narrow: leave out what holds several times what the layer reads and gives.
    """
    weight = torch.empty(shape, dtype=kind, device="meta")
    site = place.site(weight, None if place.bias is None else weight.new_empty(shape[0]))
    moved = math.prod(site.size) * site.inputs + math.prod(site.output_size) * site.outputs
    found: list[tuple[float, int, str, Substitution]] = []
    reasons: list[str] = []
    for name in names:
        one = operator(name)
        if reason := one.refuses(site):
            reasons.append(f"{name}: {reason}")
            continue
        for option in one.options(site):
            taken = Substitution(place, name, option)
            costs = counted(taken.anonymous, shape, kind)
            if narrow and costs.peak > WIDER * moved * kind.itemsize:
                continue
            saves = costs.macs < site.macs or costs.bytes < weight.numel() * kind.itemsize
            if saves or one.by_name:
                found.append((costs.macs, costs.bytes, f"{name}:{option:g}", taken))
    found.sort(key=lambda one: one[:3], reverse=True)
    why = "; ".join(reasons[:3]) if reasons else "no operator is cheaper than it"
    return {label: taken for *_, label, taken in found}, why


def guided(about: Replaced, pace: Pace) -> tuple[dict[str, Substitution], str]:
    """What may stand in a place but for sparse layers that the performance model calls slower than the layer
    is; and, where nothing is left, why (guided sparsity, Park et al. 2017, section 3.3).
    """
    slow = {k for k, v in about.by.items() if v.operator == Sparse.name and pace.slower(v.option)}
    why = ""
    if slow:
        density = min(about.by[k].option for k in slow)
        times = 1e3 * pace.seconds(density), 1e3 * pace.dense
        why = (
            f"sparse at {density:g} takes {times[0]:.3g} ms by the performance model, dense {times[1]:.3g} ms"
        )
    return {k: v for k, v in about.by.items() if k not in slow}, why


def guide(found: Sequence[Replaced], facts: Facts, reasons: dict[str, str]) -> list[Replaced]:
    """Places at which sparse layers are offered where they are faster, on this machine, the model's device
    and the example's batch; places that keep nothing go, with the reason. What was timed is kept on disk.
    """
    tensors, left = facts.surgeon.tensors, []
    forms = [f"{next(iter(about.by.values())).anonymous.place} {about.shape}" for about in found]

    def timed() -> dict[str, list[float]]:
        paces, clock = {}, partial(in_turn, runs=GUIDING)
        for form, about in zip(forms, found, strict=True):
            if form not in paces:
                site = about.place.site(tensors[about.place.weight], None)
                batch = max(1, round(facts.captured.batch * about.place.calls))
                paces[form] = [*astuple(Pace.timed(site, clock, batch))]
        return paces

    host = f"{platform.node()} {torch.get_num_threads()} {hashlib.sha256(repr(forms).encode()).hexdigest()}"
    kept = facts.cache.once(f"paces {host}", timed)
    for form, about in zip(forms, found, strict=True):
        by, why = guided(about, Pace(*kept[form]))
        if by:
            left.append(replace(about, by=by))
        else:
            reasons[about.place.name] = why
    return left


def worth(
    found: Sequence[Replaced], facts: Facts, inputs: Sequence[Any], reasons: dict[str, str], *, by: str
) -> list[Replaced]:
    """Those of the options that are worth offering; places that keep none go, with the reason.

    Args:
        inputs: values of the placeholders, on which each option is tried once; figures are kept on disk.
        by: ``"macs"`` or ``"latency"``.
    """
    timed = by == "latency"
    tried = [known_operators(), [(about.place.name, *about.by) for about in found]]
    digest = hashlib.sha256(repr([tried, platform.node() if timed else ""]).encode())
    for x in inputs:
        if isinstance(x, torch.Tensor):
            digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    tensors = facts.surgeon.tensors

    def measured() -> dict[str, dict[str, list[float]]]:
        seen = Substitutions(facts.surgeon, [about.place for about in found], inputs).recorded()
        trials = []
        for about in found:
            place, x = about.place, seen.inputs[about.place.node]
            y, half = seen.branches.get(place.node), max(len(x) // 2, 1)
            if y is None or place.around is None:
                weight = tensors[place.weight], None if place.bias is None else tensors[place.bias]
            else:
                weight = closest_map(x[:half], y[:half], place.around.kernel)
            trials.append(Tried(place.name, about.by, place.site(*weight), x, y))
        return by_place(trials, timed=timed)

    kept = facts.cache.once(f"operators {by} {digest.hexdigest()}", measured)
    left: list[Replaced] = []
    for about in found:
        offers = []
        for label, taken in about.by.items():
            error, *ratio = kept[about.place.name][label]
            count = counted(taken.anonymous, about.shape, about.kind)
            costs = tuple(ratio) if timed else (count.macs, float(count.bytes))
            if not timed or costs[0] <= FASTER:
                offers.append(Offer(label, costs, error))
        labels = worth_offering(offers) if offers else []
        if labels:
            left.append(replace(about, by={k: v for k, v in about.by.items() if k in labels}))
        else:
            reasons[about.place.name] = "operators that save multiply-accumulates here save no time"
    return left


@dataclass(frozen=True, kw_only=True)
class OperatorsKind(Kind):
    """A choice ``operators:<layer>`` for every dense layer whose weights only its own call reads.

    Options: ``keep``, then ``<operator>:<size>`` from the dearest to the cheapest in multiply-accumulates;
    sizes are as the operator says. An operator is built for the channels that pruning keeps; its weights
    start from the layer's, and with calibration data its last linear stage is fitted to what the original
    gave.

    Where no operators are named and there is calibration data, each is tried at each layer: those are offered
    that lie on the front of error against multiply-accumulates and size, or, ``operators_by="latency"``,
    against measured time on this machine; none that holds several times what the layer reads and gives, and
    none with a non-linearity inside, which would be trained anew for every set of kept channels: name those.
    What was measured is kept on disk. Some operators are offered only by name (:attr:`.Operator.by_name`).
    With ``operators_by="latency"`` a ``sparse`` layer is offered at the densities at which it beats the layer
    by a performance model of this machine.

    Raises:
        ValueError: an unknown operator.
    """

    operators: Sequence[str] = ()  # names; none: of all that are installed those worth it, see below
    operators_by: Literal["macs", "latency"] = "macs"

    done: ClassVar[str] = "replaced"
    rewrites: ClassVar[bool] = True
    switches: ClassVar[bool] = True
    turn: ClassVar[int] = 0  # costs of the layers that stand there are corrected by other kinds

    def __post_init__(self) -> None:
        for name in self.operators:
            operator(name)
        if self.operators_by not in ("macs", "latency"):
            raise ValueError(f"operators_by is 'macs' or 'latency', got {self.operators_by!r}")

    def goes_with(self, kinds: Sequence[str]) -> None:
        if others := [kind for kind in kinds if kind in _TOGETHER]:
            raise ValueError(
                f"operators and {others[0]} cannot be searched together: both change the same layers; search "
                "one after the other, on the exported network"
            )

    def find(self, facts: Facts, making: Making) -> Found:
        captured = facts.captured
        layers, reasons = dense_layers(captured.graph_module.graph, facts.coupling)
        nodes = {n.name: n for n in captured.graph_module.graph.nodes}
        found: list[Replaced] = []
        known = {name: operator(name) for name in known_operators()}
        names = self.operators or [n for n, one in known.items() if not (one.curved or one.by_name)]
        for layer in layers:
            node = nodes[layer.node]
            place = place_of(node, layer.name, facts.coupling, captured.batch)
            if isinstance(place, str):
                reasons[layer.name] = place
                continue
            weight = bind(node)["weight"].meta["val"]
            by, why = cheaper(place, tuple(weight.shape), weight.dtype, names, narrow=not self.operators)
            if by:
                found.append(Replaced(place, tuple(weight.shape), weight.dtype, by))
            else:
                reasons[layer.name] = why
        if self.operators_by == "latency" and Sparse.name in names:
            found = guide(found, facts, reasons)
        if making.batches and not self.operators:
            inputs = flat_inputs(facts.captured.graph_module, *making.batches[0])
            found = worth(found, facts, inputs, reasons, by=self.operators_by)
        made = [Choice(f"operators:{a.place.name}", (KEEP, *a.by), self, a) for a in found]
        return Found(made, {f"operators:{name}": reason for name, reason in reasons.items()})

    def replaces(self, choice: Choice, index: int) -> Mapping[str, Substitution]:
        about: Replaced = choice.about
        return {about.place.node: about.by[str(choice.options[index])]} if index else {}

    def costs(self, many: Many, costs: dict[str, np.ndarray], tables: Tables) -> None:
        charge([(c.about, column) for c, column in many], costs, tables)
