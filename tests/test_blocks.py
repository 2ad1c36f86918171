"""Residual blocks: which are found, and that each can go."""

import copy

import numpy as np
import pytest
import torch
from netcarve import trace
from netcarve.model.proof import relative_difference
from netcarve.spaces.testing import counted_costs, declare_torchvision_operators
from torch import nn
from toys import BasicBlock, TransformerBlock


def conv(i, o, stride=1):
    return nn.Conv2d(i, o, 3, stride, 1, bias=False)


def assert_costs(space, candidate, small, x):
    row = space.cost_arrays([candidate])
    for name, counted in counted_costs(small, x).items():
        assert float(row[name][0]) == pytest.approx(counted), name


def resnet20():
    layers = [conv(3, 8), nn.BatchNorm2d(8), nn.ReLU()]
    for i, o, stride in ((8, 8, 1), (8, 16, 2), (16, 32, 2)):
        layers += [BasicBlock(i, o, stride), BasicBlock(o, o, 1), BasicBlock(o, o, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


class Transformer(nn.Module):
    def __init__(self, layers=3, post=False, d=16):
        super().__init__()
        torch.manual_seed(0)
        self.inside, self.bias, self.out = (
            nn.Linear(6, d),
            nn.Parameter(torch.randn(4, 5, 5)),
            nn.Linear(d, 3),
        )
        self.layers = nn.ModuleList(TransformerBlock(d, post=post) for _ in range(layers))

    def forward(self, x):
        x, mask = self.inside(x), self.bias.tanh().unsqueeze(0)
        for layer in self.layers:
            x = layer(x, attn_mask=mask)
        return self.out(x.mean(1))


@pytest.mark.quick("False")
@pytest.mark.parametrize("post", [False, True])
def test_a_transformer_of_three_layers_has_six_blocks_that_share_a_mask(post):
    net, x = Transformer(post=post).eval(), torch.randn(2, 5, 6)
    blueprint = trace(net, x)
    assert [b.name for b in blueprint.blocks][::2] == [f"layers.{i}.attention" for i in range(3)]
    assert len(blueprint.blocks) == 6
    space = blueprint.space("drop")
    assert space.model.artifact == "graph"
    # The mask goes with the last attention that reads it.
    for chosen, has_bias in (([1, 0, 0, 0, 0, 0], True), ([1, 0, 1, 0, 1, 0], False)):
        candidate = space.candidate(chosen)
        small = space.build(candidate)
        assert ("bias" in dict(small.named_parameters())) is has_bias
        assert_costs(space, candidate, small, x)
        reference = copy.deepcopy(net)
        for i in np.flatnonzero(chosen):
            layer = reference.layers[i // 2]
            for p in layer.attention.out.parameters():
                nn.init.zeros_(p)
        with torch.no_grad():
            assert relative_difference([small(x)], [reference(x)])[0] < 1e-5


def test_a_resnet_20_has_nine_blocks_less_the_projections():
    blocks = trace(resnet20(), torch.randn(2, 3, 16, 16)).blocks
    assert [b.name for b in blocks] == ["3", "4", "5", "7", "8", "10", "11"]
    assert [b.params for b in blocks] == [2 * (9 * c * c + 2 * c) for c in (8, 8, 8, 16, 16, 32, 32)]
    # The widths double where the maps halve.
    assert [b.macs for b in blocks] == [
        2 * 9 * c * c * s * s
        for c, s in zip((8,) * 3 + (16,) * 2 + (32,) * 2, (16,) * 3 + (8,) * 2 + (4,) * 2, strict=True)
    ]


@pytest.mark.quick("vit_tiny_patch16_224")
@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32}, 24),
        ("resnet26", {}, 4),
    ],
)
def test_counts_on_published_architectures(name, options, count):
    declare_torchvision_operators()
    pytest.importorskip("timm")
    import timm

    x = torch.randn(2, 3, 32, 32)
    assert len(trace(timm.create_model(name, **options).eval(), x).blocks) == count


class Body(nn.Module):
    """A stem, one operation on its result ``h`` (with three layers at hand), a head."""

    def __init__(self, operation):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.a, self.b, self.head = (nn.Linear(6, 6) for _ in range(4))
        self.wide, self.operation = nn.Linear(12, 6), operation

    def forward(self, x):
        return self.head(self.operation(self, torch.tanh(self.stem(x))))


def used_outside(net, h):
    inner = torch.relu(net.a(h))
    return (h + net.b(inner)) * inner


def overwrites(net, h):
    return h.mul_(2.0) + net.a(h)


def overwrites_within(net, h):
    g = h + 0.0
    return h + net.a(g.mul_(2.0))


def fills_a_mask(net, h):
    inner = net.a(h)
    mask = inner.new_zeros(6)
    mask[2:4] = 1.0
    mask[5:] = 2.0
    return h + net.b(inner * mask)


def writes_outside(net, h):
    total = h * 0.0
    total[:, 1:] = net.a(h)[:, 1:]
    return (h + net.a(h)) * total


@pytest.mark.parametrize(
    ("operation", "count"),
    [
        (lambda net, h: h + net.a(h), 1),
        (lambda net, h: net.a(h) + h, 1),
        (lambda net, h: h + net.b(net.a(h)).view(h.shape), 1),
        (lambda net, h: torch.add(h, net.a(h), alpha=1), 1),
        (lambda net, h: h + net.a(h) + net.b(h), 1),  # the second is added to x + a(x), not to x
        (lambda net, h: h + (net.a(h) + net.b(h)), 1),
        (overwrites_within, 1),
        (overwrites, 1),  # x is what was written
        (fills_a_mask, 1),
        (writes_outside, 1),
        (used_outside, 0),
        (lambda net, h: torch.add(h, net.a(h), alpha=2), 0),
        (lambda net, h: h - net.a(h), 0),
        (lambda net, h: net.b(h) + net.a(h), 0),  # a projection
        (lambda net, h: net.wide(torch.cat([h, net.a(h)], -1)), 0),
        (lambda net, h: h + h, 0),
        (lambda net, h: h + net.a(h)[:, :1], 0),  # broadcast
        (lambda net, h: 0.5 * h * (1 + torch.tanh(0.8 * (h + 0.0447 * h**3))), 0),  # a gelu: nothing to save
        (lambda net, h: net.a(h) + net.stem.bias, 0),
    ],
)
def test_what_is_a_block_and_what_is_not(operation, count):
    net, x = Body(operation), torch.randn(4, 6)
    blueprint = trace(net, x)
    assert len(blueprint.blocks) == count
    if count:
        space = blueprint.space("drop")
        small = space.build(space.candidate([1]))
        assert_costs(space, space.candidate([1]), small, x)


def test_a_whole_network_is_not_a_block():
    class Denoiser(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 4))

        def forward(self, x):
            return x + self.net(x)

    assert not trace(Denoiser(), torch.randn(3, 4)).blocks


def test_a_block_that_does_not_run_without_its_branch_is_left_out_with_the_reason():
    class Expanded(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.mix, self.head = nn.Linear(6, 1), nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, x):
            x = self.stem(x).expand(len(x), 5)
            return self.head((x + self.mix(x)).mul_(2.0))  # what is expanded cannot be overwritten

    blueprint = trace(Expanded(), torch.randn(4, 6))
    assert [b.name for b in blueprint.blocks] == ["mix"]
    with pytest.raises(ValueError, match="nothing in this model may be dropped"):
        blueprint.space("drop")
    assert "memory" in blueprint.left_out["drop:mix"]
    assert not blueprint.blocks
