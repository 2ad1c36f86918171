"""Pruning, operators and bits in one search, beside each alone, at equal evaluations.

ResNet-20 and a ViT of 4 layers on scikit-learn's digits with noise on the inputs (the networks and data of
``repair_study.py``), no training after the search. Each arm has the same number of trials of the same
searcher for accuracy, multiply-accumulates and size. Hypervolume is that of the front of each arm's
validation figures on *test* images: accuracy above chance as a share of the original's, multiply-accumulates
and size as shares of the original's on a logarithmic scale down to 1/100; the last columns are the smallest
network of the front within 1 point of the original's test accuracy, and the accuracy of the best within 1/10
of its size.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/hybrid.py [--trials 150] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
from pathlib import Path

import moocore
import numpy as np
import torch
from netcarve import Task, sweep, trace
from repair_nets import noisy, score
from repair_study import NOISE, network
from torch import nn

ARMS = {
    "prune": ("prune",),
    "operators": ("operators",),
    "bits": ("bits",),
    "all": ("prune", "operators", "bits"),
}
GOALS = ("accuracy", "macs", "size_mb")
LEAST = 0.01  # share of multiply-accumulates and size at which their axes end
CHANCE = 0.1
POINT = 0.01


def search(
    model: nn.Module, name: str, arm: str, seed: int, trials: int, calibration: list, workers: int
) -> dict[str, float]:
    _, validation, test = noisy(seed, NOISE)
    task = Task(model, calibration[0][0][0][:2], [validation], calibration=calibration, name=f"{name}-{arm}")
    space = trace(model, task.example).space(*ARMS[arm], calibration=calibration)
    with tempfile.TemporaryDirectory() as folder:
        run = sweep(
            task,
            space,
            "auto",
            GOALS,
            trials=trials,
            seed=seed,
            out=Path(folder) / "run",
            workers=workers,
            measure=False,
        )
        original, _ = score(model, test)
        costs = space.cost_arrays([space.baseline])
        points, small = [], []
        for trial in run.front:
            accuracy, _ = score(space.build(trial.candidate), test)
            macs, size = (trial.scores[goal] / float(costs[goal][0]) for goal in GOALS[1:])
            points.append((accuracy, macs, size))
            small.append((size, accuracy))
    rows = [
        (
            -max(accuracy - CHANCE, 0) / (original - CHANCE),
            *(math.log(max(share, LEAST)) / -math.log(LEAST) for share in shares),
        )
        for accuracy, *shares in points
    ]
    return {
        "hypervolume": float(moocore.hypervolume(np.array(rows), ref=[0.0, 0.0, 0.0])),
        "original": original,
        "smallest": min([s for s, a in small if a >= original - POINT], default=math.nan),
        "at a tenth": max([a for s, a in small if s <= 0.1], default=math.nan),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--net", nargs="+", choices=["resnet20", "vit"], default=["resnet20", "vit"])
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    print(f"{'net':9} {'arm':10} {'hypervolume':>17} {'smallest':>9} {'at a tenth':>11} {'original':>9}")
    for name in options.net:
        found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
        for seed in options.seeds:
            model, calibration = network(name, seed)
            for arm in ARMS:
                figures = search(model, name, arm, seed, options.trials, calibration, options.workers)
                found[arm].append(figures)
                print(name, seed, arm, {k: round(v, 4) for k, v in figures.items()}, flush=True)
        for arm, rows in found.items():
            volume, *others = (
                np.array([row[k] for row in rows])
                for k in ("hypervolume", "smallest", "at a tenth", "original")
            )
            spread = volume.std(ddof=1) if len(volume) > 1 else 0.0
            small, tenth, original = (
                float(np.nanmean(o)) if not np.isnan(o).all() else math.nan for o in others
            )
            print(
                f"{name:9} {arm:10} {volume.mean():9.4f} ± {spread:.4f} {small:8.3f}x {100 * tenth:10.1f} % "
                f"{100 * original:7.1f} %",
                flush=True,
            )


if __name__ == "__main__":
    main()
