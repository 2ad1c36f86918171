"""The task of the stored runs in ``tests/data/runs-0.1``: the same weights and data everywhere."""

import torch
from netcarve import Task
from torch import nn

BIAS = (-0.546875, -0.484375, -0.3125, -1.234375)  # so that all classes occur
# The model's own answers; every eighth is wrong.
LABELS = (
    "010223103230022332310223202230023332310233102230122300311223102200022300310223103230022310010223"
    "202230023300020233102230122300221223102201022300323223103231022310223023202231023300223012102231"
)


def spread(*shape, salt):
    """Float32 numbers in [-1, 1) that look random: made of integers, so the same anywhere."""
    count = int(torch.tensor(shape).prod())
    numbers = (torch.arange(count) * 40503 + salt * 9973) * 30011 % 65536
    return (numbers.float() / 32768 - 1).reshape(shape)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))


def task():
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        Residual(8),
        Residual(8),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 4),
    )
    with torch.no_grad():
        for salt, parameter in enumerate(model.parameters()):
            fan = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter.copy_(spread(*parameter.shape, salt=salt) / 2 ** (fan.bit_length() // 2 - 1))
        model[-1].bias.copy_(torch.tensor(BIAS))
    model.eval()
    x = spread(192, 1, 6, 6, salt=77)
    y = torch.tensor([int(label) for label in LABELS])
    parts = {"validation": (x[:96], y[:96]), "confirm": (x[96:144], y[96:144]), "train": (x[144:], y[144:])}
    return Task(model, x[:1], **parts, name="stored")
