"""Fit grouped layers in order, each on the inputs that it really gets, to the outputs of the dense network.

Layer by layer in closed form (:mod:`.refit`) every layer takes its inputs for what they were in the dense
network; behind other grouped layers they no longer are. Here the network runs twice over one batch: dense,
recording outputs of the layers, then grouped, each layer fitted before it runs (as :mod:`..repair.sequential`
does for pruning; He et al. 2017, arXiv 1707.06168, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from ....model.captured_module import CapturedModule
from ....model.coupling.walk import bind, get_attribute, operator_name
from ....model.repair.sequential import COLUMNS, LEAST_ROWS, RIDGE, ROWS, fitted_layer
from ....model.repair.sources import MomentSource, Picker, draw, patch_of, places


@dataclass(frozen=True)
class Fitted:
    """A layer to be fitted."""

    rows: np.ndarray  # [outputs] int64, group of each
    columns: np.ndarray  # [inputs] int64
    shift: Callable[[torch.Tensor], None] | None  # adds a constant [outputs] to the outputs, if that can be


@dataclass(frozen=True)
class _Target:
    """What a layer of the dense network gave at some places."""

    picker: Picker  # of the layer's inputs there
    outputs: torch.Tensor  # [samples, outputs]


class GroupRecorder(fx.Interpreter):
    """Runs the dense network; keeps outputs of the layers in ``wanted`` that can be fitted."""

    def __init__(self, made: CapturedModule, wanted: Mapping[fx.Node, Fitted]) -> None:
        super().__init__(made)
        self._wanted = wanted
        self._generator = torch.Generator().manual_seed(0)
        self.targets: dict[fx.Node, _Target] = {}

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if n not in self._wanted or operator_name(n.target)[0] not in ("linear", "conv2d"):
            return out
        weight = self.env_weight(n)
        x = self.env[bind(n)["input"]]
        linear = weight.dim() == 2
        if not linear and x.dim() != 4:
            return out
        axis = -1 if linear else -3
        patch = None if linear else patch_of(n, 4)
        if not linear and patch is None and weight.shape[2:].numel() > 1:
            return out  # a padding that is not followed
        source = MomentSource((), axis, 1, patch, np.zeros(weight.shape[1], dtype=np.int64))
        shape = places(x, source)
        count = math.prod(shape)
        if count * out.shape[axis] != out.numel() or count < LEAST_ROWS:
            return out
        at = draw(count, max(ROWS, 4 * len(source.columns)), self._generator)
        rows = out.movedim(axis, -1)[torch.unravel_index(at, shape)]
        self.targets[n] = _Target(Picker(x, source, at), rows)
        return out

    def env_weight(self, n: fx.Node) -> torch.Tensor:
        return self.env[bind(n)["weight"]]


class Fitting(fx.Interpreter):
    """Runs the grouped network (weights outside of groups are zero) and fits the others on the way."""

    def __init__(
        self, made: CapturedModule, wanted: Mapping[fx.Node, Fitted], targets: Mapping[fx.Node, _Target]
    ) -> None:
        super().__init__(made)
        self._made, self._wanted, self._targets = made, wanted, targets

    def run_node(self, n: fx.Node) -> Any:
        if n in self._targets:
            self._fit(n, self._wanted[n], self._targets[n])
        return super().run_node(n)

    def _fit(self, n: fx.Node, wanted: Fitted, target: _Target) -> None:
        bound = bind(n)
        x = target.picker(self.env[bound["input"]], len(target.outputs))  # [samples, taps, inputs]
        weight = get_attribute(self._made, str(bound["weight"].target)).detach()
        bias = get_attribute(self._made, str(bound["bias"].target)).detach() if bound["bias"] else None
        whole = weight.flatten(2) if weight.dim() > 2 else weight[:, :, None]  # [outputs, inputs, taps]
        constant = torch.zeros(len(weight), dtype=torch.float64)
        for g in np.unique(wanted.rows):
            out, into = (torch.from_numpy(np.flatnonzero(of == g)) for of in (wanted.rows, wanted.columns))
            part = x[:, :, into].flatten(1)
            if part.shape[1] > COLUMNS:
                continue
            prior = whole[out][:, into].movedim(1, -1).flatten(1).double()
            new, constant[out] = fitted_layer(
                part, target.outputs[:, out], prior, wanted.shift is not None, RIDGE
            )
            fitted = new.view(len(out), whole.shape[2], len(into)).movedim(-1, 1).to(weight.dtype)
            whole[out[:, None], into] = fitted
        weight.copy_(whole.reshape(weight.shape))
        if wanted.shift is not None:
            # A bias was part of the outputs; other places take what the outputs lack.
            wanted.shift(constant if bias is None else constant - bias.double())
