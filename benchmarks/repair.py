"""Accuracy without any training, every group cut alike: what repair is worth.

A ResNet-20 (16, 32, 64 channels) or a ViT of 4 layers on scikit-learn's digits brought to 16x16, trained per
seed in about a minute on one core. Columns: plain surgery; BatchNorm re-estimated; least-squares repair from
the original's activations (LS) in the order of magnitude, and in that of backward elimination (OBS); the same
followed by repair layer by layer on the smaller network's own activations (sequential).

    python benchmarks/repair.py --seeds 0 1 2
    python benchmarks/repair.py --net vit

``--study`` asks more, on noisy images: whether a repaired start is better after fine-tuning too, and whether
the training-free score ranks candidates as fine-tuning does (see ``repair_study.py``). About 16 minutes on
one core for both networks and three seeds:

    python benchmarks/repair.py --study --net resnet20 vit
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from netcarve import trace
from netcarve.evaluators.batchnorm import reestimate_batchnorm
from netcarve.evaluators.digits import data
from netcarve.spaces import Space
from repair_nets import RATES, ResNet20, ViT, enlarged, fit, score
from repair_study import study
from torch import Tensor, nn

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
EPOCHS = {"resnet20": 25, "vit": 60}


def trained(name: str, seed: int, x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    torch.manual_seed(seed)
    model = ResNet20() if name == "resnet20" else ViT(size=16)
    return fit(model, (x, y), steps=epochs * (len(x) // 64), rate=RATES[name], seed=seed, smoothing=0.1)


def spaces(model: nn.Module, x: Tensor, calibration: Sequence[Any]) -> dict[str, Space]:
    """One space a column, each over its own blueprint."""
    norms = any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    return {
        name: trace(model, x[:2]).space(
            ratios=[0, *CUTS], importance=importance, calibration=calibration, repair=repair
        )
        for name, (importance, repair, _) in METHODS.items()
        if norms or name != "BN"
    }


def table(net: str, seed: int) -> dict[str, np.ndarray]:
    """Accuracy [cuts] by column, and the milliseconds of repair and the MACs left."""
    (x, y), (vx, vy) = data()
    x, vx = enlarged(x), enlarged(vx)
    model = trained(net, seed, x, y, EPOCHS[net])
    base, _ = score(model, (vx, vy))
    at = torch.linspace(0, len(x) - 1, CALIBRATION).round().long()
    calibration = [((part,), {}) for part in x[at].split(128)]
    figures: dict[str, Any] = {"unpruned": np.full(len(CUTS), base)}
    for name, space in spaces(model, x, calibration).items():
        accuracies, seconds, macs = [], [], []
        for cut in CUTS:
            # Four heads have fewer options: the next smaller cut.
            candidate = space.candidate([sum(o <= cut for o in c.options) - 1 for c in space.choices])
            space.build(candidate)  # what is computed once per process
            start = time.process_time()
            small = space.build(candidate)
            seconds.append(time.process_time() - start)
            if METHODS[name][2]:
                reestimate_batchnorm(small, calibration)
            accuracies.append(score(small, (vx, vy))[0])
            costs = space.costs([space.baseline, candidate])["macs"]
            macs.append(costs[1] / costs[0])
        figures[name], figures["macs"] = np.array(accuracies), np.array(macs)
        figures[f"{name} ms"] = 1e3 * np.array(seconds)
    return figures


def tables(net: str, seeds: Sequence[int]) -> None:
    each = [table(net, seed) for seed in seeds]
    mean = {key: np.mean([t[key] for t in each], axis=0) for key in each[0]}
    spread = {key: np.ptp([t[key] for t in each], axis=0) for key in each[0]}
    base = 100 * mean["unpruned"][0]
    print(f"{net}: unpruned {base:.1f} %, mean over seeds {list(seeds)} (largest - smallest)")
    methods = [m for m in METHODS if m in mean]
    print(" | ".join(["cut", "MACs left", *methods, "build, CPU ms: plain", "LS", "sequential"]))
    for i, cut in enumerate(CUTS):
        cells = [f"{100 * mean[m][i]:.1f} % ({100 * spread[m][i]:.1f})" for m in methods]
        times = [f"{mean[key][i]:.1f}" for key in ("plain ms", "OBS+LS+BN ms", "OBS+sequential ms")]
        print(" | ".join([f"{100 * cut:.1f} %", f"{100 * mean['macs'][i]:.1f} %", *cells, *times]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--net", nargs="+", choices=tuple(EPOCHS), default=["resnet20"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one network each")
    parser.add_argument("--study", action="store_true", help="fine-tuning and ranking, on noisy images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.study:
        study(options.net, options.seeds)
        return
    for net in options.net:
        tables(net, options.seeds)


if __name__ == "__main__":
    main()
