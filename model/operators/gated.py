"""Collaborative layers: a cheap layer beside a convolution says where its outputs are needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .initialise import windows
from .site import Operator, Site, map_reason, put
from .stages import Gated, Substitute


class Collaborative(Operator):
    """The layer itself times the ReLU of a 1x1 layer, to be trained until many of those are zero.

    Starts as the identity: weights 0, constants 1. It stands before a ReLU. As it runs here everything is
    computed, so that it costs ``Ci Co`` more than the layer and is never offered as cheaper;
    :meth:`CollaborativeLayer.skipping` computes what the gates leave alone.
    """

    name = "collaborative"
    source = "Dong et al. 2017, arXiv 1703.08651 (LCCL)"

    def refuses(self, site: Site) -> str:
        if reason := map_reason(site):
            return reason
        return "" if site.followed_by_relu else "has no ReLU behind it"

    def options(self, site: Site) -> Sequence[float]:
        return ()

    def exact(self, site: Site) -> float:
        return 1

    def build(self, site: Site, option: float) -> Substitute:
        return Substitute(nn.Identity(), CollaborativeLayer(site), axis=site.axis)

    def start(self, new: Substitute, site: Site, option: float) -> None:
        layer, gate = new.layers
        put(layer.weight, site.weight)
        put(layer.bias, site.bias)
        put(gate.weight, torch.zeros_like(gate.weight))
        put(gate.bias, torch.ones(site.outputs))


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
        layer, gates = self.layer, self.gate(x)
        assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
        flat = gates.movedim(1, -1)
        *at, output = active = flat.nonzero(as_tuple=True)
        weight = layer.weight.movedim(1, -1).flatten(1)  # taps first, as windows have them
        values = (windows(x, layer, tuple(at)).flatten(1) * weight[output]).sum(1)
        if layer.bias is not None:
            values = values + layer.bias[output]
        y = torch.zeros_like(flat)
        y[active] = values * flat[active]
        return y.movedim(-1, 1), len(values) * weight.shape[1]
