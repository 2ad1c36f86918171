"""Whole compact networks: published counts, torchvision's outputs with its weights, and pruning."""

import pytest
import torch
from netcarve import trace
from netcarve.model.counter import counted
from netcarve.model.operators import networks, small_networks
from netcarve.model.operators.stages import Gather, Masked
from netcarve.spaces.testing import declare_torchvision_operators
from torch import nn

# name -> how it is made, its parameters, millions of multiply-accumulates, side of the input
COUNTS = {
    "squeezenet 1.0": (lambda: networks.squeezenet("1.0"), 1_248_424, 818.9, 224),
    "squeezenet 1.1": (lambda: networks.squeezenet("1.1"), 1_235_496, 349.2, 224),
    "mobilenet": (lambda: networks.mobilenet(), 4_231_976, 568.7, 224),
    "mobilenet 0.75": (lambda: networks.mobilenet(0.75), 2_585_560, 325.4, 224),
    "mobilenet 0.5": (lambda: networks.mobilenet(0.5), 1_331_592, 149.5, 224),
    "mobilenet 0.25": (lambda: networks.mobilenet(0.25), 470_072, 41.0, 224),
    "mobilenet v2": (lambda: networks.mobilenet_v2(), 3_504_872, 300.8, 224),
    "shufflenet g=1": (lambda: networks.shufflenet(1), None, 143.1, 224),
    "shufflenet g=2": (lambda: networks.shufflenet(2), None, 140.8, 224),
    "shufflenet g=3": (lambda: networks.shufflenet(3), 1_865_728, 137.5, 224),
    "shufflenet g=4": (lambda: networks.shufflenet(4), None, 134.3, 224),
    "shufflenet g=8": (lambda: networks.shufflenet(8), None, 138.4, 224),
    "shufflenet v2 0.5": (lambda: networks.shufflenet_v2(0.5), 1_366_792, 40.5, 224),
    "shufflenet v2 1": (lambda: networks.shufflenet_v2(1.0), 2_278_604, 144.9, 224),
    "shufflenet v2 1.5": (lambda: networks.shufflenet_v2(1.5), 3_503_624, 295.8, 224),
    "shufflenet v2 2": (lambda: networks.shufflenet_v2(2.0), 7_393_996, 583.3, 224),
    "shift 20, 1": (lambda: networks.shift_resnet(20, 1), 34_906, None, 32),
    "shift 20, 3": (lambda: networks.shift_resnet(20, 3), 95_642, None, 32),
    "shift 20, 6": (lambda: networks.shift_resnet(20, 6), 186_746, None, 32),
    "shift 20, 9": (lambda: networks.shift_resnet(20, 9), 277_850, None, 32),
    "shift 56, 1": (lambda: networks.shift_resnet(56, 1), 102_106, None, 32),
    "shift 110, 1": (lambda: networks.shift_resnet(110, 1), 202_906, None, 32),
}


@pytest.mark.quick(
    "squeezenet 1.1", "mobilenet", "mobilenet v2", "shufflenet g=3", "shufflenet v2 1", "shift 20, 1"
)
@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_the_published_ones(name):
    make, params, macs, side = COUNTS[name]
    with torch.device("meta"):
        net = make().eval()
        found = counted(net, torch.zeros(1, 3, side, side))[1] / 1e6
    if params is not None:
        assert sum(p.numel() for p in net.parameters()) == params
    if macs is not None:
        assert found == pytest.approx(macs, rel=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("expand", "mflops"), [(2, 85.3), (4, 53.2), (8, 37.1), (16, 29.1)])
def test_an_expander_mobilenet_multiplies_as_published_where_zeros_are_skipped(expand, mflops):
    net = networks.mobilenet(0.5, expand=expand).eval()
    spared: list[float] = []

    def spare(layer: Masked, _: object, y: torch.Tensor) -> None:
        spared.append((1 - float(layer.mask.mean())) * layer.mask.numel() * y[0, 0].numel())

    for module in net.modules():
        if isinstance(module, Masked):
            module.register_forward_hook(spare)
    dense = counted(net, torch.zeros(1, 3, 224, 224))[1]
    assert len(spared) == 12
    assert (dense - sum(spared)) / 1e6 == pytest.approx(mflops, rel=5e-3)


def _copied(net: nn.Module, other: nn.Module) -> nn.Module:
    """``net`` with the tensors of a network that has the same ones in the same order."""
    mine = {k: v for k, v in net.state_dict().items() if not _of_gather(net, k)}
    theirs = other.state_dict()
    assert [v.shape for v in mine.values()] == [v.shape for v in theirs.values()]
    net.load_state_dict(dict(zip(mine, theirs.values(), strict=True)), strict=False)
    return net


def _of_gather(net: nn.Module, name: str) -> bool:
    return isinstance(net.get_submodule(name.rpartition(".")[0]), Gather)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("squeezenet1_0", lambda: networks.squeezenet("1.0")),
        ("squeezenet1_1", lambda: networks.squeezenet("1.1")),
        ("mobilenet_v2", networks.mobilenet_v2),
        ("shufflenet_v2_x1_0", lambda: networks.shufflenet_v2(1.0)),
    ],
)
def test_logits_are_torchvision_s_with_its_weights(name, make):
    declare_torchvision_operators()
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    other = getattr(models, name)(weights=None).eval()
    net = _copied(make().eval(), other)
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(net(x), other(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "side"),
    [
        (lambda: networks.squeezenet("1.1", classes=5), 48),
        pytest.param(lambda: networks.shufflenet_v2(0.5, classes=5), 32, marks=pytest.mark.slow),
        pytest.param(lambda: networks.shift_resnet(20, 1, classes=5), 16, marks=pytest.mark.slow),
        (lambda: networks.interleaved_net(4, 4, (1, 1, 1), classes=5), 16),
    ],
)
def test_they_are_traced_and_pruned(make, side):
    torch.manual_seed(0)
    net, x = make().eval(), torch.randn(2, 3, side, side)
    space = trace(net, x).space("prune", ratios=[0, 0.5])
    smaller = space.candidate(space.counts - 1)
    built = space.build(smaller)
    assert built(x).shape == (2, 5)
    macs = float(space.cost_arrays([smaller])["macs"][0])
    assert macs == counted(built, x)[1] / 2
    assert macs < counted(net, x)[1] / 2


def test_wrong_forms_are_refused():
    for make, message in (
        (lambda: networks.squeezenet("2"), "'1.0' and '1.1'"),
        (lambda: networks.shufflenet(5), "1, 2, 3, 4 or 8 groups"),
        (lambda: networks.shufflenet_v2(3.0), "scales of ShuffleNetV2"),
        (lambda: networks.shift_resnet(21), "6 n"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


WIDTHS = (16, 32, 32, 64)


def test_a_split_network_holds_a_share_behind_its_trunk_and_its_branches_share_nothing():
    whole, split = small_networks.plain_net(WIDTHS), small_networks.split_net(WIDTHS, 2, 2).eval()

    def weights(net: nn.Module) -> int:
        return sum(p.numel() for p in net.parameters() if p.dim() > 1)

    trunk, branches = split[0], split[1]
    assert weights(branches) == (weights(whole) - weights(trunk)) / 2
    x = torch.randn(3, 1, 8, 8)
    assert split(x).shape == (3, 10)
    split(x)[:, :5].sum().backward()  # classes of the first branch
    assert not any(p.grad.any() for p in branches.branches[1].parameters())
    assert any(p.grad.any() for p in branches.branches[0].parameters())
    with pytest.raises(ValueError, match="3 groups do not divide"):
        small_networks.split_net(WIDTHS, 2, 3)


def test_widened_widths_are_the_largest_within_the_budget():
    def macs(widths: list[int]) -> float:
        with torch.device("meta"):
            return counted(small_networks.plain_net(widths).eval(), torch.zeros(1, 1, 8, 8))[1]

    budget = 1.7 * macs([16, 20, 9, 30])
    found = small_networks.widened([16, 20, 9, 30], budget, macs)
    factor = max((w + 0.5) / v for w, v in zip(found, (16, 20, 9, 30), strict=True))
    assert macs(found) <= budget
    assert macs([round(1.03 * factor * v) for v in (16, 20, 9, 30)]) > budget
    with pytest.raises(ValueError, match="more than the budget"):
        small_networks.widened([4, 4], 10, macs)


def test_levels_are_nested_and_a_level_reads_its_own_weights_alone():
    torch.manual_seed(0)
    nested = small_networks.NestedNet(small_networks.plain_net(WIDTHS), (0.1, 0.3, 1.0)).eval()
    x = torch.randn(3, 1, 8, 8)
    low, middle = nested.masks(0), nested.masks(1)
    for name, mask in low.items():
        assert (mask <= middle[name]).all()
        assert int(mask.sum()) == max(1, round(0.1 * mask.numel()))
    with torch.no_grad():
        before = nested(x, level=0)
        assert torch.equal(nested.level(0)(x), before)
        assert torch.equal(nested(x), nested.network(x))
        for name, mask in low.items():
            nested.network.get_parameter(name).add_(~mask)
        assert torch.equal(nested(x, level=0), before)
        assert not torch.equal(nested(x, level=1), before)
    with pytest.raises(ValueError, match="rising shares"):
        small_networks.NestedNet(nn.Linear(2, 2), (0.5, 0.2))
