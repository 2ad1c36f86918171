"""Oracles for tests of surgery, independent of the code that cuts."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..model.capture import capture
from ..model.counter import counted
from ..model.coupling.walk import IN
from ..model.model_copy import plain_copy
from .blueprint import Blueprint
from .choice import Candidate

_kept_alive: list[torch.library.Library] = []  # a library's declarations go with it


def declare_torchvision_operators() -> None:
    """Let torchvision be imported beside a torch that cannot load its compiled operators.

    A CPU-only torch cannot load those of the usual wheel; the model definitions only need their names.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations or _kept_alive:
        return
    for binary in Path(found.submodule_search_locations[0]).glob("_C*.so"):
        try:
            torch.ops.load_library(binary)
            return
        except OSError:
            continue
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"):
        library.define(f"{operator}(Tensor x) -> Tensor")
        library.define(f"_{operator}_backward(Tensor x) -> Tensor")
    _kept_alive.append(library)


def zeroed_consumers(net: nn.Module, blueprint: Blueprint, candidate: Candidate) -> nn.Module:
    """Copy of the unpruned ``net`` whose layers ignore the removed units: their input weights are zero.

    A pruned network equals it wherever no normalisation runs over a pruned axis
    (see :func:`norms_over_kept`).
    """
    kept = blueprint.kept(candidate)
    net = plain_copy(net).eval()
    weights = dict(net.named_parameters())
    with torch.no_grad():
        for group in blueprint.groups:
            gone = np.setdiff1d(np.arange(group.size), kept.get(group.name, np.arange(group.size)))
            for member in group.members:
                if member.role == IN:
                    rows = weights[member.parameter].movedim(member.axis, 0)
                    rows[torch.from_numpy(member.positions[gone].reshape(-1))] = 0
    return net


def counted_costs(module: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """Costs of a built network by other routes than those of its space.

    ``macs`` by counting what runs, ``params`` and ``size_mb`` from what the module holds, ``activation_mb``
    and ``memory_mb`` from a trace of the module itself, in which nothing is cut.
    """
    macs = counted(module, x)[1]
    again = Blueprint(capture(module, x))
    whole = np.array([[g.size for g in again.coupling.groups]], dtype=np.int64)
    unchanged = again.costs.evaluate(whole)
    return {
        "macs": macs / len(x),
        "params": float(sum(p.numel() for p in module.parameters())),
        "size_mb": sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers())) / 1e6,
        "activation_mb": float(unchanged["activation_mb"][0]),
        "memory_mb": float(unchanged["memory_mb"][0]),
    }


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
