"""Catalogue: which operators are worth offering for a layer, by what they lose and save there, measured."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .initialise import initialise
from .site import Site, operator
from .substitution import Substitution

MOST = 8  # options of one layer
STEPS = 30  # of the regression of those that are curved: enough to tell which are worth more
SAMPLES = 32  # of a timing
RUNS = 5  # of it, whose least counts
FASTER = 0.97  # of the layer's own time: what is not below saves none
WIDER = 4.0  # times the layer's input and output: more inside moves more than multiplications save


@dataclass(frozen=True)
class Offer:
    """One operator of one size at a layer.

    Attributes:
        costs: multiply-accumulates and bytes, or seconds; the less the better.
        error: share of the variance of the layer's outputs that it misses on held-out inputs.
    """

    label: str
    costs: tuple[float, ...]
    error: float


def lost(wanted: Substitution, site: Site, x: torch.Tensor) -> float:
    """Share of the variance of the layer's outputs that a fitted substitute misses on held-out inputs.

    The first half of ``x`` fits, the second judges. Three significant digits, so that equal ones are equal.
    """
    half = max(len(x) // 2, 1)
    new = initialise(operator(wanted.operator), site, wanted.option, x[:half], steps=STEPS)
    held_out = x[half:] if half < len(x) else x
    with torch.no_grad():
        y, made = (m(held_out).movedim(site.axis, -1).flatten(0, -2).double() for m in (site, new))
    share = float((made - y).square().sum() / (y - y.mean(0)).square().sum().clamp_min(1e-30))
    return float(f"{share:.3g}") if math.isfinite(share) else math.inf


def seconds(module: nn.Module | Site, x: torch.Tensor) -> float:
    """Least time of a call on ``x``, after one that does not count."""
    times = []
    with torch.no_grad():
        for _ in range(RUNS + 1):
            begun = time.perf_counter()
            module(x)
            times.append(time.perf_counter() - begun)
    return min(times[1:])


def worth_offering(offers: Sequence[Offer], *, most: int = MOST) -> list[str]:
    """Labels of those that no other one matches in error and all costs, and beats in one; thinned out to
    ``most``: the least error in each of equal steps of the first cost's logarithm.

    Those that miss more than the mean would (error 1) go, unless there are no others.
    """
    useful = [o for o in offers if o.error < 1] or list(offers)
    front = [o for o in useful if not any(_dominates(other, o) for other in useful)]
    if len(front) <= most:
        return [o.label for o in front]
    low, high = (math.log(max(pick(o.costs[0] for o in front), 1e-30)) for pick in (min, max))
    width = (high - low) / most or 1.0
    best: dict[int, Offer] = {}
    for o in front:
        step = min(int((math.log(max(o.costs[0], 1e-30)) - low) / width), most - 1)
        if step not in best or o.error < best[step].error:
            best[step] = o
    return [o.label for o in front if o in best.values()]


def _dominates(a: Offer, b: Offer) -> bool:
    mine, other = (a.error, *a.costs), (b.error, *b.costs)
    # Of two equal ones the first by name stays.
    return all(x <= y for x, y in zip(mine, other, strict=True)) and (mine, a.label) < (other, b.label)


def by_layer(
    layers: Iterable[tuple[str, Mapping[str, Substitution], Site, torch.Tensor]], *, timed: bool
) -> dict[str, dict[str, list[float]]]:
    """What every option loses and, where ``timed``, its time as a share of the layer's: plain, to be kept.

    Args:
        layers: name, options, the layer with its weights, and what it reads.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for name, by, site, x in layers:
        own = seconds(site, x[:SAMPLES]) if timed else 0.0
        found[name] = {}
        for label, wanted in by.items():
            figures = [lost(wanted, site, x)]
            if timed:
                module = operator(wanted.operator).build(site, wanted.option).eval()
                figures.append(seconds(module, x[:SAMPLES]) / own)
            found[name][label] = figures
    return found
