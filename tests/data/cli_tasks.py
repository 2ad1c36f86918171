"""Tasks as users bring them: one that works, one that is slow, and one for every mistake."""

import time

import torch
from netcarve import Task
from torch import nn

torch.manual_seed(0)
X, Y = torch.randn(48, 3, 8, 8), torch.arange(48) % 4


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def task():
    print("their own words")
    torch.manual_seed(1)
    return Task(net(), X[:1], (X, Y), name="tiny")


def other():
    torch.manual_seed(2)
    return Task(net(), X[:1], (X, Y), name="tiny")


def slow():
    torch.manual_seed(1)
    return Task(net(), X[:1], (X, Y), name="slow", metric=pause)


def pause(outputs, targets):
    time.sleep(0.05)
    return -float(nn.functional.cross_entropy(outputs, targets))


def empty():
    return Task(net(), X[:1], [])


def misshapen():
    return Task(net(), X[:1], (torch.randn(48, 5, 8, 8), Y))


def wrong_example():
    return Task(net(), X[:1, :2], (X, Y))


def nan():
    model = net()
    nn.init.constant_(model[-1].bias, float("nan"))
    return Task(model, X[:1], (X, Y))


def other_needs(seed):
    return seed


def number():
    return 3


def crash():
    raise RuntimeError("cannot find my weights")
