"""A graph convolutional network trained to part one graph: the MinCutPool objective."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .graph import Graph
from .spectral import affinity, check_parts, inverse_root

if TYPE_CHECKING:
    import torch

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
