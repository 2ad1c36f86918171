"""Architectures beyond chains of convolutions: attention, embeddings, recurrence, skips, hand-made norms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from netcarve import trace
from netcarve.model.proof import relative_difference
from netcarve.spaces.testing import norms_over_kept, zeroed_consumers
from torch import nn
from toys import Recurrent, TransformerBlock


class GPT(nn.Module):
    """Decoder with tied embeddings."""

    def __init__(self, vocabulary=50, d=32):
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, d), nn.Embedding(16, d)
        self.blocks = nn.Sequential(*(TransformerBlock(d, hidden=4 * d, causal=True) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, vocabulary, bias=False)
        self.head.weight = self.token.weight

    def forward(self, ids):
        x = self.token(ids) + self.position(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.blocks(x)))


class RMSNorm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(d) + 0.5)

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Llama(nn.Module):
    """Rotary embedding, grouped-query attention, gated feed-forward, hand-written normalisation."""

    def __init__(self, d=32, heads=4, kv=2):
        super().__init__()
        self.token, self.heads, self.kv, self.dim = nn.Embedding(50, d), heads, kv, d // heads
        self.n1, self.n2, self.n3 = RMSNorm(d), RMSNorm(d), RMSNorm(d)
        self.q, self.o = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        self.k, self.v = (nn.Linear(d, kv * self.dim, bias=False) for _ in range(2))
        self.gate, self.up, self.down = nn.Linear(d, 64), nn.Linear(d, 64), nn.Linear(64, d)
        self.head = nn.Linear(d, 50, bias=False)
        angle = torch.outer(torch.arange(16), 1 / 100 ** (torch.arange(0, self.dim, 2) / self.dim))
        self.register_buffer("angle", torch.cat([angle, angle], -1))

    def rotate(self, x):
        a, b = x.chunk(2, -1)
        angle = self.angle[: x.shape[-2]]
        return x * angle.cos() + torch.cat([-b, a], -1) * angle.sin()

    def forward(self, ids):
        b, t = ids.shape
        x = self.token(ids)
        y = self.n1(x)
        q = self.q(y).view(b, t, self.heads, self.dim).transpose(1, 2)
        k, v = (layer(y).view(b, t, self.kv, self.dim).transpose(1, 2) for layer in (self.k, self.v))
        q, k = self.rotate(q), self.rotate(k)
        each = self.heads // self.kv
        k, v = (
            z[:, :, None].expand(b, self.kv, each, t, self.dim).reshape(b, self.heads, t, self.dim)
            for z in (k, v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        x = x + self.o(y.reshape(b, t, self.heads * self.dim))
        y = self.n2(x)
        return self.head(self.n3(x + self.down(F.silu(self.gate(y)) * self.up(y))))


def double(i, o):
    return nn.Sequential(
        nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.Conv2d(o, o, 3, padding=1), nn.ReLU()
    )


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = double(3, 8), double(8, 16), double(16, 32)
        self.up2, self.up1 = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.d2, self.d1, self.out = double(32, 16), double(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        return self.out(self.d1(torch.cat([self.up1(self.d2(torch.cat([self.up2(c), b], 1))), a], 1)))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.inside, self.encoder, self.out = (
            nn.Linear(6, 32),
            nn.TransformerEncoder(layer, 2),
            nn.Linear(32, 3),
        )

    def forward(self, x):
        return self.out(self.encoder(self.inside(x)).mean(1))


class Einsum(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = *(nn.Linear(6, 32) for _ in range(3)), nn.Linear(32, 3)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = (layer(x).view(b, t, 4, 8) for layer in (self.q, self.k, self.v))
        a = torch.einsum("bthd,bshd->bhts", q, k).softmax(-1)
        return self.out(torch.einsum("bhts,bshd->bthd", a, v).reshape(b, t, 32).mean(1))


def generator():
    return nn.Sequential(
        nn.ConvTranspose2d(20, 64, 4, bias=False), nn.BatchNorm2d(64), nn.ReLU(True),
        nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(True),
        nn.ConvTranspose2d(32, 3, 4, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip


def tokens(n):
    return torch.randint(0, 50, (n, 12))


NETWORKS = {
    "gpt": (GPT, tokens),
    "llama": (Llama, tokens),
    "lstm": (lambda: Recurrent(nn.LSTM, 16, 24, 5, nn.Embedding(50, 16)), tokens),
    "gru": (
        lambda: Recurrent(nn.GRU, 16, 24, 5, nn.Embedding(50, 16), num_layers=2, bidirectional=True),
        tokens,
    ),
    "unet": (UNet, lambda n: torch.randn(n, 3, 16, 16)),
    "generator": (generator, lambda n: torch.randn(n, 20, 1, 1)),
    "encoder": (Encoder, lambda n: torch.randn(n, 7, 6)),
    "einsum": (Einsum, lambda n: torch.randn(n, 7, 6)),
}


@pytest.mark.quick("lstm", "einsum", "generator")
@pytest.mark.parametrize("name", NETWORKS)
def test_half_of_every_group_goes_and_the_rest_runs(name):
    torch.manual_seed(0)
    make, inputs = NETWORKS[name]
    net = make().eval()
    blueprint = trace(net, inputs(2))
    space = blueprint.space(ratios=[0, 0.5])
    assert not blueprint.prove().left_out
    parameters = dict(net.named_parameters())
    reached = {m.parameter for g in blueprint.groups for m in g.members} & set(parameters)
    assert sum(parameters[p].numel() for p in reached) > 0.5 * sum(p.numel() for p in parameters.values())
    candidate = space.candidate([1] * len(space))
    small = space.build(candidate)
    assert sum(p.numel() for p in small.parameters()) == space.costs([candidate]).params[0]
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in parameters.values())
    with torch.no_grad():
        assert small(inputs(5)).shape == net(inputs(5)).shape


@pytest.mark.quick("generator")
@pytest.mark.parametrize("name", ["lstm", "unet", "generator"])
def test_pruned_equals_zeroed_consumers(name):
    torch.manual_seed(0)
    make, inputs = NETWORKS[name]
    net, x = make().eval(), inputs(3)
    blueprint = trace(net, x)
    space = blueprint.space()
    for candidate in space.sample(np.random.default_rng(0), 3):
        with torch.no_grad():
            expected = zeroed_consumers(net, blueprint, candidate)(x)
            assert relative_difference([space.build(candidate)(x)], [expected])[0] < 1e-5


@pytest.mark.quick("gpt")
@pytest.mark.parametrize("name", ["gpt", "encoder"])
def test_pruned_transformers_equal_zeroed_consumers_with_norms_over_the_kept(name):
    torch.manual_seed(0)
    make, inputs = NETWORKS[name]
    net, x = make().train().eval(), inputs(3)
    blueprint = trace(net, x)
    space = blueprint.space()
    residual = blueprint.groups[0].name
    for candidate in space.sample(np.random.default_rng(0), 3):
        oracle = zeroed_consumers(net, blueprint, candidate)
        if name == "gpt":  # tied: the embedding makes what the head reads, so mask what reaches the head
            mask = torch.zeros(32)
            mask[blueprint.kept(candidate)[residual]] = 1
            oracle.norm.register_forward_hook(lambda module, args, out, mask=mask: out * mask)
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad(), norms_over_kept(32, blueprint.kept(candidate)[residual]):
            expected = oracle(x)
        torch.backends.mha.set_fastpath_enabled(True)
        with torch.no_grad():
            assert relative_difference([space.build(candidate)(x)], [expected])[0] < 1e-5


def test_attention_is_cut_by_whole_heads_and_keeps_the_ratio_of_grouped_queries():
    gpt = {g.name: g for g in trace(GPT(), tokens(2)).groups}
    assert gpt["blocks.0.attention.qkv"].size == 4
    assert {
        m.positions.shape[1]
        for m in gpt["blocks.0.attention.qkv"].members
        if m.parameter.endswith("qkv.weight")
    } == {24}
    llama = {g.name: g for g in trace(Llama(), tokens(2)).groups}
    assert llama["q"].size == 2
    widths = {m.parameter: m.positions.shape[1] for m in llama["q"].members}
    assert widths["q.weight"] == 2 * widths["k.weight"]
