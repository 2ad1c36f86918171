"""What the units of a group are called, from the operators that meet them."""

import pytest
import torch
from netcarve import trace
from torch import nn


class Attention(nn.Module):
    """Embedding, positions, one attention and one hidden layer, with or without additions."""

    def __init__(self, residual=True, fused=True):
        super().__init__()
        self.residual, self.fused, self.table = residual, fused, nn.Embedding(11, 8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.table(x)
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, 2).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-1, -2) / 2**0.5).softmax(-1) @ v
        y = self.out(y.transpose(1, 2).flatten(2))
        x = x + y if self.residual else y
        h = self.up(x)
        y = self.down(h + h**3)  # an addition, but of what one layer makes
        return self.head(x + y if self.residual else y)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.table, self.layer, self.head = nn.Embedding(11, 6), kind(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.layer(self.table(x))[0][:, -1])


def kinds(net, x):
    return {group.name: group.kind for group in trace(net, x).groups}


@pytest.mark.quick("True")
@pytest.mark.parametrize("fused", [True, False])
def test_a_transformer(fused):
    found = kinds(Attention(fused=fused), torch.randint(11, (2, 5)))
    assert found == {"table": "residual width", "qkv": "attention heads", "up": "MLP hidden"}


def test_without_additions_the_table_is_an_embedding():
    found = kinds(Attention(residual=False), torch.randint(11, (2, 5)))
    assert found["table"] == "embedding width"
    assert found["out"] == found["down"] == "MLP hidden"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers(kind):
    found = kinds(Recurrent(kind), torch.randint(11, (2, 5)))
    assert found == {"table": "embedding width", "layer": "recurrent state"}


def test_the_same_places_of_every_head():
    class Scaled(nn.Module):
        """The scale is a number, so that places within the heads may go; a table per head keeps these."""

        def __init__(self):
            super().__init__()
            self.qkv, self.out, self.bias = (
                nn.Linear(6, 24),
                nn.Linear(8, 3),
                nn.Parameter(torch.rand(2, 5, 5)),
            )

        def forward(self, x):
            q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
            y = ((q @ k.transpose(-1, -2)) * 0.5 + self.bias.cumsum(0)).softmax(-1) @ v
            return self.out(y.transpose(1, 2).flatten(2))

    assert set(kinds(Scaled(), torch.randn(2, 5, 6)).values()) == {"within heads"}


def test_convolutions():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(3))
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            x = self.a(x)
            return self.head((x + self.c(self.b(x).relu())).mean((2, 3)))

    assert kinds(Net(), torch.randn(2, 3, 6, 6)) == {"a": "residual width", "b": "channels"}
