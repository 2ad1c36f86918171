"""Repair without training, on networks where the right answer is known."""

import itertools
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from netcarve import trace
from netcarve.model.repair import gram as gram_module
from netcarve.model.repair.consumers import find_consumers
from netcarve.spaces.mending import Calibrated
from torch import nn
from toys import BasicBlock

BLOCK = 4  # channels k and k + 4 are linearly dependent in the networks below


def batches(*shape, n=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [((torch.randn(*shape, generator=generator, dtype=torch.float64),), {}) for _ in range(n)]


def with_one(x):
    z = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    return z.T @ z


# -- networks whose channels are linearly dependent ------------------------------------------------------


class Twins(nn.Module):
    """Channel k + 4 is a multiple of channel k; a consumer of any kind reads them."""

    def __init__(self, consumer, conv=True):
        super().__init__()
        torch.manual_seed(1)
        self.make = nn.Conv2d(3, 2 * BLOCK, 3, padding=1) if conv else nn.Linear(3, 2 * BLOCK)
        with torch.no_grad():
            factors = torch.tensor([0.5, 2.0, 3.0, 0.7])
            for p in self.make.parameters():
                p[BLOCK:] = p[:BLOCK] * factors.reshape(-1, *[1] * (p.dim() - 1))
        self.consumer = consumer
        self.double().eval()

    def forward(self, x):
        return self.consumer(torch.relu(self.make(x)))


class Product(nn.Module):
    """``x @ W`` or, as transformers' Conv1D, ``addmm(b, x, W)``."""

    def __init__(self, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2 * BLOCK, 5))
        self.bias = nn.Parameter(torch.randn(5)) if bias else None

    def forward(self, x):
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)


class Twice(nn.Module):
    """One weight, two readers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2 * BLOCK, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(x) + self.conv(x.flip(2)).flip(3)


def normed(conv):
    norm = nn.BatchNorm2d(conv.out_channels)
    nn.init.uniform_(norm.running_mean, -0.5, 0.5)
    return nn.Sequential(conv, norm)


CONSUMERS = {
    "3x3": lambda: nn.Conv2d(8, 5, 3, padding=1),
    "1x1 strided": lambda: nn.Conv2d(8, 5, 1, stride=2),
    "dilated, same": lambda: nn.Conv2d(8, 5, 3, padding="same", dilation=2, bias=False),
    "even, same": lambda: nn.Conv2d(8, 5, 2, padding="same"),
    "grouped": lambda: nn.Conv2d(8, 6, 3, groups=2, padding=1),
    "grouped by four": lambda: nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1, groups=4)),
    "transposed": lambda: nn.ConvTranspose2d(8, 5, 3, stride=2),
    "with batch-norm": lambda: normed(nn.Conv2d(8, 5, 3, stride=2, padding=1, bias=False)),
    "flattened": lambda: nn.Sequential(nn.Flatten(), nn.Linear(8 * 36, 5)),
    "two readers": Twice,
}


def half(blueprint, **options):
    space = blueprint.space(ratios=[0, 0.5], **options)
    return space, space.candidate([1] * len(space))


def off(model, net, data):
    with torch.no_grad():
        pairs = [(model(*args), net(*args)) for args, _ in data]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


@pytest.mark.quick("two readers-True", "flattened-once", "3x3-True", "grouped by four-True")
@pytest.mark.parametrize("repair", ["once", True])
@pytest.mark.parametrize("kind", CONSUMERS)
def test_dependent_channels_are_repaired_exactly(kind, repair):
    net = Twins(CONSUMERS[kind]())
    data = batches(100, 3, 6, 6, n=4)
    blueprint = trace(net, data[0][0])
    space, _ = half(blueprint, calibration=blueprint.calibrate(data, ridge=1e-12, repair=repair))
    only_first = space.candidate([int(c.name == "prune:make") for c in space.choices])
    small = space.build(only_first)
    if kind == "grouped":  # both halves lose the same positions, and twins lie in different halves
        plain = trace(net, data[0][0]).space(ratios=[0, 0.5])
        assert off(small, net, data) < off(plain.build(plain.candidate(only_first.indices)), net, data)
        return
    assert small.make.weight.shape[0] == BLOCK
    assert {int(u) % BLOCK for u in blueprint.kept(only_first)["make"]} == set(range(BLOCK))
    assert off(small, net, batches(4, 3, 6, 6, n=1, seed=9)) < 1e-5


@pytest.mark.quick("True-consumer0", "once-consumer3")
@pytest.mark.parametrize(
    "consumer", [nn.Linear(8, 5), nn.Linear(8, 5, bias=False), Product(True), Product(False)]
)
@pytest.mark.parametrize("repair", ["once", True])
def test_dependent_features_of_matrix_products_are_repaired_exactly(consumer, repair):
    net = Twins(consumer, conv=False)
    data = batches(32, 3)
    blueprint = trace(net, data[0][0])
    space, candidate = half(blueprint, calibration=blueprint.calibrate(data, ridge=1e-12, repair=repair))
    assert off(space.build(candidate), net, batches(4, 3, n=1, seed=9)) < 1e-5


def test_a_constant_channel_goes_into_bias_or_batch_norm():
    for consumer in (nn.Conv2d(8, 5, 1), normed(nn.Conv2d(8, 5, 1, bias=False))):
        net = Twins(consumer)
        with torch.no_grad():
            net.make.weight[6] = 0
            net.make.bias[6] = 2.5
        data = batches(8, 3, 6, 6)
        space = trace(net, data[0][0]).space(
            ratios=[0, 1 / 8],
            importance=lambda group, parameters: -(np.arange(group.size) == 6).astype(float),
            calibration=data,
            repair="once",
        )
        small = space.build(space.candidate([1] + [0] * (len(space) - 1)))
        assert small.make.weight.shape[0] == 7
        assert off(small, net, data) < 1e-6


@pytest.mark.quick("0")
@pytest.mark.parametrize("seed", range(3))
def test_repair_never_raises_the_error_of_a_single_linear_consumer(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 5)).double()
    data = batches(40, 6, seed=seed)
    blueprint = trace(net, data[0][0])
    plain = blueprint.space(importance="l1")
    mended = trace(net, data[0][0]).space(importance="l1", calibration=data, repair="once")

    def error(space, k):
        model = space.build(space.candidate([k]))
        with torch.no_grad():
            return sum(float((model(*a) - net(*a)).square().sum()) for a, _ in data)

    for k in range(1, 8):
        assert error(mended, k) <= error(plain, k)
    assert error(mended, 0) == error(plain, 0) == 0


# -- whole networks: the order and what is built ---------------------------------------------------------


def residual():
    torch.manual_seed(3)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), BasicBlock(8, 8), BasicBlock(8, 16, 2), BasicBlock(16, 16), *head
    )


def images(n=3):
    return [((args[0].float(),), {}) for args, _ in batches(32, 3, 8, 8, n=n)]


@pytest.mark.slow
def test_orders_are_nested_and_the_default_with_calibration():
    data = images()
    blueprint = trace(residual(), data[0][0])
    space = blueprint.space(calibration=data)
    assert space.recipe["options"]["importance"] == "reconstruction"
    assert space.recipe["calibrated"]
    ladder = [blueprint.kept(space.candidate([k] * len(space))) for k in range(8)]
    for more, less in itertools.pairwise(ladder):
        assert all(set(less[g]) <= set(more[g]) for g in more)
    assert trace(residual(), data[0][0]).space().recipe["options"]["importance"] == "l1"


@pytest.mark.slow
def test_each_repair_brings_the_output_closer():
    data, net = images(), residual().eval()
    errors = []
    for repair in (False, "once", True):
        space = trace(net, data[0][0]).space(ratios=[0, 0.5], calibration=data, repair=repair)
        small = space.build(space.candidate([1] * len(space)))
        with torch.no_grad():
            errors.append(sum(float((small(*a) - net(*a)).square().sum()) for a, _ in data))
    assert errors[2] < 0.8 * errors[1] < 0.1 * errors[0]


@pytest.mark.quick("once")
@pytest.mark.parametrize("repair", ["once", True])
def test_both_artifacts_and_a_copy_elsewhere_give_the_same(repair):
    data = images()
    blueprint = trace(residual(), data[0][0])
    space = blueprint.space(calibration=data, repair=repair)
    assert blueprint.artifact == "module"
    candidate = space.sample(np.random.default_rng(0), 1)[0]
    alive, x = blueprint.alive(candidate), data[0][0][0]
    surgeon = blueprint.surgeon
    mend = space.model.mending.step(surgeon)
    own, graph = (make(alive, mend) for make in (surgeon.own, surgeon.graph))
    torch.testing.assert_close(own(x), graph(x), rtol=1e-5, atol=1e-6)
    there = pickle.loads(pickle.dumps(space))
    assert there.build(candidate)(x).equal(space.build(candidate)(x))
    further = pickle.loads(pickle.dumps(there))
    assert further.build(candidate)(x).equal(space.build(candidate)(x))


class Fixed(nn.Module):
    """Only its captured graph can be cut."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Linear(8 * 16, 4)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)).view(-1, 8 * 16))


@pytest.mark.parametrize("repair", ["once", True])
def test_captured_graphs_are_repaired_and_travel(repair):
    data = [((args[0].float(),), {}) for args, _ in batches(20, 3, 4, 4)]
    net = Fixed()
    blueprint = trace(net, data[0][0])
    space = blueprint.space(calibration=data, repair=repair)
    assert blueprint.artifact == "graph"
    candidate, x = space.candidate([4]), data[0][0][0]
    small = space.build(candidate)
    plain = trace(net, data[0][0]).space()
    with torch.no_grad():
        assert (small(x) - net(x)).norm() < (plain.build(plain.candidate([4]))(x) - net(x)).norm()
    there = pickle.loads(pickle.dumps(space))
    assert there.build(candidate)(x).equal(small(x))


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)) + torch.ones(4, 1))


@pytest.mark.quick("3")
@pytest.mark.parametrize("n", [3, 4, 10])
def test_a_capture_of_fixed_batch_length_takes_batches_of_any(n):
    torch.manual_seed(0)
    net = FixedBatch()
    blueprint = trace(net, torch.randn(4, 6))
    assert not blueprint.captured.dynamic_batch
    space = blueprint.space(calibration=[((torch.randn(n, 6),), {})] * 2)
    seen = space.model.mending.calibration.blocks[0][0].gram[-1, -1]
    assert seen == 2 * max(1, n // 4) * 4
    assert space.build(space.candidate([2]))(torch.randn(4, 6)).isfinite().all()


def test_the_unchanged_network_and_the_original_stay_as_they_are():
    data, net = images(), residual()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    space = trace(net, data[0][0]).space(calibration=data)
    x = data[0][0][0]
    assert space.build(space.baseline)(x).equal(net.eval()(x))
    space.build(space.candidate([4] * len(space)))
    assert space.build(space.baseline)(x).equal(net(x))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_weight_that_is_read_in_another_way_is_left_alone():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.b(torch.relu(self.a(x))) + self.b.weight.square().sum()

    blueprint = trace(Tied(), torch.randn(2, 4))
    consumers, _ = find_consumers(blueprint.captured.graph_module.graph, blueprint.coupling)
    assert not consumers


# -- memory ----------------------------------------------------------------------------------------------


def test_a_wide_axis_is_mended_in_blocks_with_a_notice(caplog):
    net = Twins(nn.Sequential(nn.Flatten(), nn.Linear(8 * 36, 5)))
    data = batches(16, 3, 6, 6, n=4)
    blueprint = trace(net, data[0][0])
    blueprint.prove()
    whole = gram_module.gather(blueprint.captured, blueprint.coupling, data)
    assert [len(b) for b in whole.blocks] == [1]
    assert not whole.notices
    small = gram_module.gather(blueprint.captured, blueprint.coupling, data, columns=64)
    assert [len(b.columns) for b in small.blocks[0]] == [8] * 36  # one place on the map each
    assert "36 blocks of at most 8" in small.notices[0]
    assert small.notices[0] in caplog.text
    bounded = gram_module.gather(blueprint.captured, blueprint.coupling, data, max_bytes=2_000)
    assert bounded.nbytes <= 2_000 or all(len(b.columns) == 1 for b in bounded.blocks[0])

    known = Calibrated(replace(small, ridge=1e-9), data, "once", None)
    space, candidate = half(blueprint, calibration=known)
    assert off(space.build(candidate), net, data) < 1e-3  # twins share a place, so blocks suffice


def test_large_tensors_are_sampled():
    net = Twins(nn.Conv2d(8, 5, 3, padding=1))
    data = batches(16, 3, 40, 40, n=1)
    blueprint = trace(net, data[0][0])
    calibration = gram_module.gather(blueprint.captured, blueprint.coupling, data)
    assert calibration.blocks[0][0].gram[-1, -1] == gram_module.ROWS
    assert calibration.blocks[0][0].gram.shape == (73, 73)


def test_windows_are_measured_as_the_convolution_sees_them():
    conv = nn.Conv2d(8, 5, 3, stride=2, padding=1, dilation=2)
    net = Twins(conv)
    data = batches(2, 3, 9, 9, n=1)
    blueprint = trace(net, data[0][0])
    calibration = gram_module.gather(blueprint.captured, blueprint.coupling, data)
    x = torch.relu(net.make(data[0][0][0])).detach()
    columns = nn.functional.unfold(x, 3, 2, 1, 2).transpose(1, 2).reshape(-1, 72).numpy()
    np.testing.assert_allclose(calibration.blocks[0][0].gram, with_one(columns), rtol=1e-10, atol=1e-10)


# -- mistakes --------------------------------------------------------------------------------------------


def test_mistakes_say_how_to_mend_them():
    blueprint = trace(residual(), images(1)[0][0])
    with pytest.raises(
        ValueError, match=r"needs calibration data: give space\(\.\.\., calibration=batches\)"
    ):
        blueprint.space(importance="reconstruction")
    with pytest.raises(ValueError, match="at least one batch"):
        blueprint.space(calibration=[])
    with pytest.raises(ValueError, match="True, False or 'once', got 'twice'"):
        blueprint.calibrate(images(1), repair="twice")
    with pytest.raises(ValueError, match="ridge must not be negative"):
        blueprint.calibrate(images(1), ridge=-1.0)
