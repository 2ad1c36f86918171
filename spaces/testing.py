"""Oracles for tests of surgery, independent of the code that cuts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from .blueprint import Blueprint
from .choice import Candidate
from .coupling.walk import IN


def zeroed_consumers(net: nn.Module, blueprint: Blueprint, candidate: Candidate) -> nn.Module:
    """Copy of the unpruned ``net`` whose layers ignore the removed units: their input weights are zero.

    A pruned network equals it wherever no normalisation runs over a pruned axis
    (see :func:`norms_over_kept`).
    """
    kept = blueprint.kept(candidate)
    net = copy.deepcopy(net).eval()
    weights = dict(net.named_parameters())
    with torch.no_grad():
        for group in blueprint.groups:
            gone = np.setdiff1d(np.arange(group.size), kept.get(group.name, np.arange(group.size)))
            for member in group.members:
                if member.role == IN:
                    rows = weights[member.parameter].movedim(member.axis, 0)
                    rows[torch.from_numpy(member.positions[gone].reshape(-1))] = 0
    return net


@contextmanager
def norms_over_kept(width: int, kept: np.ndarray) -> Iterator[None]:
    """Within: ``torch.nn.functional.layer_norm`` over ``width`` channels normalises over ``kept`` alone."""
    original = nn.functional.layer_norm
    index = torch.from_numpy(kept)

    def masked(x, shape, weight=None, bias=None, eps=1e-5):  # type: ignore[no-untyped-def]
        if tuple(shape) != (width,):
            return original(x, shape, weight, bias, eps)
        y = (x - x[..., index].mean(-1, keepdim=True)) / (
            x[..., index].var(-1, unbiased=False, keepdim=True) + eps
        ).sqrt()
        return y * (1 if weight is None else weight) + (0 if bias is None else bias)

    nn.functional.layer_norm = masked
    try:
        yield
    finally:
        nn.functional.layer_norm = original
