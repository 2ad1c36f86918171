"""Exact rewrites: what merging branches and chains saves of a network like RepVGG's.

Six blocks of a 3x3 convolution, a 1x1 convolution and a batch norm side by side (Ding et al. 2021, arXiv
2101.03697), with average pools, random weights; processor time of the rewritten network over the given one's,
taken in turn.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/rewrite.py
"""

from __future__ import annotations

import time

import numpy as np
import torch
from netcarve import trace
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

BATCH, CALLS, ROUNDS = 8, 10, 15


class Block(nn.Module):
    """Three linear branches added, then ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.point = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.wide(x) + self.point(x) + self.norm(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 32, 3, padding=1), nn.Sequential(*(Block(32) for _ in range(3)))
        self.point, self.second = nn.Conv2d(32, 64, 1), nn.Sequential(*(Block(64) for _ in range(3)))
        self.last, self.out = nn.Conv2d(64, 64, 3, padding=1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(torch.relu(self.stem(x)))
        x = self.second(torch.relu(avg_pool2d(self.point(x), 2)))
        return self.out(torch.relu(avg_pool2d(self.last(x), 2)).mean((2, 3)))


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network, x = Net().eval(), torch.randn(BATCH, 3, 32, 32)
    space = trace(network, x[:2]).space("rewrite")
    candidates = [space.baseline, space.candidate(space.counts - 1)]
    for name, (given, made) in space.cost_arrays(candidates).items():
        print(f"{name:14} {made / given:6.2f}x")
    networks = [space.build(c) for c in candidates]

    def seconds(of: nn.Module) -> float:
        begun = time.process_time()
        for _ in range(CALLS):
            of(x)
        return time.process_time() - begun

    with torch.no_grad():
        print(f"largest difference {(networks[0](x) - networks[1](x)).abs().max():.1e}")
        for one in networks:
            seconds(one)
        ratios = [seconds(networks[1]) / seconds(networks[0]) for _ in range(ROUNDS)]
    low, middle, high = np.percentile(ratios, (10, 50, 90))
    print(f"time           {middle:6.2f}x ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
