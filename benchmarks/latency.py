"""Measured latency beside MACs: every group cut alike, with and without widths rounded to a multiple of 8.

    .venv/bin/pip install --no-deps timm torchvision
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/latency.py [NAME ...] [--ratios 0.3 0.55]

A name is as in ``coverage.py``. Wall time of one call on one thread, eager, measured as netcarve's sweeps
do: calls of the cut network alternate with those of the unpruned one. The ratio is that of the two medians
within a round; the table shows the median of the rounds and their range.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from coverage import make
from netcarve import Candidate, Space, trace
from netcarve.evaluators.latency import measure_latency
from netcarve.evaluators.machine import processor

NETWORKS = ("tv:resnet50", "timm:vit_tiny_patch16_224")
RATIOS = (0.0, 0.25, 0.5, 0.75)


def cut(space: Space, ratio: float) -> Candidate:
    """Every group cut by ``ratio``, or as far below as its options allow."""
    return space.candidate([max(i for i, r in enumerate(c.options) if r <= ratio) for c in space.choices])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NETWORKS)
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8, help="for each figure and round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ratios = sorted({0.0, *options.ratios})
    torch.set_num_threads(1)
    print(
        f"{processor()}, 1 thread, batch {options.batch}, {options.rounds} rounds; x of the unpruned network"
    )
    print(f"{'network':26} {'cut':>4} {'multiple':>8} {'MACs':>6} {'ms':>7} {'time':>6} {'least..most':>13}")
    for name in options.names:
        net, x = make(name)
        blueprint = trace(net, x)
        inputs = ((x.expand(options.batch, *x.shape[1:]).contiguous(),), {})
        built = []
        for multiple in (1, 8):
            space = blueprint.space("prune", ratios=ratios, importance="l1", round_to=multiple)
            for ratio in ratios:
                macs = space.costs([space.baseline, cut(space, ratio)]).macs
                built.append((ratio, multiple, macs[1] / macs[0], space.build(cut(space, ratio))))
        records = [
            [measure_latency(small, net, inputs, repeats=200, seconds=options.seconds) for *_, small in built]
            for _ in range(options.rounds)
        ]
        for (ratio, multiple, macs, _), found in zip(built, zip(*records, strict=True), strict=True):
            times = [r.ratio for r in found]
            print(
                f"{name.removesuffix('_patch16_224'):26} {ratio:4.0%} {multiple:8} {macs:5.2f}x "
                f"{statistics.median(r.median_ms for r in found):7.1f} {statistics.median(times):5.2f}x "
                f"{f'{min(times):.2f}..{max(times):.2f}':>13}",
                flush=True,
            )


if __name__ == "__main__":
    main()
