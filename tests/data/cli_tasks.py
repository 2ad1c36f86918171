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


def unread():
    raise RuntimeError("the task was read")


class Untraceable(nn.Module):
    """No export follows it: whoever refuses something else did so before the model was traced."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        return self.net(x) if x.sum() > 0 else self.net(-x)


def untraceable():
    return Task(Untraceable().eval(), X[:1], (X, Y), name="untraceable")


class Talkative(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        print("forward of", tuple(x.shape))
        return self.net(x)


def talkative():
    torch.manual_seed(0)
    return Task(Talkative().eval(), X[:1], (X, Y), name="talkative")


def on_meta():
    return Task(net().to("meta"), X[:1], (X, Y), name="on_meta")
