"""The network, the data and the picture of the joint benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from netcarve import Front, Objective, Task, Trial
from netcarve.evaluators.digits import data
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

SIZE = 64
EPOCHS, BATCH, RATE, NOISE = 15, 64, 3e-3, 100.0


class AlexNet(nn.Module):
    """torchvision's AlexNet (Krizhevsky 2014, arXiv 1404.5997) half as wide, with BatchNorm, for bytes
    [n, 1, 64, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(1, 32, 11, stride=4), nn.MaxPool2d(3, 2, 1),
            *_convolution(32, 96, 5), nn.MaxPool2d(2),
            *_convolution(96, 192, 3), *_convolution(192, 128, 3), *_convolution(128, 128, 3),
            nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x.float() / 255 - 0.5).flatten(1))


def _convolution(inputs: int, outputs: int, size: int, *, stride: int = 1) -> list[nn.Module]:
    padding = (size - 1) // 2 if stride == 1 else stride
    return [
        nn.Conv2d(inputs, outputs, size, stride, padding, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def task() -> Task:
    """The trained network, in half a minute on one thread; noise makes the digits worth a network like it."""
    torch.manual_seed(0)
    (train_x, train_y), (valid_x, valid_y) = data()
    train_x, valid_x, valid_y = noisy(train_x), noisy(valid_x.repeat(2, 1, 1, 1)), valid_y.repeat(2)
    model = AlexNet()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    steps = len(train_x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, EPOCHS * steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(train_x))[: steps * BATCH].view(steps, BATCH):
            loss = cross_entropy(model(train_x[rows]), train_y[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return Task(model.eval(), train_x[:16], (valid_x, valid_y), calibration=train_x[:512], name="digits64")


def noisy(images: Tensor) -> Tensor:
    """uint8 [n, 1, 64, 64] with Gaussian noise."""
    large = interpolate(images, size=(SIZE, SIZE), mode="bilinear") * 255
    return (large + NOISE * torch.randn_like(large)).clamp(0, 255).round().to(torch.uint8)


def draw(
    unpruned: Iterable[Mapping[str, float]], fronts: Mapping[str, Sequence[Trial]], floor: float, path: Path
) -> None:
    """Latency against traffic of every network within the tolerated loss that no other beats."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    axes.plot(
        [c["traffic_kb"] for c in unpruned], [c["latency_ms"] for c in unpruned], "x", color="0.5",
        label="unpruned, every cut",
    )  # fmt: skip
    goals = (Objective("latency_ms"), Objective("traffic_kb"))
    for (name, trials), style in zip(fronts.items(), ("s--", "^--", "o-"), strict=True):
        best = Front([t for t in trials if t.scores["accuracy"] >= floor], goals)
        best_at = sorted((t.scores["traffic_kb"], t.scores["latency_ms"]) for t in best)
        axes.step(*zip(*best_at, strict=True), style, where="post", markersize=4, label=name)
    axes.set_xscale("symlog", linthresh=0.05)
    axes.set_yscale("log")
    axes.set_yticks([10, 15, 20, 30, 50, 100], [str(ms) for ms in (10, 15, 20, 30, 50, 100)])
    axes.minorticks_off()
    axes.set_xlabel("traffic, kB a sample")
    axes.set_ylabel("latency, ms")
    axes.set_title(f"accuracy at least {floor:.1%}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
