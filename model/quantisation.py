"""Quantisation of weights: rounding to few bits, each column's error made up for by those after it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from .compensation import Columns, by_column, compensate
from .repair.consumers import Consumer
from .repair.gram import Calibration

CLIPS = tuple(1 - 0.05 * step for step in range(13))  # of the largest weight, tried for the ends of a grid
LEVELS = 255  # of an activation, above the least
_SCALE, _ZERO = 4, 1  # bytes of a scale and of a zero point


@dataclass(frozen=True)
class Rounding:
    """How one weight is stored.

    Attributes:
        bits: of a number, 2 to 8.
        group: neighbouring inputs of an output that share a scale; 0: all of them.
        symmetric: the grid is ``-n..n`` times the scale, ``n = 2^(bits - 1) - 1``; else ``2^bits`` levels
            around a zero point.
        compensated: rounded column by column, the error spread over the columns to come (Frantar et al.
            2022, arXiv 2210.17323), where the inputs' second moments are known.
        axis: of the weight, along its outputs.
    """

    bits: int
    group: int = 0
    symmetric: bool = False
    compensated: bool = True
    axis: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8 or int(self.bits) != self.bits:
            raise ValueError(f"weights are stored in 2 to 8 bits, got {self.bits}")
        if self.group < 0 or int(self.group) != self.group:
            raise ValueError(f"a group is a number of inputs, or 0 for all of an output, got {self.group}")

    @property
    def ends(self) -> tuple[int, int]:
        """The least and the largest whole number stored."""
        most = 2 ** (self.bits - 1) - 1
        return (-most, most) if self.symmetric else (0, 2**self.bits - 1)

    def nbytes(self, rows: np.ndarray, columns: np.ndarray, itemsize: int) -> np.ndarray:
        """Bytes of weights of [rows, columns], packed, with scales and zero points; elementwise.

        Where that is more than as they were, they are stored as they were.
        """
        rows, columns = np.asarray(rows, dtype=np.float64), np.asarray(columns, dtype=np.float64)
        groups = np.ceil(columns / self.group) if self.group else np.ones_like(columns)
        each = _SCALE + (0 if self.symmetric else _ZERO)
        packed = np.ceil(rows * columns * self.bits / 8) + rows * groups * each
        return np.minimum(packed, rows * columns * itemsize)


@dataclass(frozen=True, eq=False)
class Levels:
    """Where each number of a weight may go: ``scale (q - zero)``, both of the weight's shape."""

    scale: torch.Tensor
    zero: torch.Tensor
    low: int
    high: int

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """The nearest whole numbers q."""
        return (torch.round(weight / self.scale) + self.zero).clamp(self.low, self.high)

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """What the whole numbers stand for."""
        return self.scale * (codes - self.zero)

    def nearest(self, weight: torch.Tensor) -> torch.Tensor:
        """The nearest numbers of the grid."""
        return self.values(self.codes(weight))


def grid(weight: torch.Tensor, rounding: Rounding) -> Levels:
    """The grid of least squared error for each output, or each group of its inputs, over some clippings.

    Args:
        weight: [outputs, columns] float64.
    """
    outputs, columns = weight.shape
    group = rounding.group or columns
    padded = torch.nn.functional.pad(weight, (0, -columns % group)).view(outputs, -1, group)
    low, high = rounding.ends
    best = torch.full(padded.shape[:2], torch.inf, dtype=weight.dtype, device=weight.device)
    scales, zeros = torch.zeros_like(best), torch.zeros_like(best)
    least, most = padded.amin(2).clamp_max(0), padded.amax(2).clamp_min(0)
    for clip in CLIPS:
        if rounding.symmetric:
            scale = torch.maximum(-least, most) * clip / high
            zero = torch.zeros_like(scale)
        else:
            scale = (most - least) * clip / high
            zero = torch.round(-least * clip / scale.clamp_min(1e-30)).clamp(low, high)
        # As it is stored, so that a packed weight is the same number for number.
        scale = torch.where(scale > 0, scale, 1.0).float().double()
        tried = Levels(scale[..., None], zero[..., None], low, high)
        error = (tried.nearest(padded) - padded).square().sum(2)
        better = error < best
        best = torch.where(better, error, best)
        scales, zeros = torch.where(better, scale, scales), torch.where(better, zero, zeros)

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.repeat_interleave(group, 1)[:, :columns]

    return Levels(spread(scales), spread(zeros), low, high)


def rounded(weight: torch.Tensor, on: Levels, second: torch.Tensor) -> torch.Tensor:
    """Numbers of the grid, column by column, those of the largest moments first (see :mod:`.compensation`).
    Zeros stay zeros: a mask may have set them.

    Args:
        weight: [rows, columns] float64.
        second: [columns, columns] float64, positive definite.
    """
    order = second.diagonal().argsort(descending=True, stable=True)
    scale, zero, given = on.scale[:, order], on.zero[:, order], weight[:, order] != 0

    def settle(j: int, left: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return Levels(scale[:, j], zero[:, j], on.low, on.high).nearest(left[:, j]) * given[:, j]

    return by_column(weight, second, order, settle)


def quantise(
    roundings: Mapping[str, Rounding],
    calibration: Calibration | None,
    alive: np.ndarray,
    made: Mapping[str, Any],
) -> None:
    """Round sliced weights in place; a :data:`.surgery.Mend` once bound.

    The mean of the outputs' error goes to the bias, or to the mean of the batch norm behind.

    Args:
        roundings: by canonical name.
        calibration: moments of what the uncut network's layers read.
        made: sliced parameters by canonical name.
    """
    consumers = {} if calibration is None else {c.weight: c for c in calibration.consumers}
    for name, rounding in roundings.items():
        weight = made[name].detach()
        if weight.numel() == 0:
            continue
        consumer = consumers.get(name)
        if consumer is None or calibration is None or not rounding.compensated:
            moved = weight.movedim(rounding.axis, 0)
            flat = moved.double().flatten(1)
            moved.copy_(grid(flat, rounding).nearest(flat).view(moved.shape))
            continue
        shift = _quantise_consumer(weight, rounding, calibration, consumer, alive)
        if consumer.offset is not None:
            offset, sign = consumer.offset
            made[offset].detach().add_(shift.to(made[offset].dtype), alpha=sign)


def _quantise_consumer(
    weight: torch.Tensor, rounding: Rounding, calibration: Calibration, consumer: Consumer, alive: np.ndarray
) -> torch.Tensor:
    """Round in place; what the outputs then lack on average, [outputs]."""
    grids: list[Levels] = []  # by the layer's group

    def nearest(part: torch.Tensor) -> torch.Tensor:
        on = grid(part.flatten(1), rounding)
        grids.append(Levels(on.scale.view(part.shape), on.zero.view(part.shape), on.low, on.high))
        return grids[-1].nearest(part)

    def by_columns(group: int, columns: Columns) -> torch.Tensor:
        on = grids[group]
        scale, zero = (t[:, columns.at].transpose(1, 2).flatten(0, 1) for t in (on.scale, on.zero))
        return rounded(columns.rows, Levels(scale, zero, on.low, on.high), columns.second)

    return compensate(weight, calibration, consumer, alive, by_columns, nearest)


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers that a tensor takes, in 256 levels: one scale for all of it, zero among them."""

    low: float
    high: float

    @property
    def scale(self) -> float:
        return max(self.high - self.low, 1e-12) / LEVELS

    @property
    def zero(self) -> int:
        return round(-self.low / self.scale)

    def simulate(self, graph: fx.Graph, call: fx.Node) -> None:
        """Let a call read its first operand in 8 bits.

        ``scale (clamp(round(x / scale) + zero, 0, 255) - zero)``, written out: torch's own is not exported.
        """
        operand = operand_of(call)
        assert operand is not None
        aten = torch.ops.aten
        new = operand
        with graph.inserting_before(call):
            for function, *given in (
                (aten.div.Scalar, self.scale),
                (aten.round.default,),
                (aten.add.Scalar, self.zero),
                (aten.clamp.default, 0, LEVELS),
                (aten.sub.Scalar, self.zero),
                (aten.mul.Scalar, self.scale),
            ):
                new = graph.call_function(function, (new, *given))
                new.meta = {k: v for k, v in call.meta.items() if k == "nn_module_stack"}
        call.replace_input_with(operand, new)


def operand_of(call: fx.Node) -> fx.Node | None:
    """The first that a call reads beside parameters."""
    return next((n for n in call.all_input_nodes if n.op != "get_attr"), None)


class Ranges(fx.Interpreter):
    """Runs the original and takes down what some calls read.

    Attributes:
        found: by call.
    """

    def __init__(self, module: fx.GraphModule, calls: Collection[str]) -> None:
        super().__init__(module)
        self._calls = calls
        self.found: dict[str, Range] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self._calls and (operand := operand_of(n)) is not None:
            low, high = (float(v) for v in self.env[operand].detach().aminmax())
            known = self.found.get(n.name, Range(0.0, 0.0))
            self.found[n.name] = Range(min(low, known.low), max(high, known.high))
        return super().run_node(n)


def plain(module: torch.nn.Module, rounding: Rounding) -> None:
    """Round all weights of a substitute that are multiplied with, to the nearest, in place."""
    for parameter in module.parameters():
        if parameter.dim() > 1 and parameter.is_floating_point():
            flat = parameter.detach().double().flatten(1)
            parameter.data.copy_(grid(flat, rounding).nearest(flat).view(parameter.shape))
