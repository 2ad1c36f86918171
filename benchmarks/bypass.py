"""Residual blocks as one linear map beside blocks dropped, no training.

ResNet-20 and a ViT of 4 layers on scikit-learn's digits with noise on the inputs (the networks and data of
``repair_study.py``): blocks at random, the same ones dropped, as their dearest option (``linear:3`` where
that is cheaper than the block) and as their cheapest operator. Accuracy on the test images, multiply-
accumulates as a share of the original's.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/bypass.py [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import logging

import numpy as np
import torch
from netcarve import trace
from repair_nets import noisy, score
from repair_study import NOISE, network

WAYS = {"dropped": -1, "dearest": 1, "cheapest": -2}  # which of each choice's options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    print(f"{'net':9} {'blocks':>7} " + " ".join(f"{way:>22}" for way in WAYS))
    for name in ("resnet20", "vit"):
        rows: dict[int, list[list[tuple[float, float]]]] = {}
        for seed in seeds:
            model, calibration = network(name, seed)
            test = noisy(seed, NOISE)[2]
            blueprint = trace(model, calibration[0][0][0][:2])
            space = blueprint.space("bypass", calibration=blueprint.calibrate(calibration))
            whole = float(space.cost_arrays([space.baseline])["macs"][0])
            rng = np.random.default_rng(seed)
            for count in range(len(space) + 1):
                chosen = set(rng.permutation(len(space))[:count].tolist())
                found = []
                for index in WAYS.values():
                    options = [index % len(c) if i in chosen else 0 for i, c in enumerate(space.choices)]
                    candidate = space.candidate(options)
                    macs = float(space.cost_arrays([candidate])["macs"][0])
                    found.append((score(space.build(candidate), test)[0], macs / whole))
                rows.setdefault(count, []).append(found)
        for count, figures in rows.items():
            means, spread = np.mean(figures, axis=0), np.std(figures, axis=0, ddof=len(seeds) > 1)
            said = (
                f"{100 * accuracy:5.1f} ± {100 * off:4.1f} % {macs:5.2f}x"
                for (accuracy, macs), (off, _) in zip(means, spread, strict=True)
            )
            print(f"{name:9} {count:7} " + " ".join(f"{text:>22}" for text in said), flush=True)


if __name__ == "__main__":
    main()
