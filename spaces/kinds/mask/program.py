"""Program of a mask: blocks of a granularity with the smallest norms go, in one step or several; patterns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

# What a block of a weight [out, in, *kernel] holds.
GRANULARITIES = {
    "element": "one number",
    "kernel": "what one output takes from one input: w[o, i]",
    "row": "what one output takes: w[o]",
    "column": "what is taken from one input: w[:, i]",
}
Scope = Literal["layer", "global"]


@dataclass(frozen=True, slots=True)
class Sparsify:
    """One step of a program.

    Raises:
        ValueError: an unknown granularity or norm, or an amount outside [0, 1).
    """

    amount: float  # share of the blocks still there that goes, in [0, 1), as in torch.nn.utils.prune
    granularity: str = "element"
    norm: int = 1  # mean of |w| over the block, or 2: root of the mean of w squared

    def __post_init__(self) -> None:
        if not 0.0 <= self.amount < 1.0:
            raise ValueError(f"an amount lies in [0, 1): 1 would delete the layer; got {self.amount}")
        if self.granularity not in GRANULARITIES:
            raise ValueError(
                f"unknown granularity {self.granularity!r}; known are {', '.join(GRANULARITIES)}"
            )
        if self.norm not in (1, 2):
            raise ValueError(f"the norm is 1 or 2, got {self.norm}")


@dataclass(frozen=True, slots=True)
class Pattern:
    """At most ``n`` numbers that are not zero in each ``m`` neighbouring inputs of an output, at each tap of
    a kernel apart: ``2:4`` is what sparse tensor cores take (Mishra et al. 2021, arXiv 2104.08378). Inputs
    left over make a shorter group.

    Raises:
        ValueError: not ``0 < n < m``.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise ValueError(f"a pattern n:m keeps n of m inputs, 0 < n < m, got {self.n}:{self.m}")

    @classmethod
    def read(cls, text: str) -> Pattern:
        """From ``"2:4"``.

        Raises:
            ValueError: another text.
        """
        n, _, m = text.partition(":")
        if not (n.strip().isdigit() and m.strip().isdigit()):
            raise ValueError(f"a sparsity is a share below 1 or a pattern such as 2:4, got {text!r}")
        return cls(int(n), int(m))

    @property
    def amount(self) -> float:
        """Share of the numbers that goes."""
        return 1 - self.n / self.m

    def zeros(self, inputs: np.ndarray) -> np.ndarray:
        """Of one output at one tap, by its number of inputs."""
        return inputs // self.m * (self.m - self.n) + np.maximum(inputs % self.m - self.n, 0)

    def spans(self, inputs: int) -> list[int]:
        """Lengths of the groups."""
        return [self.m] * (inputs // self.m) + ([inputs % self.m] if inputs % self.m else [])

    def pick(self, worth: Tensor) -> Tensor:
        """Which of [..., inputs] stay in each group, bool: those worth most."""
        inputs = worth.shape[-1]
        padded = nn.functional.pad(worth.double(), (0, -inputs % self.m), value=-1.0).unflatten(
            -1, (-1, self.m)
        )
        stays = torch.zeros_like(padded, dtype=torch.bool)
        stays.scatter_(-1, padded.argsort(dim=-1, descending=True, stable=True)[..., : self.n], True)
        return stays.flatten(-2)[..., :inputs]


class Quota:
    """Which numbers of a weight stay, chosen span by span, each losing its part of the whole's."""

    def __init__(self, amount: float, numbers: int) -> None:
        self._numbers, self._goes = numbers, removed_blocks(amount, numbers)
        self._seen = self._gone = 0

    def pick(self, worth: Tensor) -> Tensor:
        """Which of the next numbers stay, bool: those worth most."""
        self._seen += worth.numel()
        goes = round(self._goes * self._seen / self._numbers) - self._gone
        self._gone += goes
        stays = torch.ones(worth.numel(), dtype=torch.bool, device=worth.device)
        stays[worth.flatten().argsort(stable=True)[:goes]] = False
        return stays.view(worth.shape)


def make_masks(
    weights: Mapping[str, Tensor], program: Sequence[Sparsify], *, scope: Scope = "layer"
) -> dict[str, Tensor]:
    """Masks of the weights that stay after all steps, each inside what the ones before have left.

    So a mixed program is structured first: ``[Sparsify(0.3, "row"), Sparsify(0.5)]`` takes whole rows and
    then single weights of the rows that stay. Norms are means over a block, so that blocks of all sizes
    compare (Han et al. 2015, arXiv 1506.02626, for single weights; Li et al. 2017, arXiv 1608.08710, for
    rows).

    Args:
        weights: by name, [out, in, *kernel] each.
        scope: the share holds in every weight, or over all of them together. At least one block of every
            weight stays.

    Returns:
        Bool tensors of the weights' shapes, True where a weight stays.

    Raises:
        ValueError: a weight with fewer than two axes, or an unknown scope.
    """
    if scope not in ("layer", "global"):
        raise ValueError(f"the scope is 'layer' or 'global', got {scope!r}")
    for name, weight in weights.items():
        if weight.dim() < 2:
            raise ValueError(f"{name} has shape {list(weight.shape)}; masks are for weights [out, in, ...]")
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
    for step in program:
        pools = [list(weights)] if scope == "global" else [[name] for name in weights]
        for names in pools:
            _take({n: weights[n].detach() for n in names}, masks, step)
    return masks


def blocks_of(shape: Sequence[int], granularity: str) -> int:
    """Number of blocks of a weight."""
    taken = {"element": len(shape), "kernel": 2, "row": 1}
    if granularity == "column":
        return shape[1]
    count = 1
    for length in shape[: taken[granularity]]:
        count *= length
    return count


def removed_blocks(amount: float, blocks: int) -> int:
    """How many of so many blocks one step takes from one weight."""
    return min(round(amount * blocks), blocks - 1)


def _take(weights: Mapping[str, Tensor], masks: dict[str, Tensor], step: Sparsify) -> None:
    """One step in one pool of weights; changes ``masks``."""
    norms = {n: _norms(w * masks[n], step.granularity, step.norm) for n, w in weights.items()}
    there = {n: _shape(masks[n], step.granularity).any(-1) for n in weights}
    wanted = round(step.amount * sum(int(t.sum()) for t in there.values()))
    flat = torch.cat([torch.where(there[n], norms[n], torch.inf).flatten() for n in weights])
    # The strongest block of every weight stays: an empty layer would cut the network in two.
    ends = torch.tensor([there[n].numel() for n in weights]).cumsum(0).tolist()
    for end, name in zip(ends, weights, strict=True):
        start = end - there[name].numel()
        strongest = torch.where(there[name], norms[name], -torch.inf).flatten().argmax()
        flat[start + int(strongest)] = torch.inf
    order = torch.argsort(flat, stable=True)[:wanted]
    goes = torch.zeros(len(flat), dtype=torch.bool)
    goes[order[torch.isfinite(flat[order])]] = True
    for end, name in zip(ends, weights, strict=True):
        gone = goes[end - there[name].numel() : end].reshape(there[name].shape)
        masks[name] &= ~_spread(gone, masks[name].dim(), step.granularity)


def _shape(weight: Tensor, granularity: str) -> Tensor:
    """The weight as blocks [..., elements of a block]."""
    if granularity == "element":
        return weight.unsqueeze(-1)
    if granularity == "kernel":
        return weight.flatten(2) if weight.dim() > 2 else weight.unsqueeze(-1)
    return (weight if granularity == "row" else weight.transpose(0, 1)).flatten(1)


def _norms(weight: Tensor, granularity: str, norm: int) -> Tensor:
    blocks = _shape(weight, granularity).to(torch.float64)
    return blocks.abs().mean(-1) if norm == 1 else blocks.square().mean(-1).sqrt()


def _spread(blocks: Tensor, axes: int, granularity: str) -> Tensor:
    """A value per block, in a shape that broadcasts over the weight."""
    if granularity == "column":
        blocks = blocks.unsqueeze(0)
    return blocks.reshape(*blocks.shape, *[1] * (axes - blocks.dim()))
