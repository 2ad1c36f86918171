"""Localisation: whether feature maps still look at the same places."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from .graphs import LayerGraph
from .section import Section, SectionFigure, Skipped, clipped, series
from .subject import Subject


def energy(maps: np.ndarray) -> np.ndarray:
    """Sum of squares over the channels: [samples, height, width] of [samples, channels, height, width]."""
    return np.sum(np.square(np.asarray(maps, dtype=np.float64)), axis=1)


def energy_entropy(energies: np.ndarray) -> np.ndarray:
    """Entropy of where the energy is, in [0, 1]: 0 all in one place, 1 the same everywhere.

    Args:
        energies: [samples, ...places], not negative, at least two places.

    Returns:
        [samples]; NaN where there is no energy at all.
    """
    share = _shares(energies)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(share > 0, -share * np.log(share), share)
    return terms.sum(axis=1) / np.log(share.shape[1])


def area_holding(energies: np.ndarray, part: float = 0.8) -> np.ndarray:
    """The smallest share of places that together hold ``part`` of the energy, in (0, 1].

    Args:
        energies: as for :func:`energy_entropy`.
        part: in (0, 1].

    Returns:
        [samples]; NaN where there is no energy at all.
    """
    if not 0 < part <= 1:
        raise ValueError(f"part must be in (0, 1], got {part}")
    share = -np.sort(-_shares(energies), axis=1)
    held = np.cumsum(share, axis=1)
    # A sum of shares may end a few ulps below 1.
    needed = np.count_nonzero(held < part - 1e-9, axis=1) + 1
    return np.where(np.isnan(held[:, -1]), np.nan, np.minimum(needed, share.shape[1]) / share.shape[1])


def _shares(energies: np.ndarray) -> np.ndarray:
    flat = np.asarray(energies, dtype=np.float64).reshape(len(energies), -1)
    if flat.shape[1] < 2:
        raise ValueError(f"a feature map needs at least two places, got shape {np.shape(energies)}")
    total = flat.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, flat / total, np.nan)


# -- Whether feature maps still look at the same places -------------------------------------------------

PICTURES = 3  # samples shown
LAYERS = 5  # of each
MOST = 32  # layers looked at, evenly over the network
FINEST = 32  # places on a side; larger maps are averaged over neighbouring places


def localisation_section(subject: Subject) -> Section:
    """Energy entropy and the area that holds 80 % of the energy, layer by layer, before and after.

    Raises:
        Skipped: no layer gives maps of [batch, channels, height, width].
    """
    names = subject.common()
    before, after = (_energies(graph, subject, names) for graph in subject.graphs)
    names = [n for n in names if n in before and n in after and before[n].shape == after[n].shape]
    if not names:
        raise Skipped("no layer gives feature maps [batch, channels, height, width]")
    names = [names[i] for i in _even(len(names), MOST)]
    entropy = [np.array([_mean(energy_entropy(e[n])) for n in names]) for e in (before, after)]
    area = [np.array([_mean(area_holding(e[n])) for n in names]) for e in (before, after)]
    shown = [names[i] for i in _even(len(names), LAYERS)]
    rows = []
    for sample in range(min(PICTURES, subject.count)):
        for which, energies in (("original", before), ("subnetwork", after)):
            pictures = [
                {"name": n, "pixels": clipped(_picture(energies[n][sample]), 3), "signed": False}
                for n in shown
            ]
            rows.append({"name": f"sample {sample + 1}, {which}", "pictures": pictures})
    moved = float(_mean(area[1] - area[0]))
    how = "as in the original"
    if abs(moved) >= 0.005:
        how = f"{abs(100 * moved):.1f} points {'more' if moved > 0 else 'less'} than in the original"
    return Section(
        "localisation",
        "Where feature maps look",
        f"80 % of a map's energy lies on {_mean(area[1]):.0%} of its places, {how}",
        f"{subject.count} validation samples, {len(names)} layers, after norm and activation; maps of more "
        "than "
        f"{FINEST} places on a side are averaged",
        (
            SectionFigure(
                "lines",
                "Area that holds 80 % of the energy",
                "Where the two lines part, the subnetwork's maps are more spread out (above) or more "
                "concentrated (below) than the original's.",
                {"labels": names, "series": series(original=clipped(area[0]), subnetwork=clipped(area[1])),
                 "percent": True, "axis": "share of the map"},
            ),
            SectionFigure(
                "lines",
                "Energy entropy",
                "1 is energy spread evenly over the map, 0 all of it in one place.",
                {"labels": names, "percent": False, "axis": "entropy, 0 to 1",
                 "series": series(original=clipped(entropy[0]), subnetwork=clipped(entropy[1]))},
            ),
            SectionFigure(
                "images",
                "Energy maps",
                "Bright places carry the energy; both networks' maps of a sample should be bright in the "
                "same places.",
                {"rows": rows},
            ),
        ),
        {
            "layers": names,
            "area": {"original": area[0], "subnetwork": area[1]},
            "entropy": {"original": entropy[0], "subnetwork": entropy[1]},
        },
    )  # fmt: skip


def _mean(values: np.ndarray) -> float:
    """Of those that are numbers: maps without any energy are nowhere."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _energies(graph: LayerGraph, subject: Subject, names: list[str]) -> dict[str, np.ndarray]:
    """[samples, height, width] by layer, of those that have maps of four places or more."""
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    nodes = {graph.ends[name]: name for name in names}
    for values in graph.values(subject.task.batches, nodes, _energy):
        for name, value in values.items():
            if value is not None:
                found[name].append(value)
    return {n: np.concatenate(parts) for n, parts in found.items() if len({p.shape[1:] for p in parts}) == 1}


def _energy(value: Tensor) -> np.ndarray | None:
    if value.dim() != 4 or value.shape[2] * value.shape[3] < 4:
        return None
    found = torch.from_numpy(energy(value.numpy()))
    height, width = (min(n, FINEST) for n in found.shape[1:])
    return adaptive_avg_pool2d(found[:, None], (height, width))[:, 0].numpy()


def _picture(pixels: np.ndarray) -> np.ndarray:
    """Scaled to [0, 1]."""
    return pixels / max(float(pixels.max()), 1e-30)


def _even(count: int, wanted: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int)).tolist()
