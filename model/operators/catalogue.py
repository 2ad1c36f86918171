"""Catalogue: which operators are worth offering for a layer, by what they lose and save there, measured."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .initialise import initialise
from .place import Substitution
from .site import Site, operator

MOST = 8  # options of one layer
STEPS = 30  # of the regression of those that are curved: enough to tell which are worth more
SAMPLES = 32  # of a timing
RUNS = 5  # of it, whose least counts
GUIDING = 15  # the same of a timing that other figures are derived from
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


def lost(wanted: Substitution, site: Site, x: torch.Tensor, y: torch.Tensor | None = None) -> float:
    """Share of the variance of the layer's outputs, or of ``y``, that a fitted substitute misses on held-out
    inputs.

    The first half of ``x`` fits, the second judges. Three significant digits, so that equal ones are equal.
    """
    half = max(len(x) // 2, 1)
    with torch.no_grad():
        y = site(x) if y is None else y
    new = initialise(operator(wanted.operator), site, wanted.option, x[:half], y=y[:half], steps=STEPS)
    rest = slice(half if half < len(x) else 0, None)
    with torch.no_grad():
        given, made = (t.movedim(site.axis, -1).flatten(0, -2).double() for t in (y[rest], new(x[rest])))
    share = float((made - given).square().sum() / (given - given.mean(0)).square().sum().clamp_min(1e-30))
    return float(f"{share:.3g}") if math.isfinite(share) else math.inf


def seconds(module: nn.Module | Site, x: torch.Tensor) -> float:
    """Least time of a call on ``x``, after one that does not count."""
    return in_turn([module], x)[0]


def in_turn(modules: Sequence[nn.Module | Site], x: torch.Tensor, *, runs: int = RUNS) -> list[float]:
    """The same of several, whose calls take turns, so that none finds its own numbers in the cache still; an
    accelerator's, until it is done.
    """
    times: list[list[float]] = [[] for _ in modules]
    with torch.no_grad():
        for _ in range(runs + 1):
            for module, taken in zip(modules, times, strict=True):
                begun = time.perf_counter()
                module(x)
                if x.device.type != "cpu":
                    torch.accelerator.synchronize(x.device)
                taken.append(time.perf_counter() - begun)
    return [min(taken[1:]) for taken in times]


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


@dataclass(frozen=True, eq=False)
class Tried:
    """A place at which options are tried.

    Attributes:
        site: the layer, or the linear map closest to a branch.
        x, y: what it reads, and what a branch gave for it (``None``: what the layer gives).
    """

    name: str
    by: Mapping[str, Substitution]
    site: Site
    x: torch.Tensor
    y: torch.Tensor | None = None


def by_place(trials: Iterable[Tried], *, timed: bool) -> dict[str, dict[str, list[float]]]:
    """What every option loses and, where ``timed``, its time as a share of the layer's: plain, to be kept."""
    found: dict[str, dict[str, list[float]]] = {}
    for trial in trials:
        few = trial.x[:SAMPLES]
        own = seconds(trial.site, few) if timed else 0.0
        found[trial.name] = {}
        for label, wanted in trial.by.items():
            figures = [lost(wanted, trial.site, trial.x, trial.y)]
            if timed:
                module = operator(wanted.operator).build(trial.site, wanted.option).eval()
                figures.append(seconds(module, few) / own)
            found[trial.name][label] = figures
    return found
