"""Toy networks that several test files need: residual, attention and recurrent ones, by their widths.

A network that exists to show one odd thing stays in the file that shows it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, then ReLU (He et al. 2016).

    Args:
        inplace: the sum and its activations overwrite what they read.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, inplace: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu, self.inplace = nn.ReLU(inplace), inplace
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.inplace:
            y += self.shortcut(x)
        else:
            y = y + self.shortcut(x)
        return self.relu(y)


class Convs(nn.Module):
    """Residual, with writing in place and a linear end."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.down = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.act = nn.ReLU(inplace=True)
        self.same = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.out = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.down(self.stem(x)))
        x = self.act(x + self.same(x))
        return self.out(x.mean((2, 3)))


def attend(qkv: torch.Tensor, heads: int, **options: Any) -> torch.Tensor:
    """Attention over [batch, tokens, 3 x width] of queries, keys and values: [batch, tokens, width]."""
    q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in qkv.chunk(3, -1))
    y = functional.scaled_dot_product_attention(q, k, v, **options)
    return y.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Of several heads, with one projection into all."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        return self.out(attend(self.qkv(x), self.heads, **options))


class TransformerBlock(nn.Module):
    """Attention, then an MLP, each beside a shortcut, the norms before them or (``post``) behind."""

    def __init__(
        self,
        width: int,
        heads: int = 4,
        hidden: int | None = None,
        *,
        post: bool = False,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.post, self.causal = post, causal
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, hidden or 2 * width), nn.Linear(hidden or 2 * width, width)

    def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        options = {"is_causal": True, **options} if self.causal else options
        if self.post:
            x = self.norm1(x + self.attention(x, **options))
            return self.norm2(x + self.down(functional.gelu(self.up(x))))
        x = x + self.attention(self.norm1(x), **options)
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Words(nn.Module):
    """Tokens, one block of a transformer, their mean classified."""

    def __init__(self, tokens: int, width: int, outputs: int, heads: int = 4) -> None:
        super().__init__()
        self.embed, self.block = nn.Embedding(tokens, width), TransformerBlock(width, heads)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.embed(x)).mean(1))


class Recurrent(nn.Module):
    """What a recurrent layer gives last, classified; of what ``embed`` gives."""

    def __init__(
        self,
        kind: type[nn.RNNBase],
        inputs: int,
        hidden: int,
        outputs: int,
        embed: nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.embed = nn.Identity() if embed is None else embed
        self.rnn = kind(inputs, hidden, batch_first=True, **options)
        self.head = nn.Linear(hidden * (2 if options.get("bidirectional") else 1), outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.embed(x))[0][:, -1])
