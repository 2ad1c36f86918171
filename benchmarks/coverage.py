"""Which published architectures can be pruned exactly: every group cut by half, beside Torch-Pruning.

    make .venv/.zoo && .venv/bin/pip install --no-deps torch-pruning
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/coverage.py [NAME or FILE ...] [--peer] [--jobs 2]

A name is ``timm:<name>`` or ``tv:<name>`` (torchvision), with ``@96`` for images of 96 pixels and ``@32x8``
for eight frames of 32 pixels; a file lists one a line. Weights are random. Each network runs in a process of
its own on one thread. netcarve counts as exact when the pruned network runs, has fewer parameters and equals
the masked original (largest difference over largest output at most 1e-5).
The peer, with its usual call, counts when its pruned network runs and has fewer parameters: it is not checked
for equality, which favours it.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

DEFAULT = Path(__file__).with_name("architectures.txt")
LIMIT = {"ours": 240, "peer": 90}  # seconds of wall time for one network


def make(name: str):
    """A network with random weights and one example batch."""
    import torch
    from netcarve.spaces.testing import declare_torchvision_operators

    declare_torchvision_operators()
    torch.manual_seed(0)
    name, _, asked = name.partition("@")
    source, _, model = name.partition(":")
    pixels, _, frames = asked.partition("x")
    if source == "tv":
        import torchvision

        known = inspect.signature(torchvision.models.get_model_builder(model)).parameters
        options = {k: None for k in ("weights", "weights_backbone") if k in known}
        net = torchvision.models.get_model(model, **options)
        size = 299 if model == "inception_v3" else 224
    else:
        import timm

        try:  # transformers are made for one size, convolutional networks know none
            net = timm.create_model(model, pretrained=False, **({"img_size": int(pixels)} if asked else {}))
        except TypeError:
            net = timm.create_model(model, pretrained=False)
        size = net.default_cfg["input_size"][-1]
    size = int(pixels or size)
    return net.eval(), torch.randn(1, 3, *([int(frames)] if frames else []), size, size)


def ours(name: str) -> dict:
    from netcarve import trace

    os.environ["NETCARVE_PROOF_CACHE"] = "0"  # seconds include the proof
    net, x = make(name)
    start = time.process_time()
    blueprint = trace(net, x)
    space = blueprint.space("prune", ratios=[0, 0.5], importance="l1")
    small = space.build(space.candidate([len(c) - 1 for c in space.choices]))
    seconds = time.process_time() - start
    small(x)
    parameters = {n: p.numel() for n, p in net.named_parameters()}
    reached = {m.parameter for g in blueprint.groups for m in g.members} & set(parameters)
    costs = space.costs([space.baseline, space.candidate([len(c) - 1 for c in space.choices])]).macs
    total = sum(parameters.values())
    return {
        "groups": len(blueprint.groups),
        "left_out": len(blueprint.prove().left_out),
        "reached": sum(parameters[p] for p in reached) / total,
        "params": sum(p.numel() for p in small.parameters()) / total,
        "macs": costs[1] / costs[0],
        "difference": blueprint.prove().largest_difference,
        "artifact": blueprint.artifact,
        "seconds": seconds,
    }


def peer(name: str) -> dict:
    import torch
    import torch_pruning as tp

    net, x = make(name)
    before = sum(p.numel() for p in net.parameters())
    last = [m for m in net.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))][-1]
    start = time.process_time()
    pruner = tp.pruner.MagnitudePruner(
        net, x, importance=tp.importance.MagnitudeImportance(p=1), pruning_ratio=0.5, ignored_layers=[last]
    )
    pruner.step()
    seconds = time.process_time() - start
    net(x)
    after = sum(p.numel() for p in net.parameters())
    if after >= before:
        raise RuntimeError("no parameter less")
    return {"params": after / before, "seconds": seconds}


def apart(which: str, name: str) -> dict:
    """Run one network in a process of its own; a failure is a result."""
    command = [sys.executable, __file__, "--one", which, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT[which], check=False)
        lines = done.stdout.strip().splitlines()
        if done.returncode == 0 and lines:
            return json.loads(lines[-1])
        errors = done.stderr.strip().splitlines()
        return {"error": errors[-1][:70] if errors else f"exit code {done.returncode}"}
    except subprocess.TimeoutExpired:
        return {"error": f"more than {LIMIT[which]} s"}


def row(name: str, mine: dict, theirs: dict | None) -> str:
    if "error" in mine:
        text = f"{name:38} failed: {mine['error']}"
    else:
        text = (
            f"{name:38} {mine['groups']:4} {mine['reached']:7.0%} {mine['params']:7.0%} {mine['macs']:6.0%} "
            f"{mine['difference']:9.0e} {mine['seconds']:6.1f} {mine['artifact']:>7}"
        )
    if theirs is not None:
        text += "   " + (
            f"failed: {theirs['error']}" if "error" in theirs else f"runs, {theirs['params']:.0%}"
        )
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=[str(DEFAULT)])
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--one", choices=["ours", "peer"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        try:
            print(json.dumps((ours if options.one == "ours" else peer)(options.names[0])))
        except Exception as error:
            line = str(error).strip().partition("\n")[0]
            print(json.dumps({"error": f"{type(error).__name__}: {line}"[:160]}))
        return
    names: list[str] = []
    for given in options.names:
        lines = Path(given).read_text().splitlines() if Path(given).is_file() else [given]
        names += [line.strip() for line in lines if line.strip() and not line.startswith("#")]

    header = (
        f"{'network':38} {'grps':>4} {'reached':>7} {'params':>7} {'MACs':>6} {'max diff':>9} {'CPU s':>6}"
    )
    print(header + f" {'built':>7}" + ("   Torch-Pruning" if options.peer else ""))
    exact = run = 0
    with ThreadPoolExecutor(options.jobs) as threads:
        pairs = [
            (name, threads.submit(apart, "ours", name), options.peer and threads.submit(apart, "peer", name))
            for name in names
        ]
        for name, a, b in pairs:
            got, other = a.result(), b.result() if b else None
            exact += "error" not in got and got["params"] < 1 and got["difference"] <= 1e-5
            run += other is not None and "error" not in other
            print(row(name, got, other), flush=True)
    print(f"{exact} of {len(names)} pruned exactly" + (f"; Torch-Pruning: {run} run" if options.peer else ""))


if __name__ == "__main__":
    main()
