"""Layers run in another way, sparse, in blocks or where needed: what they multiply, where they stand."""

from dataclasses import replace

import pytest
import torch
from netcarve import trace
from netcarve.model.counter import counted
from netcarve.model.operators.gated import CollaborativeLayer, PredictedLayer
from netcarve.model.operators.initialise import Targets, initialise, refit
from netcarve.model.operators.kernels import (
    BlockedLayer,
    Pace,
    Sparse,
    SparseLayer,
    blocked_convolution,
    fitting_block,
)
from netcarve.model.operators.site import Site, operator
from netcarve.spaces.kinds.operators import guided
from netcarve.spaces.testing import ToyNet
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

FORMS = [  # sides of the kernel, stride, dilation
    ((1, 1), 1, 1),
    ((3, 3), 1, 1),
    ((3, 3), 2, 1),
    ((3, 3), 1, 2),
    ((5, 5), 2, 2),
    ((3, 5), 2, 1),
    ((3,), 2, 2),
    ((), 1, 1),
]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer_of(kernel, stride=1, dilation=1, inputs=6, outputs=8, size=(11, 13)):
    dims = len(kernel)
    return Site(
        drawn(outputs, inputs, *kernel),
        drawn(outputs, seed=2),
        (stride,) * dims,
        tuple(dilation * (k // 2) for k in kernel),
        (dilation,) * dims,
        size=size[:dims] if dims else (7,),
    )


def inputs_of(site, batch=3):
    return drawn(*site.example(batch).shape, seed=1)


# -- sparse -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "stride", "dilation"), FORMS)
@pytest.mark.parametrize("density", [0.02, 0.3])
def test_a_sparse_layer_is_the_layer_of_its_weights_and_multiplies_these_alone(
    kernel, stride, dilation, density
):
    site = layer_of(kernel, stride, dilation)
    new, x = initialise(Sparse(), site, density), inputs_of(site)
    order = site.weight.abs().flatten().sort(descending=True).values
    entries = round(density * site.weight.numel())
    masked = replace(site, weight=torch.where(site.weight.abs() >= order[entries - 1], site.weight, 0.0))
    y, macs = counted(new, x)
    torch.testing.assert_close(y, masked(x), rtol=1e-12, atol=1e-12)
    assert y.is_contiguous()
    assert macs == 3 * entries * masked.macs // site.weight.numel()
    torch.testing.assert_close(new.tails[0].dense(), masked.weight, rtol=0, atol=0)


def test_rows_of_many_weights_are_multiplied_in_parts():
    site = layer_of((3, 3), inputs=80, outputs=80, size=(9, 9))
    new, x = initialise(Sparse(), site, 1.0), inputs_of(site, 2)
    torch.testing.assert_close(new(x), site(x), rtol=1e-10, atol=1e-10)


def test_weights_count_by_the_spread_of_what_they_multiply():
    """An input of a hundredth of the others' spread keeps no weight."""
    x = drawn(64, 6, 5, 5)
    x[:, 2] *= 0.01
    site = replace(layer_of((3, 3)), inputs_seen=x)
    layer = initialise(Sparse(), site, 0.25).tails[0]
    kept = layer.dense().ne(0).sum((0, 2, 3))
    assert kept[2] == 0
    assert int(kept.sum()) == layer.values.numel() == 108


@pytest.mark.parametrize("kernel", [(3, 3), ()])
def test_each_output_is_refitted_on_its_own_support(kernel):
    """Against least squares, output by output."""
    site = replace(layer_of(kernel), bias=None)
    x = drawn(40, *site.example().shape[1:], seed=3) + 0.5
    new = initialise(Sparse(), site, 0.3)
    support = new.tails[0].dense().ne(0).flatten(1)
    y = site(x)
    refit(new, x, Targets.of(y, site.axis, rows=10**9), intercept=False, ridge=1e-12)
    rows = x.flatten(0, -2) if not kernel else functional.unfold(x, 3, padding=1).mT.flatten(0, 1)
    wanted = torch.zeros_like(support, dtype=torch.float64)
    for output, read in enumerate(support):
        values = y.movedim(site.axis, -1)[..., output].flatten()
        wanted[output, read] = torch.linalg.lstsq(rows[:, read], values).solution
    torch.testing.assert_close(new.tails[0].dense().flatten(1), wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kernel", [(3, 3), (3,), ()])
def test_gradients_of_sparse_values_are_those_of_differences(kernel):
    site = layer_of(kernel, inputs=3, outputs=4, size=(5, 4))
    new = initialise(Sparse(), site, 0.4)
    layer = new.tails[0]
    x = inputs_of(site, 2).requires_grad_()

    def call(values, bias, x):
        return torch.func.functional_call(layer, {"values": values, "bias": bias}, x)

    assert torch.autograd.gradcheck(call, (layer.values, layer.bias, x))


# -- the performance model --------------------------------------------------------------------------------


def test_a_pace_is_read_off_three_timings():
    pace = Pace.of({1.0: 2.0, 0.1: 1.0, 0.5: 3.0})
    assert (pace.dense, pace.each) == (2.0, pytest.approx(5))
    assert pace.overhead == pytest.approx(0.5)
    assert pace.seconds(0.5) == pytest.approx(3.0)
    assert pace.densest == pytest.approx(0.3)
    assert [pace.slower(density) for density in (0.29, 0.31, 1.0)] == [False, True, False]
    assert Pace(1.0, 1.0, 1.5).densest < 0  # the overhead alone takes longer
    assert Pace.of({1.0: 2.0, 0.1: 1.0, 0.5: 0.9}).each > 0


def test_a_pace_times_the_layer_itself_and_two_sparse_ones():
    site, called = layer_of((3, 3)), []

    def clock(modules, x):
        called.extend(modules)
        assert x.shape == (5, 6, 11, 13)
        return [1.0, 2.0, 3.0]

    pace = Pace.timed(site, clock, 5)
    assert called[0].weight.shape == site.weight.shape
    assert [new.tails[0].values.numel() for new in called[1:]] == [22, 216]
    assert [pace.dense, pace.seconds(0.05), pace.seconds(0.5)] == pytest.approx([1, 2, 3])


@pytest.fixture(scope="module")
def layers():
    """What may stand for the layers of a small network, sparse or by singular values."""
    torch.manual_seed(0)
    space = trace(ToyNet().eval(), torch.randn(4, 3, 6, 6)).space("operators", operators=("sparse", "svd"))
    return [choice.about for choice in space.choices]


def test_guided_layers_are_never_slower_than_unguided_ones(layers):
    """Whatever density is asked for: that one where it is offered still, else the dense layer."""
    macs = {about.place.name: about.place.site(torch.empty(about.shape), None).macs for about in layers}
    middle = sorted(macs.values())[len(macs) // 2]
    paces = {name: Pace(dense=m, each=2 * m, overhead=0.6 * middle) for name, m in macs.items()}
    left = {about.place.name: guided(about, paces[about.place.name]) for about in layers}
    for density in (0.05, 0.1, 0.25, 0.5):
        unguided = sum(pace.seconds(density) for pace in paces.values())
        chosen = {n: density if f"sparse:{density:g}" in by else 1.0 for n, (by, _) in left.items()}
        assert sum(paces[n].seconds(d) for n, d in chosen.items()) <= unguided
        for name, taken in chosen.items():
            assert (taken == 1) == (density >= paces[name].densest)
    assert any("sparse:0.05" in by for by, _ in left.values())
    dense = [(by, why) for by, why in left.values() if not any(k.startswith("sparse") for k in by)]
    assert dense
    assert all("by the performance model, dense" in why for _, why in dense)
    assert all(any(k.startswith("svd") for k in by) for by, _ in dense)  # others stay


def test_layers_too_small_for_sparse_ones_on_this_machine_stay_dense_with_the_reason():
    torch.manual_seed(0)
    blueprint = trace(ToyNet().eval(), torch.randn(1, 3, 6, 6))
    with pytest.raises(ValueError, match=r"sparse at 0\.05 takes .* ms by the performance model"):
        blueprint.space("operators", operators=("sparse",), operators_by="latency")


# -- direct -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [f for f in FORMS if f[0] not in ((), (1, 1))])
@pytest.mark.parametrize("block", [4, 16])
def test_a_blocked_layer_is_the_layer_in_as_many_numbers(kernel, stride, dilation, block):
    site = layer_of(kernel, stride, dilation, inputs=12, outputs=8)
    for batch in (1, 14):  # the shorter of batch and rows is looped over
        new, x = initialise(operator("direct"), site, block), inputs_of(site, batch)
        y, macs = counted(new, x)
        torch.testing.assert_close(y, site(x), rtol=1e-12, atol=1e-12)
        assert macs == batch * site.macs
    layer = new.tails[0]
    assert isinstance(layer, BlockedLayer)
    assert layer.weight.untyped_storage().nbytes() == site.weight.untyped_storage().nbytes()
    assert torch.equal(layer.dense(), site.weight)
    assert layer.weight.shape[-2:] == ((4, 4) if block == 4 else (12, 8))


class Allocations(TorchDispatchMode):
    """Bytes of every tensor made that is no view and was none of the inputs."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        held = {id(t.untyped_storage()) for t in args if isinstance(t, torch.Tensor)}
        if isinstance(out, torch.Tensor) and id(out.untyped_storage()) not in held:
            self.sizes.append(out.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("stride", [1, 2])
def test_blocked_convolution_makes_nothing_but_its_output(stride):
    """Tensors by torch's calls, and what the allocator gave within them: no more than an output block."""
    x, weight = drawn(1, 4, 34, 34, 8), drawn(2, 4, 3, 3, 8, 16)
    with torch.no_grad(), Allocations() as made:
        y = blocked_convolution(x, weight, (stride, stride), (1, 1))
    assert made.sizes == [y.untyped_storage().nbytes()]
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        blocked_convolution(x, weight, (stride, stride), (1, 1))
    given = [e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage > 0]
    whole = y.untyped_storage().nbytes()
    assert max(given) == whole
    assert sum(given) < whole * 1.5  # one output block is half of it
    lowered = 9 * 32 * y[0, 0, ..., 0].numel() * 8
    assert sum(given) < lowered / 4


def test_blocks_divide_the_channels():
    assert [fitting_block(c, 8) for c in (1, 7, 12, 32, 36)] == [1, 7, 6, 8, 6]


# -- collaborative layers ---------------------------------------------------------------------------------


def before_relu(weight, stride=1, **others):
    """A convolution behind which a ReLU stands."""
    return Site(
        weight,
        None,
        (stride,) * 2,
        tuple(k // 2 for k in weight.shape[2:]),
        (1, 1),
        size=(8, 8),
        followed_by_relu=True,
        **others,
    )


def test_skipping_closed_gates_changes_nothing_and_multiplies_less():
    site = before_relu(drawn(6, 4, 3, 3))
    new, x = initialise(operator("collaborative"), site, 1), drawn(2, 4, 8, 8, seed=1)
    layer = new.tails[0]
    assert isinstance(layer, CollaborativeLayer)
    with torch.no_grad():
        assert torch.equal(new(x), site(x))
        assert layer.skipping(x)[1] == 2 * site.macs
        layer.gate[0].weight.copy_(drawn(6, 4, 1, 1, seed=2))
        y, macs = layer.skipping(x)
        torch.testing.assert_close(y, layer(x), rtol=1e-12, atol=1e-12)
        open_gates = int((layer.gate(x) > 0).sum())
    assert macs == open_gates * 9 * 4 < 2 * site.macs


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("recall", [0.95, 0.8])
def test_a_predictor_computes_that_share_of_what_passes_and_little_else(stride, recall):
    site = before_relu(drawn(6, 4, 3, 3), stride)
    x = drawn(16, 4, 8, 8, seed=1)
    y = site(x)
    layer = initialise(operator("collaborative"), site, recall, x).tails[0]
    with torch.no_grad():
        needed = layer.gate(x) >= 0
        for channel in range(6):
            passed = needed[:, channel][y[:, channel] > 0].double().mean()
            assert recall <= passed < recall + 0.01
        assert 0.02 < layer.skipped(x) == float((~needed).double().mean())
        made, macs = layer.skipping(x)
        torch.testing.assert_close(made, layer(x), rtol=1e-12, atol=1e-12)
        assert macs == int(needed.sum()) * 9 * 4
        wanted = torch.where(needed, y, y.new_tensor(0.0)).relu()
        torch.testing.assert_close(made.relu(), wanted, rtol=1e-12, atol=1e-12)
        layer.skips = True
        assert torch.equal(layer(x), made)


def test_a_predictor_that_can_know_closes_all_that_it_may():
    """Only the kernel's centre counts, so that the 1x1 layer sees all of it."""
    weight = torch.zeros(6, 4, 3, 3, dtype=torch.float64)
    weight[:, :, 1, 1] = drawn(6, 4)
    site, x = before_relu(weight), drawn(16, 4, 8, 8, seed=1)
    layer = initialise(operator("collaborative"), site, 0.95, x).tails[0]
    y = site(x)
    assert layer.skipped(x) >= float((y <= 0).double().mean())
    with torch.no_grad():
        assert float((layer.gate(x) >= 0)[y <= 0].double().mean()) == 0


def test_channels_that_never_or_always_pass_are_closed_or_open():
    weight, x = drawn(3, 4, 3, 3), drawn(8, 4, 8, 8, seed=1)
    site = replace(before_relu(weight), bias=torch.tensor([-100.0, 0.0, 100.0], dtype=torch.float64))
    layer = initialise(operator("collaborative"), site, 0.95, x).tails[0]
    with torch.no_grad():
        needed = (layer.gate(x) >= 0).double().mean((0, 2, 3)).tolist()
    assert needed[0] == 0
    assert 0 < needed[1] < 1
    assert needed[2] == 1


def test_behind_a_batch_norm_what_is_left_out_stays_below_the_relu():
    """Whatever the sign of its scale: the constant is the mean of what the ReLU cuts."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
    net[1].running_mean.normal_()
    net[1].weight.data, net[1].bias.data = torch.tensor([1.0, -1.0] * 3), torch.randn(6)
    net, x = nn.Sequential(net, nn.Conv2d(6, 2, 1)).eval(), torch.randn(64, 4, 8, 8)
    blueprint = trace(net, x[:4])
    data = blueprint.calibrate([((x,), {})])
    space = blueprint.space("operators", operators=("collaborative",), calibration=data)
    choice = space.choices[0]
    assert choice.options == ("keep", "collaborative:0.99", "collaborative:0.95")
    small = space.build(space.candidate([2]))
    layer = next(m for m in small.modules() if isinstance(m, PredictedLayer))
    with torch.no_grad():
        given, needed = net[0](x), layer.gate(x) >= 0
        norm = net[0][1](layer(x)).relu()
    assert 0.9 < float(needed[given > 0].float().mean()) < 1
    assert layer.skipped(x) > 0.05
    assert float(norm[~needed].max()) == 0
    torch.testing.assert_close(norm[needed], given[needed], rtol=1e-5, atol=1e-5)


# -- offered ----------------------------------------------------------------------------------------------


def test_kernels_are_offered_by_name_alone_and_searched_as_others():
    torch.manual_seed(0)
    net, x = ToyNet().eval(), torch.randn(120, 3, 6, 6)
    blueprint = trace(net, x[:4])
    data = blueprint.calibrate([((x,), {})])
    names = ("sparse", "direct")
    asked = blueprint.space("operators", calibration=data, operators=names)
    assert {str(o).partition(":")[0] for c in asked.choices for o in c.options} == {"keep", *names}
    default = blueprint.space("operators", calibration=data)
    assert not any(str(o).startswith(names) for c in default.choices for o in c.options)
    with torch.no_grad():
        for index in (1, 2):
            taken = [min(index, len(c) - 1) for c in asked.choices]
            small = asked.build(asked.candidate(taken))
            kinds = {type(m) for m in small.modules()}
            assert kinds & {SparseLayer, BlockedLayer}
            program = torch.export.export(small, (x[:4],)).module()
            torch.testing.assert_close(program(x[:4]), small(x[:4]), rtol=1e-4, atol=1e-5)
