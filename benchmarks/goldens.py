"""Golden figures: what a change of structure must leave as it is.

    python benchmarks/goldens.py record FILE     # on the commit before the change: two minutes of a core
    python benchmarks/goldens.py compare FILE    # on the same machine, after every step of it

Recorded are ledgers of short sweeps (searchers x kinds, with their seeds), costs of 1,000 random candidates
of six networks, built and exported weights, the options of splits, and partitions of graphs whose costs are
given. Numbers have to agree to 1e-9, relative, and everything else exactly; weights are compared by digest.
Choices that a searcher adds for itself (the rung of ``progressive``) are left out. The file is of one
machine: another one may round differently.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: one order of summation

import argparse
import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import netcarve
import numpy as np
import torch
from netcarve import Link, Task
from netcarve.deployment import partitioners
from netcarve.deployment.partitioners.oracles import random_graph
from repair_nets import ResNet20, ViT
from search_bought import HalfAlexNet
from torch import Tensor, nn

TRIALS, CANDIDATES, BUILT = 24, 1000, 3
SEARCHERS = ("auto", "nsga2", "gp", "greedy", "reinforce")
SPACES: dict[str, dict[str, Any]] = {  # kinds -> their options
    "prune": {"ratios": 4},
    "prune drop": {"ratios": 3},
    "prune splits": {"ratios": 3, "places": 4},
    "width": {},
    "exits": {"thresholds": (0.9, 0.7, 0.5)},
}
TIMED = {"latency_ms", "throughput_per_s", "energy_mj"}  # read off a clock, in whole or in part


class Mobile(nn.Module):
    """Depthwise blocks with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.up = nn.Sequential(nn.Conv2d(16, 48, 1, bias=False), nn.BatchNorm2d(48), nn.Hardswish())
        self.depth = nn.Sequential(nn.Conv2d(48, 48, 3, padding=1, groups=48, bias=False), nn.BatchNorm2d(48))
        self.squeeze, self.excite = nn.Conv2d(48, 12, 1), nn.Conv2d(12, 48, 1)
        self.down = nn.Sequential(nn.Conv2d(48, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depth(self.up(x))
        y = y * self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head((x + self.down(y)).mean((2, 3)))


class Recurrent(nn.Module):
    """A stacked LSTM over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 24, num_layers=2, batch_first=True)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.squeeze(1))[0][:, -1])


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 48), nn.GELU(), nn.LayerNorm(48), nn.Linear(48, 32), nn.GELU()
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": ResNet20,
    "vit": ViT,
    "half-alexnet": HalfAlexNet,
    "mobile": Mobile,
    "lstm": Recurrent,
    "mlp": Perceptron,
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    """A network with drawn weights, and 96 images."""
    torch.manual_seed(0)
    net = NETWORKS[name]()
    images = torch.randn(96, 1, 8, 8)
    with torch.no_grad():
        net.train()(images)  # BatchNorm statistics of these images
    return net.eval(), images


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, shapes and bytes."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        found.update(values.view(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b"")
    return found.hexdigest()[:16]


def sweeps() -> Iterator[tuple[str, Any]]:
    """Of each searcher and space the trials: choices and what was scored."""
    net, images = made("mobile")
    with torch.no_grad():
        labels = net(images).argmax(1)
    task = Task(net, images[:2], (images, labels), calibration=images[:64], name="golden")
    blueprint = netcarve.trace(net, images[:2])
    for kinds, options in SPACES.items():
        space = blueprint.space(*kinds.split(), calibration=task.calibration_batches, **options)
        for name in (*SEARCHERS, *(("progressive",) if kinds == "prune" else ())):
            with tempfile.TemporaryDirectory() as folder:
                run = netcarve.sweep(
                    task,
                    space,
                    name,
                    trials=TRIALS,
                    workers=0,
                    seed=3,
                    out=Path(folder) / "run",
                    measure=False,
                )
            known = {choice.name for choice in space.choices}
            yield (
                f"sweep {kinds}, {name}",
                [
                    {
                        "choices": {k: v for k, v in t.candidate.values.items() if k in known},
                        "scores": {k: v for k, v in t.scores.items() if k not in TIMED},
                        "error": t.error,
                    }
                    for t in run.trials
                ],
            )


def networks() -> Iterator[tuple[str, Any]]:
    """Costs of random candidates, weights of built ones and of an export."""
    for name in NETWORKS:
        net, images = made(name)
        space = netcarve.trace(net, images[:2]).space("prune", calibration=[((images[:64],), {})])
        drawn = space.sample(np.random.default_rng(0), CANDIDATES)
        yield f"choices of {name}", {c.name: list(c.options) for c in space.choices}
        yield f"costs of {name}", {k: list(map(float, v)) for k, v in space.cost_arrays(drawn).items()}
        for i, candidate in enumerate(drawn[:BUILT]):
            yield f"weights of {name}, candidate {i}", digest(space.build(candidate).state_dict())


def exported() -> Iterator[tuple[str, Any]]:
    from safetensors.torch import load_file

    net, images = made("mlp")
    labels = net(images).argmax(1)
    task = Task(net, images[:2], (images, labels), calibration=images[:64], name="golden")
    space = netcarve.trace(net, images[:2]).space("prune", calibration=task.calibration_batches)
    with tempfile.TemporaryDirectory() as folder:
        run = netcarve.sweep(
            task, space, "random", trials=4, workers=0, out=Path(folder) / "run", measure=False
        )
        run.export(2, Path(folder) / "out", ["state"])
        for file in sorted((Path(folder) / "out").rglob("*.safetensors")):
            yield f"exported {file.name}", digest(load_file(file))


def splits() -> Iterator[tuple[str, Any]]:
    """Where networks may be cut, and what crosses there."""
    for name in ("mobile", "vit"):
        net, images = made(name)
        space = netcarve.trace(net, images[:2]).space("splits", places=8, devices=("edge=0.2x", "server=1x"))
        every = space.sample(np.random.default_rng(0), CANDIDATES)
        costs = {k: list(map(float, v)) for k, v in space.cost_arrays(every).items() if k not in TIMED}
        yield f"splits of {name}", {"choices": {c.name: list(c.options) for c in space.choices}, **costs}


def partitions() -> Iterator[tuple[str, Any]]:
    """Plans for random graphs: the exact one of a chain, and greedy walks."""
    devices = [
        partitioners.CostedDevice("a"),
        partitioners.CostedDevice("b", speed=2.0),
        partitioners.CostedDevice("c"),
    ]
    link = Link(bandwidth_mbps=20, latency_ms=1)
    for seed in range(6):
        graph = random_graph(seed, 14)
        for goal in ("throughput", "latency", "traffic"):
            plan = partitioners.chain(graph, devices, link, minimise=goal)
            yield f"chain for {goal}, graph {seed}", [list(map(int, plan.parts)), float(plan.value)]
        for method in (partitioners.greedy_merge, partitioners.greedy_split):

            def slowest(parts: np.ndarray, graph: Any = graph) -> float:
                return float(np.bincount(parts, graph.work).max() + partitioners.traffic(graph, parts))

            walk = method(graph, slowest, parts=3)
            yield (
                f"{method.__name__}, graph {seed}",
                [[list(map(int, s.parts)), float(s.value)] for s in walk],
            )


def golden(says: Callable[[str], None]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in (networks, splits, partitions, exported, sweeps):
        says(part.__name__)
        found.update(part())
    return json.loads(json.dumps(found))


def differences(before: Any, after: Any, where: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() | after.keys():
            if key not in before or key not in after:
                yield f"{where}: {key!r} is {'new' if key in after else 'gone'}"
            else:
                yield from differences(before[key], after[key], f"{where}, {key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (a, b) in enumerate(zip(before, after, strict=True)):
            yield from differences(a, b, f"{where} [{i}]")
    elif isinstance(before, float) and isinstance(after, float):
        if not math.isclose(before, after, rel_tol=1e-9):
            yield f"{where}: {before!r} before, {after!r} now"
    elif before != after:
        yield f"{where}: {str(before)[:80]} before, {str(after)[:80]} now"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    asked = parser.parse_args()
    before = json.loads(asked.file.read_text()) if asked.what == "compare" else None
    found = golden(lambda text: print(text, file=sys.stderr, flush=True))
    if before is None:
        asked.file.write_text(json.dumps(found))
        print(f"{len(found)} figures and lists recorded in {asked.file}")
        return 0
    wrong = sorted(differences(before, found, "golden"))
    for line in wrong[:40]:
        print(line)
    print(f"{len(wrong)} differences" if wrong else f"all {len(found)} as before")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
