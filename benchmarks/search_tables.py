"""The networks behind the problems of the search benchmark: trained, cut, repaired, scored. Needs torch."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from netcarve import Candidate, Choice, Space, Task, trace
from netcarve.evaluators import digits
from netcarve.evaluators.pool import Job
from netcarve.evaluators.quality import Quality
from netcarve.evaluators.ray_pool import RayPool
from netcarve.results import Proposal
from netcarve.spaces.kinds.base import Keeps
from netcarve.spaces.kinds.prune import PruneKind
from search_costs import fitted_forms
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

METRICS = ("macs", "params", "size_mb", "activation_mb")


class ResNet20(nn.Module):
    """Three stages of three residual blocks (He et al. 2016, arXiv 1512.03385, section 4.2)."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        first, last = widths[0], widths[-1]
        self.stem = nn.Sequential(nn.Conv2d(1, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        stream = [first, *(w for w in widths for _ in range(3))]
        self.blocks = nn.Sequential(
            *(digits.ResidualBlock(i, o, 1 + (i != o)) for i, o in itertools.pairwise(stream))
        )
        self.classifier = nn.Linear(last, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))


def digits_job(recipe: dict[str, Any]) -> Job:
    """Evaluation as a user of the digits task gets it: sequential repair, BatchNorm re-estimated."""
    task = digits.task()
    ratios = max((r for _, r in recipe["choices"].values()), key=len)
    space = trace(task.model, task.example).space(ratios=ratios, calibration=task.calibration_batches)
    return Job(task.without_train(), space, [Quality()])


def resnet_job(recipe: dict[str, Any], weights: Path) -> Job:
    """Cheap evaluation of the larger network; trained where ``weights`` is missing."""
    (x, y), (vx, vy) = images()
    task = Task(
        trained(recipe, weights, x, y),
        x[:2],
        (vx[: recipe["validation"]], vy[: recipe["validation"]]),
        calibration=_spread(x, recipe["batchnorm"]),
        name="resnet20",
    )
    calibration = [((part,), {}) for part in _spread(x, recipe["calibration"]).split(128)]
    blueprint = trace(task.model, task.example)
    space = blueprint.space(ratios=recipe["ratios"], calibration=calibration, repair=recipe["repair"])
    return Job(task, space, [Quality()])


def images() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """``(train, validation)`` digits at 16x16."""
    (x, y), (vx, vy) = digits.data()
    x, vx = (interpolate(t, size=(16, 16), mode="bilinear", align_corners=False) for t in (x, vx))
    return (x, y), (vx, vy)


def trained(recipe: dict[str, Any], path: Path, x: Tensor, y: Tensor) -> nn.Module:
    """The network of the recipe, from ``path`` or trained (half a minute) and kept there."""
    from safetensors.torch import load_file, save_file

    torch.manual_seed(recipe["seed"])
    model = ResNet20(recipe["widths"])
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.05)
    steps = len(x) // 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, recipe["epochs"] * steps)
    for _ in range(recipe["epochs"]):
        for rows in torch.randperm(len(x))[: steps * 64].view(steps, 64):
            loss = cross_entropy(model(x[rows]), y[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    part = path.with_name(f"{path.name}.{os.getpid()}")
    save_file(model.state_dict(), part)
    part.replace(path)
    return model.eval()


def forms(space: Space, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Costs as quadratic forms in the widths of the named groups (see :func:`fitted_forms`)."""
    kept = {c.about.group: c.kept for c in space.choices}
    if sorted(names) != sorted(kept):
        raise RuntimeError(
            f"the network has the groups {sorted(kept)}, the benchmark expects {sorted(names)}"
        )
    sizes = np.array([kept[name][0] for name in names])
    every = tuple(
        Choice(n, tuple(range(s)), PruneKind(), Keeps(n, {i: s - i for i in range(s)}, np.arange(s)))
        for n, s in zip(names, sizes.tolist(), strict=True)
    )

    def costs(widths: np.ndarray) -> dict[str, np.ndarray]:
        found = space.side.cost_arrays(every, sizes - widths)
        return {name: found[name] for name in METRICS}

    return fitted_forms(costs, sizes)


def score_all(job: Job, candidates: Sequence[Candidate], *, workers: int) -> np.ndarray:
    """Accuracy [candidates], with progress on standard error.

    Raises:
        RuntimeError: a candidate failed.
    """
    accuracy = np.full(len(candidates), np.nan)
    start = time.perf_counter()
    with RayPool(job, workers=workers) as pool:
        pool.submit(list(enumerate(map(Proposal, candidates))))
        while np.isnan(accuracy).any():
            for outcome in pool.finished():
                if outcome.scores is None:
                    raise RuntimeError(f"{candidates[outcome.number]} failed: {outcome.error}")
                accuracy[outcome.number] = outcome.scores["accuracy"]
            done = int((~np.isnan(accuracy)).sum())
            left = (time.perf_counter() - start) / done * (len(candidates) - done)
            print(
                f"\r{done}/{len(candidates)} scored, {left:.0f} s left ", end="", file=sys.stderr, flush=True
            )
    print(file=sys.stderr)
    return accuracy


def _spread(x: Tensor, n: int) -> Tensor:
    return x[torch.linspace(0, len(x) - 1, n).round().long()]
