"""Spectral partitions, by eigenvectors and by a graph network, and the eigenvalue bound on traffic."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .graph import Graph, Limits

if TYPE_CHECKING:
    import torch


TINY = 1e-3  # of the mean work, added to each node's so that none weighs nothing


def affinity(graph: Graph) -> np.ndarray:
    """float64 [nodes, nodes], symmetric: bytes between the maker of a tensor and each of its readers.

    A tensor's bytes are shared between its readers, so that every cut of this graph weighs at most the
    traffic of the partition. Inputs are not in it.
    """
    out = np.zeros((len(graph), len(graph)))
    for size, source, targets in graph.links:
        if source >= 0:
            for target in targets:
                out[source, target] += size / len(targets)
                out[target, source] += size / len(targets)
    return out


def spectral(graph: Graph, parts: int, *, seed: int = 0) -> np.ndarray:
    """Clusters of the first eigenvectors of the normalised Laplacian, their rows scaled to length 1.

    I - D^-1/2 A D^-1/2 (Ng, Jordan and Weiss, NIPS 2001). Balance and memory are for :func:`refine` to mend.

    Args:
        parts: at most the number of nodes.
        seed: of k-means.

    Returns:
        int64 [nodes], each in [0, parts).

    Raises:
        ValueError: more parts than nodes.
    """
    from sklearn.cluster import KMeans

    check_parts(graph, parts)
    if parts == 1:
        return np.zeros(len(graph), dtype=np.int64)
    vectors = _eigenvectors(graph, parts)
    rows = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return KMeans(parts, n_init=10, random_state=seed).fit_predict(rows).astype(np.int64)


def fiedler_order(graph: Graph) -> np.ndarray:
    """int64 [nodes]: nodes by their entry in the second eigenvector, so that neighbours come together.

    Intervals of it are balanced parts (Fiedler, Czechoslovak Mathematical Journal 25, 1975; Pothen, Simon
    and Liou, SIAM J. Matrix Anal. Appl. 11, 1990).
    """
    if len(graph) == 1:
        return np.zeros(1, dtype=np.int64)
    return np.argsort(_eigenvectors(graph, 2)[:, 1], kind="stable")


def _eigenvectors(graph: Graph, count: int) -> np.ndarray:
    """float64 [nodes, count]: of the normalised Laplacian, for its least eigenvalues."""
    from scipy.linalg import eigh

    between = affinity(graph)
    root = inverse_root(between.sum(axis=1))
    laplacian = np.eye(len(graph)) - root[:, None] * between * root[None, :]
    return eigh(laplacian, subset_by_index=[0, count - 1])[1]


def eigenvalue_bound(graph: Graph, limits: Limits) -> float:
    """Bytes that any partition within the work limits must send.

    With X the indicator of the parts and W the work, the cut is tr(X' L X) / 2 and X' W X is diagonal with
    the parts' work m; hence cut >= sum_k m_k lambda_k / 2, with m falling and lambda the least eigenvalues of
    W^-1/2 L W^-1/2, rising (Donath and Hoffman, IBM Journal 17, 1973). The least sum over all m within the
    limits fills the largest parts first. Nodes without work get ``TINY``, and the limits that much more.
    """
    from scipy.linalg import eigh

    work, caps = limits.weights[:, 0], limits.slack[:, 0]
    parts = min(limits.parts, len(graph))
    if not np.isfinite(caps).all() or not work.sum() > 0 or parts < 2:
        return 0.0
    more = TINY * float(work.mean())
    work, caps = work + more, caps + more * len(graph)
    between = affinity(graph)
    laplacian = np.diag(between.sum(axis=1)) - between
    root = 1 / np.sqrt(work)
    scaled = root[:, None] * laplacian * root[None, :]
    eigenvalues = np.maximum(eigh(scaled, eigvals_only=True, subset_by_index=[0, parts - 1]), 0.0)
    left, bound = float(work.sum()), 0.0
    for cap, eigenvalue in zip(np.sort(caps)[::-1], eigenvalues, strict=False):
        filled = min(float(cap), left)
        bound += filled * float(eigenvalue) / 2
        left -= filled
    return bound * (1 - 1e-9)


def inverse_root(degree: np.ndarray) -> np.ndarray:
    """degree^-1/2, and 0 where the degree is 0."""
    return np.where(degree > 0, 1 / np.sqrt(np.where(degree > 0, degree, 1.0)), 0.0)


def check_parts(graph: Graph, parts: int) -> None:
    """Refuse numbers of parts that leave one empty."""
    if not 1 <= parts <= len(graph):
        raise ValueError(f"a graph of {len(graph)} nodes has 1 to {len(graph)} parts, asked for {parts}")


# -- A graph convolutional network trained to part one graph: the MinCutPool objective ------------------

RANDOM = 16  # random features: what tells nodes of equal figures apart


def mincut_pool(
    graph: Graph,
    parts: int,
    *,
    seed: int = 0,
    steps: int = 400,
    restarts: int = 3,
    hidden: int = 32,
    rate: float = 1e-2,
) -> np.ndarray:
    """Soft assignments S of a two-layer GCN (Kipf and Welling, ICLR 2017), made hard.

    Minimises -tr(S' A S) / tr(S' D S) + ||S'S / ||S'S|| - I / sqrt(parts)|| by Adam (L_c + L_o of Bianchi,
    Grattarola and Alippi, ICML 2020); of the restarts the one of least loss is taken. A is ``affinity``
    normalised, D^-1/2 A D^-1/2, as there. Balance and memory are for :func:`refine` to mend.

    Args:
        parts: at most the number of nodes.

    Returns:
        int64 [nodes], each in [0, parts).

    Raises:
        ValueError: more parts than nodes.
    """
    import torch

    check_parts(graph, parts)
    if parts == 1:
        return np.zeros(len(graph), dtype=np.int64)
    between = affinity(graph)
    root = inverse_root(between.sum(axis=1))
    adjacent = torch.tensor(root[:, None] * between * root[None, :], dtype=torch.float32)
    spread = (torch.eye(len(graph)) + adjacent) / 2  # a node hears itself as loud as all others together
    figures = torch.tensor(_figures(graph, between), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    best, found = math.inf, np.zeros(len(graph), dtype=np.int64)
    for _ in range(restarts):
        noise = torch.randn(len(graph), RANDOM, generator=generator)
        features = torch.cat([figures, noise], dim=1)
        first = _weights(features.shape[1], hidden, generator)
        second = _weights(hidden, parts, generator)
        optimiser = torch.optim.Adam([first, second], lr=rate)
        for _ in range(steps):
            optimiser.zero_grad()
            loss, soft = _objective(adjacent, spread, features, first, second)
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            loss, soft = _objective(adjacent, spread, features, first, second)
        if float(loss) < best:
            best, found = float(loss), soft.argmax(dim=1).numpy().astype(np.int64)
    return found


def _objective(
    adjacent: torch.Tensor,  # [nodes, nodes], normalised, without loops
    spread: torch.Tensor,  # [nodes, nodes], what a layer averages over
    features: torch.Tensor,  # [nodes, features]
    first: torch.Tensor,  # [features, hidden]
    second: torch.Tensor,  # [hidden, parts]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and the soft assignments [nodes, parts]."""
    import torch

    soft = (spread @ torch.relu(spread @ features @ first) @ second).softmax(dim=1)
    degree = adjacent.sum(dim=1, keepdim=True)
    cut = -(soft * (adjacent @ soft)).sum() / (degree * soft * soft).sum().clamp_min(1e-12)
    overlap = soft.T @ soft
    even = torch.eye(soft.shape[1]) / math.sqrt(soft.shape[1])
    return cut + (overlap / overlap.norm() - even).norm(), soft


def _weights(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Glorot's uniform start."""
    import torch

    reach = math.sqrt(6 / (rows + columns))
    return (reach * (2 * torch.rand(rows, columns, generator=generator) - 1)).requires_grad_()


def _figures(graph: Graph, between: np.ndarray) -> np.ndarray:
    """float64 [nodes, 4], each column of mean 0 and deviation 1: work, memory, bytes, place in the order."""
    place = np.linspace(0, 1, len(graph))
    columns = np.stack([np.log1p(graph.work), np.log1p(graph.memory), np.log1p(between.sum(axis=1)), place])
    centred = columns - columns.mean(axis=1, keepdims=True)
    deviation = columns.std(axis=1, keepdims=True)
    return (centred / np.where(deviation > 1e-12, deviation, 1.0)).T
