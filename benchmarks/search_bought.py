"""What a search buys: its front against uniform cuts, its own figures against confirmed ones, on test data.

    python benchmarks/search.py --bought            # three networks, 200 trials, 3 seeds: half an hour
    python benchmarks/search.py --bought --quick    # 60 trials, one seed

Digits with noise (``repair_nets.py``): 700 validation images by which ``auto`` chooses, half of the test
images to confirm its front, the other half to judge both. Hypervolumes lie within 10 points of the unchanged
network's accuracy on the same images, and value the front as the search's own figures choose from it;
*optimism* is that above the judging half. *bought* is accuracy at equal MACs over the line through the
unchanged network and seven uniform cuts, in points; *told*: in how many seeds its 95 % interval lies above 0.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import netcarve
import numpy as np
import torch
from netcarve import Front, Task, Trial
from netcarve.evaluators.pool import Job
from netcarve.evaluators.quality import Quality
from netcarve.results.comparison import Gain, gain
from netcarve.results.confirmation import chosen_volume
from repair_nets import COPIES, NETS, RATES, Set, fit, noisy
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

NOISE, MARGIN, VALIDATION = 0.3, 0.10, 700
STEPS = {"resnet20": 600, "vit": 1200, "half-alexnet": 600}
OBJECTIVES = ("accuracy", "macs")


class HalfAlexNet(nn.Module):
    """AlexNet (Krizhevsky et al. 2012) at half its width, its strides fit for small images."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 96, 192, 128, 128)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if i in (0, 1) else []
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(128 * 4, 256),
            nn.ReLU(),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Linear(256, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


NETWORKS: dict[str, Callable[[], nn.Module]] = {**NETS, "half-alexnet": HalfAlexNet}


@dataclass(frozen=True)
class Bought:
    """One sweep."""

    volumes: tuple[float, float, float]  # by the search's own figures, confirmed, judged
    gain: Gain  # over uniform cuts, judged


def bought(name: str, seed: int, trials: int) -> Bought:
    """Train, sweep, and judge on images that neither chose nor confirmed."""
    torch.manual_seed(seed)
    train, validation, test = noisy(seed, NOISE)
    rate = RATES.get(name, 1e-3)
    model = fit(NETWORKS[name](), train, steps=STEPS[name], rate=rate, noise=NOISE, seed=seed, smoothing=0.1)
    images = len(test[0]) // COPIES["test"]  # all copies of an image fall on one side
    half = torch.randperm(images, generator=torch.Generator().manual_seed(seed)).tensor_split(2)
    both = [torch.cat([rows + images * i for i in range(COPIES["test"])]) for rows in half]
    confirm, judge = ((test[0][rows], test[1][rows]) for rows in both)
    chosen = validation[0][:VALIDATION], validation[1][:VALIDATION]
    calibration = train[0] + NOISE * torch.randn(train[0].shape)
    task = Task(model, chosen[0][:1], chosen, calibration=calibration, confirm=confirm, name=name)
    space = netcarve.trace(task.model, task.example).space("prune", calibration=task.calibration_batches)
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"trials": trials, "workers": 0, "seed": seed, "measure": False}
        run = netcarve.sweep(task, space, "auto", OBJECTIVES, out=Path(folder) / "run", **options)
    judged = {t.number: t for t in judging(task, space, judge, [*run.front, *run.uniform, run[0]])}
    volumes = (
        _volume(run.front, lambda t: t.scores["accuracy"], run[0]),
        _volume(run.front, lambda t: t.confirmed["accuracy"], run[0]),
        _volume(run.front, lambda t: judged[t.number].confirmed["accuracy"], run[0]),
    )
    all_judged = [judged.get(t.number, t) for t in run.trials]
    found = gain(Front(all_judged, OBJECTIVES), [judged[t.number] for t in run.uniform])
    assert found is not None  # accuracy and MACs, and a ladder of seven
    return Bought(volumes, found)


def judging(like: Task, space: netcarve.Space, data: Set, trials: Sequence[Trial]) -> list[Trial]:
    """The trials as other data confirm them: the same networks, calibrated on the same images."""
    calibration = [args[0] for args, _ in like.calibration_batches]
    task = Task(like.model, data[0][:1], data, calibration=calibration, confirm=False)
    job = Job(task, space, [Quality(each=True)])
    found = []
    for trial in trials:
        outcome = job.evaluate(trial.number, trial.candidate)
        assert outcome.scores is not None, outcome.error
        record = {"data": "judging", "samples": len(data[0]), "scores": outcome.scores}
        found.append(replace(trial, detail={"confirmed": record | {"right": outcome.detail["right"]}}))
    return found


def _volume(front: Front, value: Callable[[Trial], float], base: Trial) -> float:
    """Of the region within :data:`MARGIN` of the unchanged network by the same figures, normalised."""
    worst = value(base) - MARGIN
    reference = {"accuracy": worst, "macs": base.scores["macs"]}
    volume = chosen_volume(front, value, reference)
    assert volume is not None
    return volume * worst / MARGIN


def show_bought(console: Console, names: Sequence[str], seeds: int, trials: int) -> None:
    table = Table(
        title=f"auto, {trials} trials, {seeds} seeds: mean (least to most)", title_justify="left", box=None
    )
    for heading in (
        "network",
        "search",
        "confirmed",
        "judged",
        "optimism",
        "of the confirmed",
        "bought, points",
    ):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name in names:
        found = []
        for seed in range(seeds):
            found.append(one := bought(name, seed, trials))
            shown = ", ".join(f"{volume:.3f}" for volume in one.volumes)
            console.print(f"{name}, seed {seed}: {shown}; bought {100 * one.gain.mean:+.2f} points")
        seen, sure, judged = np.array([b.volumes for b in found]).T
        points = 100 * np.array([b.gain.mean for b in found])
        told = sum(b.gain.bought for b in found)
        cells = [f"{column.mean():.3f}" for column in (seen, sure, judged)]
        gaps = [f"{(column - judged).mean():+.3f} ({_range(column - judged)})" for column in (seen, sure)]
        table.add_row(name, *cells, *gaps, f"{points.mean():+.2f} ({_range(points)}), told {told}/{seeds}")
    console.print(table)


def _range(values: np.ndarray) -> str:
    return f"{values.min():+.3f} to {values.max():+.3f}"
