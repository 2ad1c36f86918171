"""How much of the original's representations a subnetwork keeps, by depth."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ...results.explaining.section import Figure, Section, Skipped, clipped, series
from ...results.explaining.similarity import gram, linear_cka, probe_accuracy
from .graphs import Graph
from .subject import Subject

MOST = 24  # layers, evenly over the network
WIDEST = 4096  # numbers a sample and layer; larger maps are averaged over neighbouring places
FEWEST = 20  # samples


def similarity_section(subject: Subject) -> Section:
    """Debiased linear CKA between the layers of both networks, and linear probes of each.

    Raises:
        Skipped: too few samples, or no layers in common.
    """
    if subject.count < FEWEST:
        raise Skipped(f"{subject.count} samples: representations of at least {FEWEST} are compared")
    names = subject.common()
    names = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, MOST).round().astype(int))]
    before, after = (_grams(graph, subject, names) for graph in subject.graphs)
    names = [n for n in names if n in before and n in after]
    if len(names) < 2:
        raise Skipped("fewer than two layers give one row a sample")
    table = np.array([[linear_cka(before[a], after[b]) for b in names] for a in names])
    own = np.diag(table)
    lowest = int(np.nanargmin(own)) if np.isfinite(own).any() else 0
    figures = [
        Figure(
            "lines",
            "CKA of each layer with itself",
            "1 is the same representation up to rotation and scale; where the line falls, the subnetwork "
            "computes something else.",
            {"labels": names, "series": series(CKA=_whole(own)), "percent": False, "axis": "CKA", "from": 0},
        ),
        Figure(
            "heat",
            "CKA between all layers",
            "A strong diagonal is a subnetwork that does the same at the same depth; strong squares beside "
            "it are "
            "work that has moved to another layer.",
            {"across": names, "down": names, "values": [_whole(row) for row in table], "signed": False,
             "percent": False, "axis": "CKA", "sides": ["subnetwork", "original"]},
        ),
    ]  # fmt: skip
    data = {"layers": names, "cka": own, "table": table}
    basis = (
        f"{subject.count} validation samples, {len(names)} layers after norm and activation; linear CKA with "
        f"the unbiased HSIC; maps of more than {WIDEST} numbers are averaged over neighbouring places"
    )
    try:
        classes = subject.classes().numpy()
    except Skipped as why:
        basis += f"; no probes: {why}"
    else:
        probes = [np.array([probe_accuracy(g[n], classes) for n in names]) for g in (before, after)]
        figures.append(
            Figure(
                "lines",
                "Linear probes",
                "How many samples' classes a linear reader tells from the layer alone; the lines should rise "
                "with depth and stay together.",
                {"labels": names, "percent": True, "axis": "accuracy of the probe",
                 "series": series(original=clipped(probes[0]), subnetwork=clipped(probes[1]))},
            )
        )  # fmt: skip
        data["probes"] = {"original": probes[0], "subnetwork": probes[1]}
        basis += "; probes are ridge regressions, 5-fold cross-validated on these samples"
    return Section(
        "cka",
        "Similarity by depth",
        f"mean CKA {np.nanmean(own):.2f}, lowest {own[lowest]:.2f} at {names[lowest]}",
        basis,
        tuple(figures),
        data,
    )


def _grams(graph: Graph, subject: Subject, names: list[str]) -> dict[str, np.ndarray]:
    found: dict[str, list[Tensor]] = defaultdict(list)
    nodes = {graph.ends[name]: name for name in names}
    for values in graph.values(subject.task.batches, nodes, pooled):
        for name, value in values.items():
            found[name].append(value)
    out = {}
    for name, parts in found.items():
        if len({p.shape[1:] for p in parts}) == 1 and sum(map(len, parts)) == subject.count:
            out[name] = gram(torch.cat(parts).numpy())
    return out


def pooled(value: Tensor, widest: int = WIDEST) -> Tensor:
    """Features [samples, at most about ``widest``], a copy.

    Maps [n, c, h, w] with more numbers are averaged over neighbouring places, other tensors over the axes
    between the first and the last.
    """
    value = value.detach().to(torch.float32, copy=True)
    if value[0].numel() > widest and value.dim() == 4:
        side = max(1, int((widest / value.shape[1]) ** 0.5))
        value = adaptive_avg_pool2d(value, (min(side, value.shape[2]), min(side, value.shape[3])))
    elif value[0].numel() > widest and value.dim() > 2:
        value = value.flatten(1, -2).mean(dim=1)
    return value.flatten(1)


def _whole(values: np.ndarray) -> list[float | None]:
    return [float(f"{v:.4g}") if np.isfinite(v) else None for v in values]
