"""Models that invite trouble: supported, or refused with the reason and the cure, never cut wrongly."""

import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from netcarve import trace
from netcarve.model.capture import CaptureError
from netcarve.model.proof import relative_difference
from netcarve.spaces.testing import zeroed_consumers
from torch import nn


class Net(nn.Module):
    """Three linear layers, and whatever a test puts between the first two."""

    def __init__(self, between=lambda net, x: x, **extra):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.between = between
        for name, value in extra.items():
            if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x):
        return self.c(torch.relu(self.b(self.between(self, torch.relu(self.a(x))))))


def branch(net, x):
    if x.sum() > 0:
        x = x * 2
    return x


def loop(net, x):
    for _ in range(int(x.abs().sum()) % 3):
        x = x + 1
    return x


def item(net, x):
    return x * float(x.max())


def through_numpy(net, x):
    return torch.from_numpy(np.tanh(x.detach().numpy()))


@pytest.mark.parametrize(
    ("between", "line", "cure"),
    [
        (branch, "if x.sum() > 0:", r"torch\.where"),
        (loop, "for _ in range(int(x.abs().sum()) % 3):", r"torch\.where"),
        (item, "return x * float(x.max())", r"torch\.where"),
        (through_numpy, "return torch.from_numpy(np.tanh(x.detach().numpy()))", "torch operators"),
    ],
)
def test_the_line_that_cannot_be_captured_is_named(between, line, cure, capfd):
    with pytest.raises(CaptureError, match=cure) as caught:
        trace(Net(between), torch.randn(4, 6))
    lines, first = inspect.getsourcelines(between)
    number = first + next(i for i, text in enumerate(lines) if line in text)
    assert f'{__file__}:{number}, "{line}"' in str(caught.value)
    assert capfd.readouterr() == ("", "")  # torch prints the graph that it could not finish


def shared():
    net = Net(lambda net, x: torch.relu(net.b(x)))
    net.d = net.b
    return net


class Counting(Net):
    """Counts its calls and keeps a running mean of its activations, in eval mode too."""

    def __init__(self):
        super().__init__(count=torch.zeros((), dtype=torch.long), mean=torch.rand(12))

    def forward(self, x):
        self.count += 1
        h = torch.relu(self.a(x))
        self.mean.mul_(0.9).add_(0.1 * h.mean(0))
        return self.c(torch.relu(self.b(h - self.mean)))


def masked_weights():
    net = Net()
    nn.utils.prune.l1_unstructured(net.b, "weight", 0.5)
    return net


SUPPORTED = {
    "a layer under two names": (shared, {"a"}),
    "training mode": (lambda: Net(d=nn.Dropout(0.9)).train(), {"a", "b"}),
    "frozen": (lambda: Net().requires_grad_(False), {"a", "b"}),
    "a buffer as wide as the layer": (lambda: Net(lambda net, x: x * net.m, m=torch.rand(12)), {"a", "b"}),
    "buffers that move in eval mode": (Counting, {"a", "b"}),
    "integer weights": (
        lambda: Net(lambda net, x: F.linear(x, net.w / 64.0), w=torch.randint(-64, 64, (12, 12))),
        {"b"},
    ),
    "complex weights": (
        lambda: Net(
            lambda net, x: F.linear(x + 0j, net.w).real, w=nn.Parameter(torch.randn(12, 12) + 0j),
        ),
        {"b"},
    ),
    "weight norm": (
        lambda: Net(
            lambda net, x: net.d(x), d=nn.utils.parametrizations.weight_norm(nn.Linear(12, 12))
        ),
        {"a", "d", "b"},
    ),
    "spectral norm": (
        lambda: Net(
            lambda net, x: net.d(x), d=nn.utils.parametrizations.spectral_norm(nn.Linear(12, 12))
        ),
        {"a", "d", "b"},
    ),
    "half": (lambda: Net().half(), {"a", "b"}),
    "bfloat16": (lambda: Net().bfloat16(), {"a", "b"}),
    "float64": (lambda: Net().double(), {"a", "b"}),
    "masks of torch.nn.utils.prune": (masked_weights, {"a", "b"}),
    "DataParallel": (lambda: nn.DataParallel(Net()), {"module.a", "module.b"}),
}  # fmt: skip


@pytest.mark.parametrize("name", SUPPORTED)
def test_supported_and_equal_to_the_masked_original(name):
    torch.manual_seed(0)
    make, groups = SUPPORTED[name]
    net = make()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    dtype = next(p.dtype for p in net.parameters() if p.is_floating_point())
    x = torch.randn(4, 6).to(dtype)
    blueprint = trace(net, x)
    space = blueprint.space(ratios=[0, 0.5])
    assert {g.name for g in blueprint.groups} == groups
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())

    candidate = space.candidate([1] * len(space))
    built, masked = space.build(candidate), zeroed_consumers(net, blueprint, candidate)
    with torch.no_grad():
        for batch in (4, 7):
            x = torch.randn(batch, 6).to(dtype)
            difference, allowed = relative_difference([built(x)], [masked(x)])
            assert difference <= allowed
    assert sum(p.numel() for p in built.parameters()) < sum(p.numel() for p in net.parameters())
    frozen = {n for n, p in net.named_parameters() if not p.requires_grad}
    assert {n for n, p in built.named_parameters() if not p.requires_grad} == frozen


def test_a_layer_used_twice_is_one_group():
    blueprint = trace(shared(), torch.randn(4, 6))
    (group,) = blueprint.groups
    roles = {(m.parameter, m.axis): m.role for m in group.members}
    assert roles[("b.weight", 0)] == "out"
    assert ("b.weight", 1) in roles
    assert ("c.weight", 1) in roles


class Grouped(nn.Sequential):
    def __init__(self, groups, each):
        super().__init__(
            nn.ConvTranspose2d(6, 12, 3), nn.ReLU(),
            nn.ConvTranspose2d(12, each * groups, 3, groups=groups), nn.ReLU(),
            nn.Conv2d(each * groups, 3, 1),
        )  # fmt: skip


@pytest.mark.quick("6-1", "4-3")
@pytest.mark.parametrize(("groups", "each"), [(2, 4), (4, 3), (6, 1), (12, 2)])
def test_grouped_transposed_convolutions(groups, each):
    """Whole groups, or the same outputs in every group."""
    torch.manual_seed(0)
    net, x = Grouped(groups, each), torch.randn(2, 6, 4, 4)
    blueprint = trace(net, x)
    space = blueprint.space()
    assert not blueprint.prove().left_out
    for candidate in space.sample(np.random.default_rng(0), 4):
        built = space.build(candidate)
        with torch.no_grad():
            expected = zeroed_consumers(net, blueprint, candidate)(x)
            assert relative_difference([built(x)], [expected])[0] < 1e-5
        assert sum(p.numel() for p in built.parameters()) == space.costs([candidate]).params[0]


class Answer:
    def __init__(self, value):
        self.value = value


class Answering(Net):
    def forward(self, x):
        return Answer(super().forward(x))


class Cached(Net):
    """A tensor, and an object that is none."""

    def forward(self, x):
        return {"logits": super().forward(x), "cache": Answer(x)}


def quantised():
    return torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "example", "reason"),
    [
        (quantised, (4, 6), r"a is quantised .*prune the float model"),
        (lambda: Net(lambda net, x: net.d(x), d=nn.LazyLinear(12)), (4, 6), r"d\.weight of Net is lazy"),
        (lambda: Net().to("meta"), (4, 6), "a.weight of Net is on the meta device"),
        (lambda: torch.jit.script(nn.Sequential(nn.Linear(6, 4))), (4, 6), "is TorchScript"),
        (lambda: Net(s=torch.eye(3).to_sparse()), (4, 6), "s of Net is sparse"),
        (Answering, (4, 6), "returns no tensor but Answer"),
        (Net, (4, 5), r"does not run on its example.*\(4, 5\)"),
        (Net, (0, 6), "no sample"),
        (lambda: Net(lambda net, x: x / 0 * 0), (4, 6), "gives NaN"),
        (lambda: Net, (4, 6), "must be an instance of torch.nn.Module"),
        (lambda: F.relu, (4, 6), "must be an instance of torch.nn.Module"),
    ],
)
def test_refused_with_the_reason(make, example, reason):
    with pytest.raises(CaptureError, match=reason):
        trace(make(), torch.randn(example))


def test_outputs_that_are_no_tensors_do_not_stand_in_the_way():
    net, x = Cached(), torch.randn(4, 6)
    blueprint = trace(net, x)
    space = blueprint.space(ratios=[0, 0.5])
    assert {g.name for g in blueprint.groups} == {"a", "b"}
    assert "is no tensor" in blueprint.left_out["output Answer"]
    candidate = space.candidate([1, 1])
    graph = blueprint.surgeon.graph(blueprint.alive(candidate))
    with torch.no_grad():
        built = space.build(candidate)(x)
        assert isinstance(built["cache"], Answer)  # the user's own forward
        assert graph(x)["cache"] is None
        torch.testing.assert_close(graph(x)["logits"], built["logits"])


class Options(Net):
    def forward(self, xs, scale, mode="plain"):
        return super().forward(xs[0] + xs[1]) * (scale if mode == "scaled" else 1.0)


def test_inputs_that_are_no_tensors_stay_as_they_are():
    x = torch.randn(4, 6)
    net = Options()
    space = trace(net, (([x, x], 3.0), {"mode": "scaled"})).space(ratios=[0, 0.5])
    same, small = space.build(space.baseline), space.build(space.candidate([1, 1]))
    with torch.no_grad():
        torch.testing.assert_close(same([x, x], 3.0, mode="scaled"), net.eval()([x, x], 3.0, mode="scaled"))
        assert small([x, x], 3.0, mode="scaled").shape == (4, 4)
    with pytest.raises(TypeError, match="holds no tensor"):
        trace(net, (3.0, "scaled"))


class Nothing(nn.Module):
    def forward(self, x):
        return x * 2


@pytest.mark.parametrize(
    ("make", "reason"), [(Nothing, "nothing in this model"), (lambda: nn.Linear(6, 4), "is an output")]
)
def test_models_with_nothing_to_prune_say_so(make, reason):
    blueprint = trace(make(), torch.randn(4, 6))
    assert not blueprint.groups
    with pytest.raises(ValueError, match=reason):
        blueprint.space()


class Attention(nn.Module):
    """Attention written out by hand or by torch, with the scale given or implied."""

    def __init__(self, heads, scale, fused):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.heads, self.scale, self.fused = heads, scale, fused

    def forward(self, x):
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
            y = (q @ k.transpose(-2, -1) * scale).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.quick("False-0.3-1", "True-None-4")
@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("fused", [True, False])
def test_no_path_changes_the_scale_of_attention(heads, scale, fused):
    torch.manual_seed(0)
    net, x = Attention(heads, scale, fused), torch.randn(3, 5, 16)
    blueprint = trace(net, x)
    assert not blueprint.prove().left_out
    if not blueprint.groups:
        assert heads == 1
        return
    if fused and heads > 1:
        assert [g.size for g in blueprint.groups] == [4]
        assert all(m.positions.shape[1] == 4 for m in blueprint.groups[0].members)
    space = blueprint.space()
    weights = {m.parameter: m for g in blueprint.groups for m in g.members}
    for candidate in space.sample(np.random.default_rng(0), 4):
        small, kept = space.build(candidate), blueprint.kept(candidate)
        # The same by hand: zero the removed dimensions of the query and of what the output reads.
        masked = Attention(heads, (16 // heads) ** -0.5 if scale is None else scale, False)
        masked.load_state_dict(net.state_dict())
        with torch.no_grad():
            for group in blueprint.groups:
                gone = np.setdiff1d(np.arange(group.size), kept[group.name])
                for m in group.members:
                    if m.parameter in ("q.weight", "q.bias") or (m.parameter, m.axis) == ("out.weight", 1):
                        rows = masked.get_parameter(m.parameter).movedim(m.axis, 0)
                        rows[torch.from_numpy(m.positions[gone].reshape(-1))] = 0
            assert relative_difference([small(x)], [masked(x)])[0] < 1e-5, (candidate.values, set(weights))


class NoPrefix(nn.Module):
    """Scales the queries of all but the first ``n`` tokens: with 0, an empty piece is joined."""

    def __init__(self, n=0):
        super().__init__()
        self.qkv, self.out, self.n = nn.Linear(16, 48), nn.Linear(16, 3), n

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        q = torch.cat([q[:, :, : self.n], q[:, :, self.n :] * 2], 2)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("n", [0, 1])
def test_heads_go_though_a_slice_of_them_is_empty(n):
    (group,) = trace(NoPrefix(n), torch.randn(2, 5, 16)).groups
    assert (group.name, group.size) == ("qkv", 4)


class OverPadding(nn.Module):
    """Zeros put before the tokens, then heads: padding one axis says nothing about the others."""

    def __init__(self):
        super().__init__()
        self.v, self.out = nn.Linear(6, 24), nn.Linear(24, 3)

    def forward(self, x):
        v = F.pad(self.v(x).unflatten(-1, (4, 6)).transpose(1, 2), (0, 0, 1, 0))
        return self.out(v.cumsum(2).transpose(1, 2).flatten(2))


def test_padding_of_another_axis_does_not_fix_channels():
    torch.manual_seed(0)
    net, x = OverPadding(), torch.randn(2, 5, 6)
    blueprint = trace(net, x)
    space = blueprint.space(ratios=[0, 0.5])
    assert not blueprint.prove().left_out
    candidate = space.candidate([1] * len(space))
    with torch.no_grad():
        got, expected = (
            net(x) for net in (space.build(candidate), zeroed_consumers(net, blueprint, candidate))
        )
    assert relative_difference([got], [expected])[0] < 1e-5


class Computed(nn.Module):
    """A convolution whose weight is standardised and scaled at every call, as in NFNets."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)
        self.gain, self.head = nn.Parameter(torch.rand(8, 1, 1, 1) + 0.5), nn.Linear(6, 2)

    def forward(self, x):
        w = F.batch_norm(self.a.weight.reshape(1, 8, -1), None, None, training=True).reshape_as(self.a.weight)
        return self.head(self.b(torch.relu(F.conv2d(x, w * self.gain, self.a.bias))).mean((2, 3)))


def test_channels_made_by_a_computed_weight_can_go():
    blueprint = trace(Computed(), torch.randn(2, 3, 8, 8))
    groups = {g.name: {(m.parameter, m.role) for m in g.members} for g in blueprint.groups}
    assert ("a.weight", "out") in groups["a"]
    assert not blueprint.prove().left_out
