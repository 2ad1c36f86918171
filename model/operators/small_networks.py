"""Small SplitNet, MorphNet and NestedNet: weights in branches that share nothing, in wider layers, in levels.

Built and counted here; what trains them is another matter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from .networks import CHANNELS, head, norm
from .stages import Cat, Gather


def plain_net(widths: Sequence[int], classes: int = 10, inputs: int = 1) -> nn.Sequential:
    """3x3 convolutions, batch norm and ReLU, one of each width, averaged down by 2 behind the first half."""
    layers: list[nn.Module] = []
    for number, (before, width) in enumerate(zip((inputs, *widths), widths, strict=False)):
        layers += [nn.AvgPool2d(2)] if number == (len(widths) + 1) // 2 else []
        layers.append(norm(before, width, 3, active=nn.ReLU()))
    return nn.Sequential(*layers, *head(widths[-1], classes))


def split_net(
    widths: Sequence[int], split: int, groups: int, classes: int = 10, inputs: int = 1
) -> nn.Sequential:
    """SplitNet (Kim et al. 2017): a trunk, then branches that share nothing, each with a part of the classes.

    Args:
        widths: of the :func:`plain_net` that is split.
        split: layers of the trunk, at least 1.
        groups: branches; the layers behind the trunk hold one part in so many of their weights.

    Raises:
        ValueError: groups that do not divide the widths behind the trunk or the classes, or no such trunk.
    """
    if not 1 <= split < len(widths):
        raise ValueError(f"the trunk has 1 to {len(widths) - 1} layers, got {split}")
    if any(n % groups for n in (*widths[split - 1 :], classes)):
        raise ValueError(
            f"{groups} groups do not divide the widths {list(widths[split - 1 :])} and {classes} classes"
        )
    whole, pool = plain_net(widths, classes, inputs), (len(widths) + 1) // 2
    trunk = whole[: split + (split > pool)]
    branches = []
    for group in range(groups):
        each = widths[split - 1] // groups
        reads = torch.arange(group * each, (group + 1) * each)
        layers: list[nn.Module] = [Gather(reads, CHANNELS)]
        for number in range(split, len(widths)):
            layers += [nn.AvgPool2d(2)] if number == pool else []
            width = widths[number] // groups
            layers.append(norm(each, width, 3, active=nn.ReLU()))
            each = width
        branches.append(nn.Sequential(*layers, *head(each, classes // groups)))
    return nn.Sequential(trunk, Cat(*branches, axis=-1))


def widened(
    widths: Sequence[int], budget: float, cost: Callable[[list[int]], float], *, most: float = 64.0
) -> list[int]:
    """MorphNet's uniform expansion (Gordon et al. 2018, arXiv 1711.06798, section 3.1): the widths times the
    largest factor with which their cost stays within the budget; rounded, at least 1.

    Args:
        cost: never falls as widths rise.
        most: of the factor.

    Raises:
        ValueError: widths of 1 cost more than the budget.
    """

    def scaled(factor: float) -> list[int]:
        return [max(1, round(factor * width)) for width in widths]

    if cost(scaled(0.0)) > budget:
        raise ValueError(f"widths of 1 cost {cost(scaled(0.0)):g}, more than the budget of {budget:g}")
    low, high = 0.0, most
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(scaled(middle)) <= budget else (low, middle)
    return scaled(low)


class NestedNet(nn.Module):
    """Levels in one set of weights (Kim et al. 2018, arXiv 1712.03781): each level reads those of the one
    below and more. Largest weights come first.

    Args:
        network: its weights of two axes and more are shared out; stays as it is.
        densities: rising shares of each weight, of the levels; the last may be 1.

    Raises:
        ValueError: densities that do not rise within (0, 1].
    """

    def __init__(self, network: nn.Module, densities: Sequence[float]) -> None:
        super().__init__()
        given = list(densities)
        if not given or given != sorted(set(given)) or not 0 < given[0] <= given[-1] <= 1:
            raise ValueError(f"densities are rising shares, above 0 and at most 1, got {given}")
        self.network, self.densities = copy.deepcopy(network), tuple(given)
        for name, weight in self.network.named_parameters():
            if weight.dim() > 1:
                order = weight.detach().abs().flatten().argsort(descending=True, stable=True)
                self.register_buffer(f"rank {name}".replace(".", "/"), order.argsort().view_as(weight))

    def masks(self, level: int) -> dict[str, torch.Tensor]:
        """By weight, which numbers a level reads: bool, part of those of the next."""
        found = {}
        for name, weight in self.network.named_parameters():
            if weight.dim() > 1:
                rank = self.get_buffer(f"rank {name}".replace(".", "/"))
                found[name] = rank < max(1, round(self.densities[level] * weight.numel()))
        return found

    def forward(self, x: torch.Tensor, level: int = -1) -> torch.Tensor:
        weights = dict(self.network.named_parameters())
        masked = {name: weights[name] * mask for name, mask in self.masks(level).items()}
        return torch.func.functional_call(self.network, masked, (x,))

    def level(self, level: int) -> nn.Module:
        """One level as a network of its own, to be exported."""
        alone = copy.deepcopy(self.network)
        with torch.no_grad():
            for name, mask in self.masks(level).items():
                alone.get_parameter(name).mul_(mask)
        return alone
