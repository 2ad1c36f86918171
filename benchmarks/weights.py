"""Weights in fewer bits, or with zeros among them: nearest or smallest beside compensated.

ResNet-20 and a ViT of 4 layers on scikit-learn's digits with noise on the inputs (the networks and data of
``repair_study.py``), all layers alike, no training: accuracy on the test images, and size, or the share of
the parameters that are not zero, beside the original's.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/weights.py [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import logging
from typing import Any

import numpy as np
import torch
from netcarve import trace
from repair_nets import noisy, score
from repair_study import NOISE, network

BITS = (8, 4, 3, 2)
SPARSITIES = (0.0, 0.25, "2:4", 0.6, 0.75, "1:8")
ARMS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("bits", "size_mb", {"bits": BITS}, "bits_rounding"),
    ("mask", "nonzeros", {"sparsities": SPARSITIES}, "masking"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    print(f"{'net':9} {'weights':>8} {'plain':>15} {'compensated':>15} {'cost':>7}")
    for name in ("resnet20", "vit"):
        rows: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
        for seed in seeds:
            model, calibration = network(name, seed)
            test = noisy(seed, NOISE)[2]
            blueprint = trace(model, calibration[0][0][0][:2])
            data = blueprint.calibrate(calibration)
            for kind, cost, options, how in ARMS:
                spaces = {
                    way: blueprint.space(kind, calibration=data, **options, **{how: way})
                    for way in ("plain", "compensated")
                }
                plain = spaces["plain"]
                labels = max((c.options for c in plain.choices), key=len)
                for option in labels:
                    chosen = [c.options.index(option) if option in c.options else 0 for c in plain.choices]
                    found = [score(s.build(s.candidate(chosen)), test)[0] for s in spaces.values()]
                    share = plain.cost_arrays([plain.candidate(chosen), plain.baseline])[cost]
                    rows.setdefault((kind, str(option)), []).append((*found, share[0] / share[1]))
        for (kind, label), figures in rows.items():
            (a, b, share), spread = np.mean(figures, axis=0), np.std(figures, axis=0, ddof=len(seeds) > 1)
            said = label + (" bits" if kind == "bits" else "")
            both = (f"{100 * v:6.1f} ± {100 * s:4.1f} %" for v, s in ((a, spread[0]), (b, spread[1])))
            print(f"{name:9} {said:>8} {' '.join(both)} {share:6.2f}x", flush=True)


if __name__ == "__main__":
    main()
