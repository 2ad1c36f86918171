"""The networks and the data of the repair benchmarks: scikit-learn's digits, made harder by noise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from netcarve.evaluators.digits import ResidualBlock
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, scaled_dot_product_attention

TRAIN, VALIDATION = 600, 400  # images; the rest are the test set
COPIES = {"validation": 2, "test": 2}  # each image this many times, with other noise
Set = tuple[Tensor, Tensor]


class ResNet20(nn.Module):
    """Three stages of three residual blocks (He et al. 2016, arXiv 1512.03385, section 4.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        widths = (16, 16, 16, 16, 32, 32, 32, 64, 64, 64)
        self.blocks = nn.Sequential(
            *(ResidualBlock(i, o, 1 + (i != o)) for i, o in itertools.pairwise(widths))
        )
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A small vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929): 16 patches, 4 layers."""

    def __init__(self, size: int = 8, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, size // 4, size // 4)
        self.places = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(4)))
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.classifier(self.norm(self.layers(x)).mean(1))


NETS = {"resnet20": ResNet20, "vit": ViT}
RATES = {"resnet20": 3e-3, "vit": 2e-3}  # AdamW, top of the cycle


def noisy(seed: int, noise: float) -> tuple[Set, Set, Set]:
    """``(train, validation, test)`` at 8x8 in [0, 1] plus noise, other images and noise per seed.

    The training images are clean: :func:`fit` adds other noise at each step.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.from_numpy((digits.images[:, None] / 16).astype(np.float32))
    y = torch.from_numpy(digits.target.astype(np.int64))
    generator = torch.Generator().manual_seed(seed)
    train, validation, test = torch.randperm(len(x), generator=generator).tensor_split(
        [TRAIN, TRAIN + VALIDATION]
    )

    def copied(rows: Tensor, copies: int) -> Set:
        clean = x[rows].repeat(copies, 1, 1, 1)
        return clean + noise * torch.randn(clean.shape, generator=generator), y[rows].repeat(copies)

    sets = copied(validation, COPIES["validation"]), copied(test, COPIES["test"])
    return (x[train], y[train]), *sets


def fit(
    model: nn.Module,
    train: Set,
    *,
    steps: int,
    rate: float,
    noise: float = 0.0,
    seed: int = 0,
    batch: int = 64,
    smoothing: float = 0.0,
) -> nn.Module:
    """AdamW, one cycle; batches run through shuffled images, with new noise each time. In place."""
    x, y = train
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.train().parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps + 1, pct_start=0.25)
    epochs = math.ceil(steps * batch / (len(x) // batch * batch))
    rows = torch.cat(
        [torch.randperm(len(x), generator=generator)[: len(x) // batch * batch] for _ in range(epochs)]
    )
    for at in rows[: steps * batch].view(steps, batch):
        images = x[at] + noise * torch.randn(x[at].shape, generator=generator)
        loss = cross_entropy(model(images), y[at], label_smoothing=smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def score(model: nn.Module, data: Set) -> tuple[float, float]:
    """Accuracy and mean cross-entropy."""
    x, y = data
    with torch.no_grad():
        outputs = torch.cat([model(part) for part in x.split(200)])
    return float((outputs.argmax(1) == y).float().mean()), float(cross_entropy(outputs, y))


def enlarged(images: Tensor) -> Tensor:
    """[n, 1, 8, 8] brought to 16x16."""
    return interpolate(images, size=(16, 16), mode="bilinear", align_corners=False)
