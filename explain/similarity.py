"""Similarity of representations: how much of the original's a subnetwork keeps, by depth."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from .graphs import LayerGraph
from .section import Section, SectionFigure, Skipped, clipped, series
from .subject import Subject


def gram(features: np.ndarray) -> np.ndarray:
    """Inner products [samples, samples] float64 of features [samples, ...], less their mean.

    Neither CKA nor the probes depend on the mean; without it no digits are lost to it.
    """
    flat = np.asarray(features, dtype=np.float64).reshape(len(features), -1)
    flat = flat - flat.mean(axis=0)
    return flat @ flat.T


def debiased_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """The unbiased estimate of the Hilbert-Schmidt independence criterion (Song et al. 2012, equation 5).

    Args:
        k, m: Gram matrices [n, n] of the same n >= 4 samples.

    Raises:
        ValueError: fewer than 4 samples, or matrices that do not fit.
    """
    n = len(k)
    if n < 4 or k.shape != (n, n) or m.shape != (n, n):
        raise ValueError(
            f"two Gram matrices of the same 4 samples or more are needed, got {k.shape}, {m.shape}"
        )
    a, b = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    both = a.sum(axis=0) @ b.sum(axis=0)
    trace = np.sum(a * b)
    return float((trace + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * both / (n - 2)) / (n * (n - 3)))


def linear_cka(k: np.ndarray, m: np.ndarray) -> float:
    """Debiased linear CKA of two representations, from their Gram matrices (Kornblith et al. 2019).

    1 for a representation and itself, unchanged by rotation and by scaling of either; about 0 for unrelated
    ones, where the biased estimate grows with the number of features. NaN where one of them is constant.
    """
    k, m = _scaled(k), _scaled(m)
    own = debiased_hsic(k, k) * debiased_hsic(m, m)
    return debiased_hsic(k, m) / float(np.sqrt(own)) if own > 0 else float("nan")


def probe_accuracy(
    k: np.ndarray, classes: np.ndarray, *, folds: int = 5, ridge: float = 1e-2, seed: int = 0
) -> float:
    """Share of samples whose class a linear probe reads off a representation, cross-validated.

    The probe is ridge regression onto the classes' indicators, in its dual form.

    Args:
        k: Gram matrix [n, n].
        classes: [n] int.
        folds: parts that are held out in turn.
        ridge: relative to the mean of the centred Gram matrix's diagonal.

    Raises:
        ValueError: fewer samples than folds.
    """
    n = len(k)
    if n < folds:
        raise ValueError(f"{folds} folds need as many samples, got {n}")
    targets = (classes[:, None] == np.unique(classes)).astype(np.float64)  # [n, classes]
    truth = targets.argmax(axis=1)
    fold = np.random.default_rng(seed).permutation(n) % folds
    hits = 0
    for held in range(folds):
        test, train = fold == held, fold != held
        inner = k[np.ix_(train, train)]
        cross = k[np.ix_(test, train)]
        column = inner.mean(axis=0)  # centre on the training samples
        centred = inner - column - column[:, None] + inner.mean()
        moved = cross - cross.mean(axis=1, keepdims=True) - column + inner.mean()
        size = np.trace(centred) / len(centred)
        offset = targets[train].mean(axis=0)
        if size <= 0:  # a constant representation says nothing
            guesses = np.tile(offset, (int(test.sum()), 1))
        else:
            dual = np.linalg.solve(centred + ridge * size * np.eye(len(centred)), targets[train] - offset)
            guesses = moved @ dual + offset
        hits += int((guesses.argmax(axis=1) == truth[test]).sum())
    return hits / n


def _scaled(k: np.ndarray) -> np.ndarray:
    """Of mean diagonal 1: products of large features would lose digits."""
    size = float(np.trace(k)) / max(1, len(k))
    return k / size if size > 0 else k


# -- How much of the original's representations a subnetwork keeps, by depth ----------------------------

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
        SectionFigure(
            "lines",
            "CKA of each layer with itself",
            "1 is the same representation up to rotation and scale; where the line falls, the subnetwork "
            "computes something else.",
            {"labels": names, "series": series(CKA=_whole(own)), "percent": False, "axis": "CKA", "from": 0},
        ),
        SectionFigure(
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
            SectionFigure(
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


def _grams(graph: LayerGraph, subject: Subject, names: list[str]) -> dict[str, np.ndarray]:
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
