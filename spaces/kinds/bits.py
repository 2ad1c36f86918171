"""Bits: in how many bits each layer's weights are stored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import fx

from ...model.capture import flat_inputs, fresh
from ...model.coupling import Coupling
from ...model.quantisation import Range, Ranges, Rounding, plain, quantise
from ...model.repair.consumers import output_axis
from ..choice import Choice
from .base import Context, Found, Kind, Making, Many, Taken

if TYPE_CHECKING:
    from ...model.captured_module import CapturedModule
    from ...model.cost_tables import Tables
    from ...model.facts import Facts
    from ...model.operators.substitution import Planting
    from ...model.repair import Calibration
    from ...model.surgery import Mend

_MEGA = 1e6


@dataclass(frozen=True, slots=True)
class Stored:
    """What a choice is about: a weight that is multiplied with, as whole numbers with a scale."""

    parameter: str  # canonical name
    nodes: tuple[str, ...]  # calls that multiply with it
    itemsize: int  # bytes of a number as given
    by: Mapping[int, Rounding]  # by option
    ranges: Mapping[str, Range] = field(
        default_factory=dict
    )  # of what each call reads, where that is rounded


@dataclass(frozen=True, kw_only=True)
class BitsKind(Kind):
    """A choice ``bits:<layer>`` for every weight that is multiplied with: bits of a stored number.

    Options: as given (32, say), then fewer. Weights are rounded after pruning, repair and substitution; with
    calibration data the error of each column is spread over those after it. Networks compute with what the
    stored numbers stand for; ``size_mb`` and ``memory_mb`` are those of packed numbers with their scales.
    ``bops`` is a cost of such spaces: multiply-accumulates times bits of the weight times bits of the
    activation (Wang et al. 2020, arXiv 2005.07093, section 2).

    ``bits_activations=8``: layers in fewer bits read what comes to them in 8 bits, too, one scale for all of
    it, from the range that the calibration data show; networks are then built, not switched.

    Raises:
        ValueError: numbers of bits that are not whole, fall outside 2 to 8, or do not fall; another scheme or
            rounding; a negative group; bits of activations without calibration data.
    """

    bits: Sequence[int] = (8, 6, 4, 3, 2)
    bits_group: int = 0  # inputs that share a scale; 0: all of an output
    bits_scheme: Literal["affine", "symmetric"] = "affine"
    bits_rounding: Literal["compensated", "plain"] = "compensated"
    bits_activations: Literal[0, 8] = 0  # 0: as given

    done: ClassVar[str] = "stored in fewer bits"
    turn: ClassVar[int] = 2  # after all that changes weights

    @property
    def rewrites(self) -> bool:  # type: ignore[override]
        return self.bits_activations > 0

    @property
    def switches(self) -> bool:  # type: ignore[override]
        return not self.bits_activations

    def __post_init__(self) -> None:
        given = list(self.bits)
        if not given or given != sorted(set(given), reverse=True):
            raise ValueError(f"bits are numbers that fall, 8 to 2, got {given}")
        if self.bits_scheme not in ("affine", "symmetric"):
            raise ValueError(f"bits_scheme is 'affine' or 'symmetric', got {self.bits_scheme!r}")
        if self.bits_rounding not in ("compensated", "plain"):
            raise ValueError(f"bits_rounding is 'compensated' or 'plain', got {self.bits_rounding!r}")
        if self.bits_activations not in (0, 8):
            raise ValueError(f"bits_activations is 0 (as given) or 8, got {self.bits_activations!r}")
        for bits in given:
            self._rounding(bits)

    def _rounding(self, bits: int, axis: int = 0) -> Rounding:
        symmetric, compensated = self.bits_scheme == "symmetric", self.bits_rounding == "compensated"
        return Rounding(bits, self.bits_group, symmetric, compensated, axis)

    def find(self, facts: Facts, making: Making) -> Found:
        graph, tensors = facts.captured.graph_module.graph, facts.surgeon.tensors
        made: list[Choice] = []
        reasons: dict[str, str] = {}
        found = multiplied(graph, facts.coupling)
        ranges = self._ranges(facts, making, [call.name for calls in found.values() for call, _ in calls])
        layers = [name.rpartition(".")[0] or name for name in found]
        for (name, calls), layer in zip(found.items(), layers, strict=True):
            label = layer if layers.count(layer) == 1 else name
            value = tensors[name]
            if not isinstance(value, torch.Tensor) or not value.is_floating_point():
                reasons[f"bits:{label}"] = "holds whole numbers already"
                continue
            full = 8 * value.element_size()
            axis = output_axis(*calls[0])
            by = {bits: self._rounding(bits, axis) for bits in self.bits if bits < full}
            nodes = tuple(node.name for node, _ in calls)
            read = {node: ranges[node] for node in nodes if node in ranges}
            about = Stored(name, nodes, value.element_size(), by, read)
            made.append(Choice(f"bits:{label}", (full, *by), self, about))
        return Found(made, reasons)

    def _ranges(self, facts: Facts, making: Making, calls: Sequence[str]) -> dict[str, Range]:
        """Of what they read on the calibration data."""
        if not self.bits_activations:
            return {}
        if not making.batches:
            raise ValueError(
                "bits_activations needs calibration data, which show the ranges; give calibration=..."
            )
        module = facts.captured.graph_module
        run = Ranges(module, set(calls))
        with torch.no_grad():
            for batch in making.batches:
                run.run(*fresh(flat_inputs(module, *batch)), enable_io_processing=False)
        return run.found

    def costs(self, many: Many, costs: dict[str, np.ndarray], tables: Tables) -> None:
        whole = 8 * many[0][0].about.itemsize if many else 32
        costs["bops"] = costs["macs"] * whole * whole
        for choice, column in many:
            about: Stored = choice.about
            lengths = tables.lengths(about.parameter)  # zeros where it has gone
            macs = sum((tables.macs(n) * tables.share(n) for n in about.nodes), np.zeros(len(column)))
            for index, bits in enumerate(choice.options[1:], start=1):
                rows = np.flatnonzero(column == index)
                if not len(rows):
                    continue
                rounding = about.by[int(bits)]
                now = _nbytes(rounding, lengths[rows], about.itemsize)
                saved = lengths[rows].prod(axis=1) * about.itemsize - now
                multiplied = np.ones(len(rows))
                for number, shapes in (tables.standing[n] for n in about.nodes if n in tables.standing):
                    for k in np.unique(number[rows]).tolist():
                        if k >= 0:  # what an operator multiplies with, in place of the layer's weight
                            dims = np.array([(s[0], math.prod(s[1:])) for s in shapes[k]]).reshape(-1, 2)
                            less = dims.prod(axis=1) * about.itemsize
                            less = less - rounding.nbytes(dims[:, 0], dims[:, 1], about.itemsize)
                            saved[number[rows] == k] = less.sum()
                            multiplied[number[rows] == k] = bool(shapes[k])
                costs["size_mb"][rows] -= saved / _MEGA
                costs["memory_mb"][rows] -= saved / _MEGA
                now_bits = int(bits) * (self.bits_activations or whole)
                costs["bops"][rows] -= macs[rows] * multiplied * (whole * whole - now_bits)

    def falling(self, choices: Sequence[Choice], names: Sequence[str]) -> Sequence[str]:
        return names  # a packed weight is never larger; those that count no bits stay as they are

    def mend(
        self, taken: Taken, calibration: Calibration | None = None, planting: Planting | None = None
    ) -> Mend | None:
        wanted = {c.about.parameter: c.about.by[int(c.options[i])] for c, i in taken if i}
        if not wanted:
            return None
        nodes = {node: c.about.by[int(c.options[i])] for c, i in taken if i for node in c.about.nodes}
        return partial(_store, wanted, nodes, calibration, planting)

    def edit(self, network: CapturedModule, taken: Taken, context: Context) -> None:
        calls = {n.name: n for n in network.graph.nodes} | context.planting.installed
        for choice, index in taken:
            for node, seen in choice.about.ranges.items() if index else ():
                if node in calls:  # not gone with a block
                    seen.simulate(network.graph, calls[node])


def _store(
    wanted: Mapping[str, Rounding],
    nodes: Mapping[str, Rounding],
    calibration: Calibration | None,
    planting: Planting | None,
    alive: np.ndarray,
    made: Mapping[str, Any],
) -> None:
    quantise(wanted, calibration, alive, made)
    if planting is not None:
        for node, substitute in planting.made.items():
            if node in nodes:
                plain(substitute, nodes[node])


def _nbytes(rounding: Rounding, lengths: np.ndarray, itemsize: int) -> np.ndarray:
    rows = lengths[:, rounding.axis]
    return rounding.nbytes(rows, lengths.prod(axis=1) / np.maximum(rows, 1), itemsize)


def multiplied(graph: fx.Graph, coupling: Coupling) -> dict[str, list[tuple[fx.Node, fx.Node]]]:
    """Weights that are multiplied with, by canonical name: the calls and what they read, in order."""
    found: dict[str, list[tuple[fx.Node, fx.Node]]] = {}
    counted = {node for node, _ in coupling.macs}
    for node in graph.nodes:
        if node.name in counted:
            for operand in node.all_input_nodes:
                if operand.op == "get_attr" and operand.meta["val"].dim() > 1:
                    found.setdefault(coupling.canonical[str(operand.target)], []).append((node, operand))
    return found
