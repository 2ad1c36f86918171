"""Time to build one pruned network, every group cut by half, beside Torch-Pruning; analytic costs a second.

    .venv/bin/pip install --no-deps timm torchvision torch-pruning
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/build.py [--runs 9]

Both in this process, on one thread, taking turns; medians of CPU milliseconds. The peer does what its users
do for each candidate: deep copy, dependency graph and pruner, step. What never changes (netcarve: trace and
proof, once a model) is in neither figure.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from coverage import make
from netcarve import trace

NETWORKS = ("tv:resnet50", "tv:densenet121", "tv:mobilenet_v2", "timm:vit_tiny_patch16_224")


def milliseconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return (time.process_time() - start) * 1e3


def peer(net: torch.nn.Module, x: torch.Tensor) -> None:
    import torch_pruning as tp

    model = copy.deepcopy(net)
    last = [m for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))][-1]
    heads = {m.qkv: m.num_heads for m in model.modules() if hasattr(m, "qkv")}
    for m in model.modules():
        if hasattr(m, "fused_attn"):
            m.fused_attn = False  # its graph needs the attention written out
    tp.pruner.MagnitudePruner(
        model,
        x,
        importance=tp.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=[last],
        num_heads=heads,
    ).step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    print(
        f"{'network':28} {'netcarve ms':>11} {'least..most':>13} {'peer ms':>9} {'ratio':>7} {'costs/s':>10}"
    )
    ratios = []
    for name in NETWORKS:
        net, x = make(name)
        space = trace(net, x).space("prune", ratios=[0, 0.5], importance="l1")
        candidate = space.candidate([1] * len(space))
        space.build(candidate)
        mine, theirs = [], []
        for run in range(runs):
            mine.append(milliseconds(lambda s=space, c=candidate: s.build(c)))
            if run < max(3, runs // 3):
                theirs.append(milliseconds(lambda n=net, i=x: peer(n, i)))
        n = 50_000
        many = np.random.default_rng(0).integers(0, 2, (n, len(space)))
        seconds = milliseconds(lambda s=space, i=many: s.model.cost_arrays(s.choices, i)) / 1e3
        ours, other = statistics.median(mine), statistics.median(theirs)
        ratios.append(other / ours)
        spread = f"{min(mine):.0f}..{max(mine):.0f}"
        print(f"{name:28} {ours:11.1f} {spread:>13} {other:9.0f} {other / ours:6.1f}x {n / seconds:10,.0f}")
    print(f"geometric mean of the ratios: {math.exp(statistics.fmean(map(math.log, ratios))):.1f}x")


if __name__ == "__main__":
    main()
