"""Accuracy without any training, every group cut alike: what repair is worth.

A ResNet-20 (16, 32, 64 channels) on scikit-learn's digits brought to 16x16, trained per seed in about a
minute on one core. Columns: plain surgery; BatchNorm re-estimated; least-squares repair from the original's
activations (LS) in the order of magnitude, and in that of backward elimination (OBS); the same followed by
repair layer by layer on the smaller network's own activations (sequential).

    python benchmarks/repair.py --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from netcarve import trace
from netcarve.evaluators.batchnorm import reestimate_batchnorm
from netcarve.evaluators.tasks.digits import Block, data
from netcarve.spaces import Space
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

CUTS = (0.25, 0.5, 0.625, 0.75)  # of every group
METHODS = {  # column -> importance, repair, BatchNorm re-estimated
    "plain": ("l1", False, False),
    "BN": ("l1", False, True),
    "magnitude+LS+BN": ("l1", "once", True),
    "OBS+LS+BN": ("reconstruction", "once", True),
    "magnitude+sequential": ("l1", True, True),
    "OBS+sequential": ("reconstruction", True, True),
}
CALIBRATION = 512  # training images


class ResNet20(nn.Module):
    """Three stages of three residual blocks (He et al. 2016, arXiv 1512.03385, section 4.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        widths = (16, 16, 16, 16, 32, 32, 32, 64, 64, 64)
        self.blocks = nn.Sequential(*(Block(i, o, 1 + (i != o)) for i, o in itertools.pairwise(widths)))
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))


def images() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """``(train, validation)`` at 16x16."""
    (x, y), (vx, vy) = data()
    big = lambda t: interpolate(t, size=(16, 16), mode="bilinear", align_corners=False)  # noqa: E731
    return (big(x), y), (big(vx), vy)


def trained(seed: int, x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    torch.manual_seed(seed)
    model = ResNet20().train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.05)
    steps = len(x) // 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, epochs * steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x))[: steps * 64].view(steps, 64):
            loss = cross_entropy(model(x[rows]), y[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def score(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Accuracy and mean cross-entropy."""
    with torch.no_grad():
        outputs = torch.cat([model(part) for part in x.split(100)])
    return float((outputs.argmax(1) == y).float().mean()), float(cross_entropy(outputs, y))


def spaces(model: nn.Module, x: Tensor, calibration: Sequence[Any]) -> dict[str, Space]:
    """One space a column, each over its own blueprint."""
    return {
        name: trace(model, x[:2]).space(
            ratios=[0, *CUTS], importance=importance, calibration=calibration, repair=repair
        )
        for name, (importance, repair, _) in METHODS.items()
    }


def table(seed: int, epochs: int) -> dict[str, np.ndarray]:
    """Accuracy [cuts] by column, and the milliseconds of repair and the MACs left."""
    (x, y), (vx, vy) = images()
    model = trained(seed, x, y, epochs)
    base, _ = score(model, vx, vy)
    at = torch.linspace(0, len(x) - 1, CALIBRATION).round().long()
    calibration = [((part,), {}) for part in x[at].split(128)]
    figures: dict[str, Any] = {"unpruned": np.full(len(CUTS), base)}
    for name, space in spaces(model, x, calibration).items():
        accuracies, seconds, macs = [], [], []
        for k in range(1, len(CUTS) + 1):
            candidate = space.candidate([k] * len(space))
            space.build(candidate)  # what is computed once per process
            start = time.perf_counter()
            small = space.build(candidate)
            seconds.append(time.perf_counter() - start)
            if METHODS[name][2]:
                reestimate_batchnorm(small, calibration)
            accuracies.append(score(small, vx, vy)[0])
            costs = space.costs([space.baseline, candidate])["macs"]
            macs.append(costs[1] / costs[0])
        figures[name], figures["macs"] = np.array(accuracies), np.array(macs)
        figures[f"{name} ms"] = 1e3 * np.array(seconds)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one network each")
    parser.add_argument("--epochs", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tables = [table(seed, options.epochs) for seed in options.seeds]
    mean = {key: np.mean([t[key] for t in tables], axis=0) for key in tables[0]}
    spread = {key: np.ptp([t[key] for t in tables], axis=0) for key in tables[0]}
    print(f"unpruned {100 * mean['unpruned'][0]:.1f} %, mean over seeds {options.seeds} (largest - smallest)")
    print(" | ".join(["cut", "MACs left", *METHODS, "build ms: plain", "LS", "sequential"]))
    for i, cut in enumerate(CUTS):
        cells = [f"{100 * mean[m][i]:.1f} % ({100 * spread[m][i]:.1f})" for m in METHODS]
        times = [f"{mean[key][i]:.1f}" for key in ("plain ms", "OBS+LS+BN ms", "OBS+sequential ms")]
        print(" | ".join([f"{100 * cut:.1f} %", f"{100 * mean['macs'][i]:.1f} %", *cells, *times]))


if __name__ == "__main__":
    main()
