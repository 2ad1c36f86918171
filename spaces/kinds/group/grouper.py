"""Assign the channels of layers of a built network to groups, and make its weights those of the groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import fx

from ....model.capture import fresh
from ....model.captured_module import CapturedModule
from ....model.coupling.walk import bind, get_attribute
from ....model.operators.assignment import Assignment, assign
from ....model.repair import Calibration
from ....model.repair.consumers import Consumer
from .build import Marks
from .fitting import Fitted, Fitting, GroupRecorder
from .refit import refit


@dataclass(frozen=True, slots=True)
class Layer:
    """A dense layer whose weight and bias only it reads; names are those of the captured graph."""

    name: str  # of the module, or of the weight where that has none
    node: str
    weight: str  # canonical name, [outputs, inputs, kernel]
    outputs: int
    inputs: int


@dataclass(frozen=True)
class _Planned:
    weight: torch.Tensor
    new: torch.Tensor  # like ``weight``, zero outside of groups
    constant: torch.Tensor  # [outputs] float64, to be added to the outputs
    fitted: Fitted


class Grouper:
    """Collects layers while their weights are whole; then refits all of them.

    Args:
        made: pruned and repaired.
        alive: labels that stay.
        calibration: moments of what the unpruned network's layers read; with ``None``, or for a layer that is
            not in it, the weights inside of groups stay as they are.
        sample: placeholders' values of one batch; with it, layers are fitted in order (:mod:`.fitting`),
            starting from what the moments give.
    """

    def __init__(
        self,
        made: CapturedModule,
        alive: np.ndarray,
        calibration: Calibration | None = None,
        sample: Sequence[Any] | None = None,
    ) -> None:
        self._made, self._alive, self._calibration, self._sample = made, alive, calibration, sample
        self._planned: dict[fx.Node, _Planned] = {}

    def add(self, layer: Layer, groups: int) -> None:
        """Plan ``groups`` groups; fewer where fewer channels stay, nothing where the layer has gone."""
        node = next((n for n in self._made.graph.nodes if n.name == layer.node), None)
        if node is None:
            return
        weight = get_attribute(self._made, layer.weight).detach()
        groups = min(groups, *weight.shape[:2])
        if groups < 2:
            return
        energy = weight.double().square().reshape(*weight.shape[:2], -1).sum(2)
        found = assign(energy.numpy(), groups)
        consumer = self._consumer(layer)
        if consumer is None or self._calibration is None:
            new = weight * _inside(found, weight)
            constant = torch.zeros(len(weight), dtype=torch.float64)
        else:
            new, constant = refit(weight, found.rows, found.columns, self._calibration, consumer, self._alive)
        fitted = Fitted(found.rows, found.columns, self._shift(node, consumer))
        self._planned[node] = _Planned(weight, new, constant, fitted)

    def finish(self) -> Marks:
        """Write the weights; the groups of each layer's call."""
        wanted = {node: planned.fitted for node, planned in self._planned.items()}
        with torch.no_grad():
            recorder = GroupRecorder(self._made, wanted)
            if self._sample is not None and wanted:
                recorder.run(*fresh(self._sample), enable_io_processing=False)
            for node, planned in self._planned.items():
                planned.weight.copy_(planned.new)
                if node not in recorder.targets and planned.fitted.shift is not None:
                    planned.fitted.shift(planned.constant)
            if recorder.targets:
                fitting = Fitting(self._made, wanted, recorder.targets)
                fitting.run(*fresh(self._sample), enable_io_processing=False)
        return {node: (fitted.rows, fitted.columns) for node, fitted in wanted.items()}

    def _consumer(self, layer: Layer) -> Consumer | None:
        if self._calibration is None:
            return None
        return next((c for c in self._calibration.consumers if c.weight == layer.weight), None)

    def _shift(self, node: fx.Node, consumer: Consumer | None) -> Any:
        bias = bind(node).get("bias")
        if isinstance(bias, fx.Node):
            return partial(_add, get_attribute(self._made, str(bias.target)).detach(), 1.0)
        if consumer is not None and consumer.offset is not None:
            name, sign = consumer.offset
            return partial(_add, get_attribute(self._made, name).detach(), sign)
        return None


def _inside(found: Assignment, weight: torch.Tensor) -> torch.Tensor:
    inside = torch.from_numpy(found.rows[:, None] == found.columns)
    return inside.view(*inside.shape, *[1] * (weight.dim() - 2))


def _add(to: torch.Tensor, sign: float, constant: torch.Tensor) -> None:
    to.add_(constant.to(to.dtype), alpha=sign)
