"""Time to build one pruned network, every group cut by half, beside Torch-Pruning; analytic costs a second;
time to switch the resident network, which scoring uses, between random candidates.

    .venv/bin/pip install --no-deps timm torchvision torch-pruning
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/build.py [--runs 9] [--no-peer]

Both in this process, on one thread, taking turns; medians of CPU milliseconds. The peer does what its users
do for each candidate: deep copy, dependency graph and pruner, step. What never changes (netcarve: trace and
proof, once a model) is in neither figure. Switching goes from one random candidate to the next, so that
nearly all weights change; its goals are 1 ms, and 3 ms on densenet121.
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

# with the goal for switching, milliseconds
NETWORKS = {
    "tv:resnet50": 1.0,
    "tv:densenet121": 3.0,
    "tv:mobilenet_v2": 1.0,
    "timm:vit_tiny_patch16_224": 1.0,
}
CANDIDATES = 200


def milliseconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return (time.process_time() - start) * 1e3


def switching(net: torch.nn.Module, x: torch.Tensor) -> tuple[list[float], float]:
    """Milliseconds per switch, and the largest relative difference from built networks over three of them."""
    space = trace(net, x).space("prune", importance="l1")
    elastic = space.model.elastic(space.choices)
    candidates = space.sample(np.random.default_rng(0), CANDIDATES)
    off = 0.0
    with torch.no_grad():
        for c in candidates[:3]:
            expected = space.build(c)(x)
            off = max(off, float((elastic.switch(c)(x) - expected).abs().max() / expected.abs().max()))
    return [milliseconds(lambda c=c: elastic.switch(c)) for c in candidates], off


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
    parser.add_argument("--no-peer", action="store_true", help="only switching")
    options = parser.parse_args()
    runs = options.runs
    torch.set_num_threads(1)
    if not options.no_peer:
        building(runs)
    print(f"{'network':28} {'switch ms':>9} {'least':>7} {'worst':>7} {'goal':>5}       {'off built':>9}")
    for name, goal in NETWORKS.items():
        times, off = switching(*make(name))
        median = statistics.median(times)
        verdict = "met" if median <= goal else "MISSED"
        print(
            f"{name:28} {median:9.2f} {min(times):7.2f} {max(times):7.2f} {goal:5.1f} {verdict:6} {off:8.0e}"
        )


def building(runs: int) -> None:
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
