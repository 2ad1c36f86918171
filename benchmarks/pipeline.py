"""Two stages on two cores against the unsplit model on one: throughput, latency and bytes, and as predicted.

    make .venv/.zoo
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/pipeline.py [NAME ...] [--quick] [--rounds 4]

A name is as in ``coverage.py``. Weights are random, images have 224 pixels, batch 1, a stream of 64 inputs.
The unsplit model runs eager in this process on the first core; the stages run as `netcarve serve` runs them,
on two cores, connected by TCP on this machine. Both take turns, and a gain is the ratio within a round: the
table shows the median of the rounds and their range. "2 x unsplit" runs two unsplit copies side by side: what
two cores of this machine give at most, since they share caches and memory.

The cut is chosen by timing real stages: those between cuts that balance the multiply-accumulates best are
built and timed in turns, those with the fastest slower stage are run as pipelines, and the one with the
highest throughput is taken (side by side stages slow each other down, those that move more memory more). Its
gain is then measured anew. A plan is predicted from the times of its own stages, each alone: latency is their
sum, throughput 1 / the slower one; bytes `Cut.bytes`.

On a quiet machine of four cores this takes about 4 minutes, with ``--quick`` 2; figures of a busy one say
little (the load is printed).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import dataclass

import torch
from coverage import make
from netcarve.deployment.serving import Deployment
from netcarve.deployment.serving.deployment import free_cores
from netcarve.evaluators.machine import processor
from netcarve.evaluators.stage_timing import stage_times
from netcarve.model.capture import capture
from netcarve.model.stages import Cut, Stage, by_balance, find_cuts, functionalise, split
from netcarve.standalone.stage import keep_memory

NETWORKS = ("tv:resnet18", "timm:vit_tiny_patch16_224", "tv:mobilenet_v2")
INPUTS = 64
GAP = 0.04  # of the network's multiply-accumulates, at least, between cuts that are tried


@dataclass(frozen=True)
class Plan:
    cut: Cut
    stages: list[Stage]
    ms: list[float]  # of each stage, alone


def plans(network, example, count: int, seconds: float) -> list[Plan]:
    """Real stages of the best balanced cuts, a few apart, timed in turns; the best first."""
    functional = functionalise(capture(network, example))
    chosen: list[Cut] = []
    for cut in by_balance(find_cuts(functional)):
        share = cut.macs[0] / sum(cut.macs)
        if all(abs(share - c.macs[0] / sum(c.macs)) > GAP for c in chosen) and len(chosen) < count:
            chosen.append(cut)
    made = [split(functional, [cut], check=False) for cut in chosen]
    times = stage_times(made, ((example,), {}), seconds=seconds)
    found = [Plan(cut, stages, ms.tolist()) for cut, stages, ms in zip(chosen, made, times, strict=True)]
    return sorted(found, key=lambda plan: max(plan.ms))


def unsplit(network, stream) -> float:
    """Inputs a second."""
    start = time.perf_counter()
    with torch.inference_mode():
        for x in stream:
            network(x)
    return len(stream) / (time.perf_counter() - start)


def streamed(deployment: Deployment, stream, inflight: int | None = None):
    for _ in deployment.run(stream, inflight=inflight):
        pass
    return deployment.record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--plans", type=int, default=4, help="cuts that are run, and their predictions checked"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds and plans")
    options = parser.parse_args()
    rounds, count = (3, 3) if options.quick else (options.rounds, options.plans)
    seconds = 4.0 if options.quick else 7.0
    torch.set_num_threads(1)
    keep_memory()  # as stages do
    everywhere = os.sched_getaffinity(0)
    cores = free_cores(2)
    elsewhere = everywhere - set(cores) or everywhere  # where the driver feeds and reads
    os.sched_setaffinity(0, elsewhere)
    load = os.getloadavg()[0]
    print(f"{processor()}, {os.cpu_count()} cores, stages on {cores}, load {load:.1f}, {rounds} rounds")
    gains = f"{'network':26} {'cut after':>22} {'1 core':>7} {'2 stages':>8} {'gain':>6} {'least..most':>12}"
    print(f"{gains} {'2 x unsplit':>11} {'ms alone':>13} {'ms in line':>13}")
    errors: dict[str, list[float]] = {"throughput": [], "latency": [], "bytes": []}
    for name in options.names:
        network, example = make(name)
        network.eval()
        stream = [torch.randn_like(example) for _ in range(INPUTS)]
        found = plans(network, example, 2 * count, seconds)[:count]
        ran = [_predictions(plan, stream[:24], cores, errors) for plan in found]
        best = max(zip(ran, found, strict=True), key=lambda pair: pair[0])[1]
        _gain(name, network, best, stream, rounds, cores, elsewhere)
    print("\npredicted against measured, median over plans (largest) of |ratio - 1|:")
    for what, values in errors.items():
        print(f"  {what:10} {statistics.median(values):6.1%} ({max(values):.1%}) over {len(values)} plans")


def _gain(name: str, network, plan: Plan, stream, rounds: int, cores: list[int], elsewhere: set[int]) -> None:
    one = split(functionalise(capture(network, stream[0])), [], check=False)
    lines = []
    with (
        Deployment(plan.stages, cores=cores) as pair,
        Deployment(one, cores=cores[:1]) as left,
        Deployment(one, cores=cores[1:]) as right,
    ):
        for running in (pair, left, right):
            streamed(running, stream[:8])
        for _ in range(rounds):
            os.sched_setaffinity(0, {cores[0]})
            alone = unsplit(network, stream)
            os.sched_setaffinity(0, elsewhere)
            both = streamed(pair, stream)
            lines.append((alone, both.throughput_per_s, _beside(left, right, stream), both))
    gains = sorted(both / alone for alone, both, _, _ in lines)
    most = statistics.median(two / alone for alone, _, two, _ in lines)
    busy = [statistics.median(r.stages[k].busy_ms for *_, r in lines) for k in range(2)]
    print(
        f"{name:26} {plan.cut.name[-22:]:>22} {statistics.median(a for a, *_ in lines):7.1f} "
        f"{statistics.median(b for _, b, *_ in lines):8.1f} {statistics.median(gains):5.2f}x "
        f"{gains[0]:5.2f}..{gains[-1]:4.2f} {most:10.2f}x {plan.ms[0]:6.1f} {plan.ms[1]:6.1f} "
        f"{busy[0]:6.1f} {busy[1]:6.1f}",
        flush=True,
    )


def _beside(left: Deployment, right: Deployment, stream) -> float:
    """Inputs a second of two copies at the same time, half of the stream each."""
    half = len(stream) // 2
    start = time.perf_counter()
    answers = [left.run(stream[:half]), right.run(stream[half:])]
    for pair in zip(*answers, strict=True):
        assert len(pair) == 2
    return len(stream) / (time.perf_counter() - start)


def _predictions(plan: Plan, stream, cores: list[int], errors: dict[str, list[float]]) -> float:
    """Inputs a second of a plan."""
    with Deployment(plan.stages, cores=cores) as deployment:
        streamed(deployment, stream[:8])
        alone = [streamed(deployment, stream, inflight=1).latency_ms for _ in range(3)]
        full = [streamed(deployment, stream) for _ in range(3)]
    latency, throughput = sum(plan.ms), 1000 / max(plan.ms)
    measured = statistics.median(r.throughput_per_s for r in full)
    errors["latency"].append(abs(latency / statistics.median(alone) - 1))
    errors["throughput"].append(abs(throughput / measured - 1))
    errors["bytes"].append(abs(full[0].boundaries[1].wire_bytes / (plan.cut.bytes * len(stream)) - 1))
    sent, idle = full[0].boundaries[1].wire_bytes / len(stream) / 1000, statistics.median(alone)
    print(
        f"    {plan.cut.name[-30:]:>30}: predicted {latency:6.1f} ms, {throughput:6.1f} a second, "
        f"{plan.cut.bytes / 1000:6.1f} kB; measured {idle:6.1f}, {measured:6.1f}, {sent:6.1f}",
        flush=True,
    )
    return measured


if __name__ == "__main__":
    sys.exit(main())
