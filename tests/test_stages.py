"""Stages are independent modules, and together they are the whole."""

import copy
import operator
import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from netcarve import trace
from netcarve.model.capture import capture
from netcarve.model.stages import balanced, find_cuts, functionalise, run_stages, split, verify
from torch import nn
from torch.utils import _pytree as pytree
from toys import BasicBlock


def sent_through(stages, args, kwargs):
    """The stages' output where every tensor travels as dense bytes."""
    out = stages[0].module(*args, **kwargs)
    for stage in stages[1:]:
        out = stage.module(
            *(
                torch.frombuffer(bytearray(t.contiguous().numpy().tobytes()), dtype=t.dtype).reshape(t.shape)
                for t in out
            )
        )
    return out


def largest_difference(net, stages, *args, **kwargs):
    with torch.no_grad():
        want = net(*copy.deepcopy(args), **copy.deepcopy(kwargs))
        got = sent_through(stages, copy.deepcopy(args), copy.deepcopy(kwargs))
    assert pytree.tree_structure(got) == pytree.tree_structure(want)
    leaves = zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True)
    pairs = [(a, b) for a, b in leaves if b is not None]
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
    return max(float((a - b).abs().max()) for a, b in pairs)


def seeded(net):
    """In eval mode, with batch-norm statistics that are not the initial ones."""
    torch.manual_seed(0)
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, *((0.5, 1.5) if name.endswith("var") else (-0.5, 0.5)))
    return net.eval()


# -- generated networks --------------------------------------------------------------------------------


class Generated(nn.Module):
    """Steps on earlier values: convolutions with what usually follows, sums, pieces, concatenations."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleDict()
        for k, (kind, *_) in enumerate(steps):
            if kind == "conv":
                self.layers[str(k)] = nn.Sequential(
                    nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.3)
                )
            elif kind == "cat":
                self.layers[str(k)] = nn.Conv2d(8, 4, 1, groups=2)

    def forward(self, x):
        values = [x * 2]
        for k, (kind, a, b) in enumerate(self.steps):
            first, second = values[a], values[b]
            if kind == "conv":
                out = self.layers[str(k)](first)
            elif kind == "cat":
                out = self.layers[str(k)](torch.cat([first, second], 1))
            elif kind == "add_":
                out = first.clone()
                out[:, :2] += second[:, 2:]
            elif kind == "pieces":
                left, right = first.chunk(2, 1)
                out = torch.cat([right, left * second[:, :1]], 1)
            else:
                out = torch.sigmoid(first).transpose(2, 3) + second
            values.append(out)
        return values[-1].flatten(1), values[len(values) // 2].mean((2, 3))


@st.composite
def networks(draw):
    kinds = st.sampled_from(["conv", "cat", "add_", "pieces", "gate"])
    return [
        (draw(kinds), draw(st.integers(max(0, k - 2), k)), draw(st.integers(0, k)))
        for k in range(draw(st.integers(2, 5)))
    ]


@settings(settings.get_profile("networks"), derandomize=True)
@given(steps=networks())
def test_every_cut_of_a_generated_network_is_exact_at_any_batch(steps):
    net = seeded(Generated(steps))
    network = functionalise(capture(net, torch.randn(2, 4, 5, 5)))
    cuts = find_cuts(network)
    assert cuts
    inputs = [torch.randn(n, 4, 5, 5) for n in (1, 3)]
    for chosen in (*([c] for c in cuts), cuts):
        stages = split(network, chosen, check=False)
        assert len(stages) == len(chosen) + 1
        for x in inputs:
            assert largest_difference(net, stages, x) <= 1e-6


# -- networks as people write them ---------------------------------------------------------------------


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.Sequential(BasicBlock(6, 6, inplace=True), BasicBlock(6, 8, 2, inplace=True))
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.drop(F.adaptive_avg_pool2d(self.layers(self.stem(x)), 1).flatten(1)))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, 1)
        self.middle = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.InstanceNorm2d(8), nn.SiLU())
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        a = F.relu(self.down1(x))
        b = self.middle(F.relu(self.down2(a)))
        return self.out(torch.cat([a, self.up(b)], 1))


class Transformer(nn.Module):
    """With a class token, a table of positions, tied embeddings and shapes computed from the batch."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(13, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.position = nn.Parameter(torch.zeros(1, 7, 16))
        self.norms = nn.ModuleList([nn.LayerNorm(16) for _ in range(4)])
        self.qkvs = nn.ModuleList([nn.Linear(16, 48) for _ in range(2)])
        self.mlps = nn.ModuleList(
            [nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(2)]
        )
        self.decode = nn.Linear(16, 13, bias=False)
        self.decode.weight = self.embed.weight

    def forward(self, tokens, *, scale):
        b, n = tokens.shape
        x = torch.cat([self.token.expand(b, -1, -1), self.embed(tokens)], 1) + self.position
        mask = torch.ones(n + 1, n + 1).tril().bool()
        for k in range(2):
            q, k_, v = self.qkvs[k](self.norms[2 * k](x)).reshape(b, n + 1, 3, 4, 4).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k_, v, attn_mask=mask)
            x = x + y.transpose(1, 2).reshape(b, n + 1, 16)
            rows = self.norms[2 * k + 1](x).reshape(b * (n + 1), 16)
            x = x + self.mlps[k](rows).reshape(b, n + 1, 16)
        return {"logits": self.decode(x) * scale[:, :, None], "pooled": [x[:, 0], None]}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru = nn.LSTM(5, 6, batch_first=True), nn.GRU(6, 4, batch_first=True)
        self.head = nn.Linear(4, 3)
        self.register_buffer("scale", torch.ones(3), persistent=False)

    def forward(self, x):
        y, (h, _) = self.lstm(x)
        y, _ = self.gru(torch.relu_(y) + h.transpose(0, 1))
        return self.head(y[:, -1]) * self.scale * torch.tensor([1.0, 2.0, 3.0])


def image(n):
    return (torch.randn(n, 3, 8, 8),), {}


def text(n):
    return (torch.randint(0, 13, (n, 6)),), {"scale": torch.rand(n, 1)}


def series(n):
    return (torch.randn(n, 4, 5),), {}


PEOPLES = [(ResNet, image), (UNet, image), (Transformer, text), (Recurrent, series)]


@pytest.mark.quick("UNet-image")
@pytest.mark.parametrize(("make", "inputs"), PEOPLES)
def test_every_cut_of_known_networks(make, inputs):
    net = seeded(make())
    network = functionalise(capture(net, inputs(2)))
    cuts = find_cuts(network)
    assert len(cuts) >= 7
    for chosen in (*([c] for c in cuts), cuts, []):
        stages = split(network, chosen, check=False)
        for n in (2, 5):
            args, kwargs = inputs(n)
            assert largest_difference(net, stages, *args, **kwargs) <= 1e-6
        together = {}
        for stage in stages:
            together |= stage.module.state_dict()
        own = net.state_dict()
        assert own.keys() <= together.keys()
        assert all(torch.equal(own[name], together[name]) for name in own)
        # What remains is no part of the user's state: constants and buffers that are not saved.
        assert {name.split("_tensor")[0] for name in together.keys() - own.keys()} <= {"lifted", "scale"}
    whole = split(network, [])[0]
    assert sum(p.numel() for p in whole.module.parameters()) == sum(p.numel() for p in net.parameters())


@pytest.mark.quick("UNet-image")
@pytest.mark.parametrize(("make", "inputs"), PEOPLES)
def test_a_stage_holds_only_what_it_reads(make, inputs):
    network = functionalise(capture(seeded(make()), inputs(2)))
    for c in find_cuts(network)[::5]:
        for stage in split(network, [c], check=False):
            reads = [str(n.target) for n in stage.module.graph.nodes if n.op == "get_attr" and n.users]
            read = {id(operator.attrgetter(name)(stage.module)) for name in reads}
            assert {id(p) for p in stage.module.parameters()} <= read


@pytest.mark.slow
def test_stages_share_no_memory_with_each_other_or_the_model():
    net = seeded(Transformer())
    network = functionalise(capture(net, text(2)))
    args, kwargs = text(2)
    stages = split(network, balanced(find_cuts(network), 3))
    before = run_stages(stages, *args, **kwargs)["logits"]
    first, last = stages[0].module, stages[-1].module
    assert torch.equal(first.embed.weight, last.decode.weight)  # tied: in every stage that reads it
    with torch.no_grad():
        net.embed.weight.zero_()
    assert torch.equal(run_stages(stages, *args, **kwargs)["logits"], before)
    with torch.no_grad():
        first.embed.weight.zero_()
    assert last.decode.weight.any()
    assert last.embed.weight is last.decode.weight
    again = copy.deepcopy(last)
    assert again.embed.weight is again.decode.weight is not last.decode.weight


@pytest.mark.slow
def test_published_networks():
    timm = pytest.importorskip("timm")
    rng = random.Random(0)
    for name, options in (
        ("resnet18", {}),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 4}),
        ("densenet121", {"block_config": (2, 2, 2, 2)}),
        ("mobilenetv2_100", {"features_only": True, "out_indices": (0, 1)}),
    ):
        captured = capture(seeded(timm.create_model(name, **options)), torch.randn(2, 3, 32, 32))
        network = functionalise(captured)
        cuts = find_cuts(network)
        for chosen in ([rng.choice(cuts)], [rng.choice(cuts)], rng.sample(cuts, 5)):
            assert verify(captured, split(network, chosen, check=False)) == 0


def test_a_pruned_network_is_split_like_any_other():
    net = seeded(ResNet())
    blueprint = trace(net, torch.randn(2, 3, 8, 8))
    space = blueprint.space("prune", ratios=2)
    small = space.build(space.candidate([len(c) - 1 for c in space.choices]))
    stages = split(capture(small, torch.randn(2, 3, 8, 8)), [10])
    counts = [sum(p.numel() for p in s.module.parameters()) for s in stages]
    assert (
        sum(counts) == sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    )
    assert largest_difference(small, stages, torch.randn(3, 3, 8, 8)) <= 1e-6


# -- semantics that a graph can lose ---------------------------------------------------------------------


def test_stages_train_as_the_whole_does():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.maps, self.alpha, self.here = (
                nn.Dropout2d(0.5),
                nn.AlphaDropout(0.5),
                nn.Dropout(0.5, inplace=True),
            )
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            x = torch.relu(self.maps(self.bn(self.conv(x)))).mean((2, 3))
            return self.head(self.here(self.alpha(x)) * F.dropout(torch.ones(8), 0.5, self.training))

    net, x = seeded(Net()), torch.randn(4, 3, 6, 6)
    network = functionalise(capture(net, x))
    stages = split(network, find_cuts(network))
    assert len(stages) > 8
    results = []
    for run, parts in ((net, [net]), (lambda x: run_stages(stages, x), [s.module for s in stages])):
        for part in parts:
            part.train()
        torch.manual_seed(3)
        out = run(x)
        out.square().sum().backward()
        gradients = {n: p.grad for part in parts for n, p in part.named_parameters()}
        statistics = {n: b for part in parts for n, b in part.named_buffers() if "running" in n}
        results.append((out, gradients, statistics))
    (want, gradients, statistics), (got, *rest) = results
    assert (want == 0).sum() < want.numel()
    assert torch.equal(got, want)
    for mine, theirs in zip(rest, (gradients, statistics), strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[n], theirs[n]) for n in theirs)


def test_writing_on_inputs_and_views_and_returning_them():
    class Writes(nn.Module):
        def forward(self, x, y):
            x.mul_(2)
            z = torch.tanh(x)
            z[:, 1:].add_(y)
            z.t_()
            return z.t() + x, y, y, x.shape[0]

    net, args = Writes(), (torch.randn(3, 4), torch.randn(3, 1))
    network = functionalise(capture(net, args))
    for c in find_cuts(network):
        stages = split(network, [c])
        given = copy.deepcopy(args)
        *got, count = run_stages(stages, *given)
        *want, length = net(*copy.deepcopy(args))
        assert count == length == 3
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        assert torch.equal(given[0], args[0])  # the caller's tensor stays


def test_channels_last_stays_bitwise_over_the_wire():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Tanh(), nn.Conv2d(8, 4, 1)
    )
    net = seeded(net).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 9, 9).contiguous(memory_format=torch.channels_last)
    network = functionalise(capture(net, x))
    for c in find_cuts(network):
        assert largest_difference(net, split(network, [c]), x) == 0


def test_sizes_are_recomputed_where_only_a_multiple_of_the_batch_arrives():
    class Rows(nn.Module):
        def forward(self, x):
            y = torch.tanh(torch.cat([x.reshape(-1, 4), torch.ones(1, 4)]))  # 3 x batch + 1 rows
            return torch.sigmoid(y)[:-1].reshape(x.shape[0], 3, 4) * x.shape[0]

    net = Rows()
    network = functionalise(capture(net, torch.randn(2, 3, 4)))
    cut = next(c for c in find_cuts(network) if c.after == "tanh")
    first, second = split(network, [cut])
    assert [str(p) for p in second.inputs] == ["[3 x batch + 1, 4] float32"]
    assert largest_difference(net, [first, second], torch.randn(5, 3, 4)) == 0
    with pytest.raises(ValueError, match=r"tanh is \[9, 4\] float32, but it takes \[3 x batch \+ 1, 4\]"):
        second.module(torch.randn(9, 4))
