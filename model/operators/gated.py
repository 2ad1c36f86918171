"""Collaborative layers: a cheap layer beside a convolution says where its outputs are needed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from .initialise import ROWS, Targets, windows
from .site import Operator, Site, map_reason, put
from .stages import Gated, Layer, Substitute, exporting

RIDGE = 1e-3  # of the mean square of what a gate reads
ROUNDS = 60  # of the logistic fit
MARGIN = 1e-5  # of the largest score: what rounding may move it by


class Collaborative(Operator):
    """The layer itself, and a 1x1 layer of the same input that says where it is needed, before a ReLU.
    Option: recall, the share of the outputs above the ReLU's threshold that must be computed.

    At 1 the layer is multiplied by the ReLU of the 1x1 layer, which starts as the identity, weights 0 and
    constants 1, to be trained until many gates are zero. Below 1 the 1x1 layer predicts, without training:
    a logistic fit on which outputs the ReLU lets through, its constants such that on the calibration data
    each channel keeps that share of them; what is not computed takes the mean of what the ReLU cuts. Without
    data all stays open.

    All outputs are computed as it runs and counted as such, ``Ci Co`` a place more than the layer; how many
    would be left out depends on the data: see :meth:`CollaborativeLayer.skipping` and
    :meth:`PredictedLayer.skipped`, which are measured.
    """

    name = "collaborative"
    source = "Dong et al. 2017, arXiv 1703.08651 (LCCL)"
    by_name = True

    def refuses(self, site: Site) -> str:
        if reason := map_reason(site):
            return reason
        return "" if site.followed_by_relu else "has no ReLU behind it"

    def options(self, site: Site) -> Sequence[float]:
        return (0.99, 0.95)

    def exact(self, site: Site) -> float:
        return 1

    def build(self, site: Site, option: float) -> Substitute:
        made = CollaborativeLayer(site) if option >= 1 else PredictedLayer(site)
        return Substitute(nn.Identity(), made, axis=site.axis)

    def start(self, new: Substitute, site: Site, option: float) -> None:
        layer, gate = new.layers
        put(layer.weight, site.weight)
        put(layer.bias, site.bias)
        put(gate.weight, torch.zeros_like(gate.weight))
        put(gate.bias, torch.ones(site.outputs))
        made = new.tails[0]
        if isinstance(made, PredictedLayer) and site.inputs_seen is not None and len(site.inputs_seen):
            made.fit(site, site.inputs_seen, option)


class CollaborativeLayer(Gated):
    """A convolution times the ReLU of a 1x1 layer of the same input."""

    def __init__(self, site: Site) -> None:
        cheap = site.pointwise(site.inputs, site.outputs, bias=True, strided=True)
        layer = site.spatial(site.inputs, site.outputs, bias=site.bias is not None)
        super().__init__(layer, nn.Sequential(cheap, nn.ReLU()))
        self.out_features = site.outputs

    def skipping(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The same outputs, computed only where gates are not zero, and how many multiply-accumulates the
        convolution took: ``k^2 Ci`` for each of these.
        """
        assert isinstance(self.layer, (nn.Conv1d, nn.Conv2d))
        gates = self.gate(x)
        values, macs = sampled(self.layer, x, gates > 0)
        return values * gates, macs


class PredictedLayer(nn.Module):
    """A convolution of which a 1x1 layer of the same input says where it is needed: where that is not below
    zero. Elsewhere an output is its channel's constant.

    Attributes:
        layer, gate: the convolution, and the 1x1 layer.
        fill: [outputs], the constants.
        skips: without gradients, compute the needed outputs alone. Off at first: on most machines a dense
            convolution is faster until nine in ten are left out.
    """

    fill: torch.Tensor

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.layer = site.spatial(site.inputs, site.outputs, bias=site.bias is not None)
        self.gate = site.pointwise(site.inputs, site.outputs, bias=True, strided=True)
        self.register_buffer("fill", site.weight.new_zeros(site.outputs))
        self.out_features, self.skips = site.outputs, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        learns = torch.is_grad_enabled() and not exporting()
        if self.skips and not learns and not exporting():
            return self.skipping(x)[0]
        score, fill = self.gate(x), self._shaped(x)
        if not learns:
            return torch.where(score >= 0, self.layer(x), fill)
        # The step's gradient is the sigmoid's (straight through, Bengio et al. 2013, arXiv 1308.3432).
        soft = score.sigmoid()
        return fill + (soft + ((score >= 0).to(soft) - soft).detach()) * (self.layer(x) - fill)

    def skipping(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The outputs without gradients, only the needed ones computed, and how many multiply-accumulates the
        convolution took: ``k^2 Ci`` for each of these.
        """
        needed = self.gate(x) >= 0
        values, macs = sampled(self.layer, x, needed)
        return torch.where(needed, values, self._shaped(x)), macs

    def skipped(self, x: torch.Tensor) -> float:
        """Share of the outputs that need not be computed."""
        with torch.no_grad():
            return float((self.gate(x) < 0).double().mean())

    def fit(self, site: Site, x: torch.Tensor, recall: float) -> None:
        """Set gates and constants from inputs ``x``, see :class:`Collaborative`."""
        y = site(x)
        through = y > 0 if site.through is None else site.through
        targets = Targets.of(y, site.axis, rows=max(ROWS, 4 * site.inputs))
        passed = through.movedim(site.axis, -1)[targets.at]
        read = windows(x, self.gate, targets.at)[:, 0]
        weight, bias = predictor(read, passed, recall)
        put(self.gate.weight, weight)
        put(self.gate.bias, bias)
        cut = (~passed).double()
        self.fill.copy_((cut * targets.values).sum(0) / cut.sum(0).clamp_min(1))

    def _shaped(self, x: torch.Tensor) -> torch.Tensor:
        return self.fill.view(-1, *[1] * (x.dim() - 2))


def predictor(x: torch.Tensor, passed: torch.Tensor, recall: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [outputs, inputs] and constants [outputs] of scores that are not below zero for at least the
    share ``recall`` of what passed, and for as little else as a logistic fit can tell.

    The Hessian of the logistic loss is at most ``X^T X / 4`` (Boehning and Lindsay 1988): steps by that bound
    always lower it, and one factor serves all outputs. Outputs that always or never passed have no weights.

    Args:
        x: [rows, inputs].
        passed: bool [rows, outputs].
    """
    rows = torch.cat([x, x.new_ones(len(x), 1)], 1).double()
    bound = rows.T @ rows / 4
    bound.diagonal().add_(RIDGE * float(bound.diagonal().mean()) + 1e-30)
    factor, weight = torch.linalg.cholesky(bound), rows.new_zeros(rows.shape[1], passed.shape[1])
    for _ in range(ROUNDS):
        weight += torch.cholesky_solve(rows.T @ (passed.double() - (rows @ weight).sigmoid()), factor)
    scores, count = rows @ weight, passed.sum(0)
    some = (count > 0) & (count < len(x))
    missed = ((1 - recall) * count).floor().long().clamp(max=len(x) - 1)
    least = scores.masked_fill(~passed, math.inf).sort(0).values.gather(0, missed[None])[0]
    constant = weight[-1] - least + MARGIN * scores.abs().amax(0)
    always = torch.where(count > 0, 1.0, -1.0).to(constant)
    return (weight[:-1] * some).T, torch.where(some, constant, always)


def sampled(layer: Layer, x: torch.Tensor, needed: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Outputs of a convolution where they are ``needed`` (bool, of their shape), zeros elsewhere, and the
    multiply-accumulates that they took: products of rows of windows and columns of weights, at these alone.
    """
    flat = needed.movedim(1, -1)
    places = torch.unravel_index(torch.arange(flat[..., 0].numel(), device=x.device), flat.shape[:-1])
    read = windows(x, layer, places).flatten(1)
    weight = layer.weight.movedim(1, -1).flatten(1)  # taps first, as windows have them
    pattern = flat.flatten(0, -2).to(read.dtype).to_sparse_csr()
    values = torch.sparse.sampled_addmm(pattern, read, weight.T, beta=0.0).to_dense().view(flat.shape)
    if layer.bias is not None:
        values = values + layer.bias * flat
    return values.movedim(-1, 1), int(pattern.values().numel()) * weight.shape[1]
