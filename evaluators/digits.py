"""The bundled task: scikit-learn's handwritten digits (1797 real scans, 8x8) and a small residual CNN.

The network is trained once, in seconds on one thread, and cached under the user's cache folder.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .task import Task

log = logging.getLogger(__name__)

EPOCHS = 25
BATCH = 64
LEARNING_RATE = 3e-3
VALIDATION = 0.25  # fraction of the samples that training does not see
TEST = 1 / 3  # fraction of those by which no search chooses


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al. 2016, arXiv 1512.03385, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """Residual CNN for [N, 1, 8, 8] in [0, 1]: three stages of two blocks, 16, 32 and 64 channels wide."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.stage1 = nn.Sequential(ResidualBlock(16, 16, 1), ResidualBlock(16, 16, 1))
        self.stage2 = nn.Sequential(ResidualBlock(16, 32, 2), ResidualBlock(32, 32, 1))
        self.stage3 = nn.Sequential(ResidualBlock(32, 64, 2), ResidualBlock(64, 64, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.classifier(self.pool(x).flatten(1))


def data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """``(train, validation)``, each images float32 [n, 1, 8, 8] in [0, 1] and classes int64 [n]."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    train, validation = train_test_split(
        np.arange(len(images)), test_size=VALIDATION, random_state=0, stratify=digits.target
    )
    x, y = torch.from_numpy(images), torch.from_numpy(digits.target.astype(np.int64))
    return (x[train], y[train]), (x[validation], y[validation])


def held_out() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """``(validation, test)``: what training does not see, a third of it for the test figure."""
    from sklearn.model_selection import train_test_split

    _, (images, classes) = data()
    validation, test = train_test_split(
        np.arange(len(images)), test_size=TEST, random_state=0, stratify=classes.numpy()
    )
    return (images[validation], classes[validation]), (images[test], classes[test])


def train(seed: int = 0) -> DigitsNet:
    """A trained network, the same for the same seed: AdamW, one cycle, images shifted by up to one pixel.

    Runs on one thread; the caller's thread count and generators are left as they were.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _train()
    finally:
        torch.set_num_threads(threads)


def _train() -> DigitsNet:
    (images, classes), _ = data()
    model = DigitsNet().train()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.05)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, EPOCHS * steps)
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(images))[: steps * BATCH].view(steps, BATCH):
            loss = cross_entropy(model(_shifted(images[rows])), classes[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        log.info("digits: epoch %d of %d, loss %.3f", epoch + 1, EPOCHS, loss.item())
    return model.eval()


def _shifted(images: Tensor) -> Tensor:
    """Each image [n, 1, 8, 8] moved by -1, 0 or 1 pixel in both directions, zeros moved in."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    down, right = torch.randint(0, 3, (2, len(images), 1, 1))
    rows, columns = down + torch.arange(8)[:, None], right + torch.arange(8)
    return padded[torch.arange(len(images))[:, None, None], 0, rows, columns].unsqueeze(1)


def trained(cache: Path | None = None) -> DigitsNet:
    """The network with cached weights, training it where there are none (or damaged ones).

    Args:
        cache: folder; by default netcarve's folder in the user's cache.
    """
    from safetensors.torch import load_file

    path = (cache or _cache_folder()) / f"digits-{_recipe()[:16]}.safetensors"
    model = DigitsNet().eval()
    try:
        model.load_state_dict(load_file(path))
        return model
    except FileNotFoundError:
        log.info("digits: training the network once; it is then kept in %s", path)
    except Exception as error:
        log.warning("digits: the cached weights %s are damaged (%s); training again", path, error)
    model = train()
    _store(model, path)
    return model


def task() -> Task:
    """Digits, as ``netcarve sweep digits`` uses them: 1347 images to train on, 300 to score, 150 to test."""
    train_set, _ = data()
    validation, test = held_out()
    return Task(
        trained(),
        torch.zeros(1, 1, 8, 8),
        validation,
        train=torch.utils.data.TensorDataset(*train_set),
        test=test,
        name="digits",
    )


def _cache_folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("netcarve"))


def _recipe() -> str:
    """Hash of everything that decides the weights: architecture, data and training."""
    parts: tuple[Any, ...] = (ResidualBlock, DigitsNet, data, train, _train, _shifted)
    numbers = (EPOCHS, BATCH, LEARNING_RATE, VALIDATION)
    text = "\n".join([*(inspect.getsource(part) for part in parts), repr(numbers)])
    return hashlib.sha256(text.encode()).hexdigest()


def _store(model: nn.Module, path: Path) -> None:
    """Written whole or not at all, since others may be reading. A full disk only costs time, next time."""
    from safetensors.torch import save

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            file.write(save(model.state_dict()))
        os.replace(file.name, path)
    except OSError as error:
        log.warning("digits: the weights could not be kept in %s (%s)", path.parent, error)
