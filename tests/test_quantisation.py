"""Rounding of weights: against all roundings there are, integer arithmetic, and the bytes it takes."""

import itertools

import numpy as np
import pytest
import torch
from netcarve import trace
from netcarve.export.packing import pack, unpacked
from netcarve.model.quantisation import Levels, Rounding, grid, rounded
from netcarve.spaces.kinds.bits import BitsKind
from netcarve.spaces.testing import KindConformance, ToyNet


def _problem(seed: int, columns: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """A row of weights, and second moments of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, columns, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    return torch.randn(1, columns, generator=generator, dtype=torch.float64), x.T @ x


def _error(off: torch.Tensor, second: torch.Tensor) -> float:
    return float(torch.einsum("oi,ij,oj->", off, second, off))


def test_compensated_rounding_lies_between_the_best_and_the_nearest():
    """Of all roundings of a row within two steps none is better than the best; on average it has about half
    the error of the nearest numbers."""
    ratios = []
    for seed in range(30):
        weight, second = _problem(seed)
        on = Levels(torch.full_like(weight, 0.5), torch.full_like(weight, 50.0), 0, 100)
        codes = on.codes(weight)[0]
        steps = torch.tensor(list(itertools.product((-2, -1, 0, 1, 2), repeat=5)), dtype=torch.float64)
        off = on.values(codes + steps) - weight
        best = float(torch.einsum("ni,ij,nj->n", off, second, off).min())
        here = _error(rounded(weight, on, second) - weight, second)
        assert here >= best * (1 - 1e-9)
        ratios.append((best, here, _error(on.nearest(weight) - weight, second)))
    best, here, nearest = np.exp(np.log(ratios).mean(axis=0))
    assert here < 0.6 * nearest
    assert here < 4 * best


def test_without_correlation_it_is_the_nearest_rounding():
    weight, _ = _problem(1, columns=40)
    on = grid(weight, Rounding(3))
    assert torch.equal(rounded(weight, on, torch.eye(40, dtype=torch.float64)), on.nearest(weight))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("group", [0, 6])
def test_numbers_are_few_and_are_integers_rescaled(bits, symmetric, group):
    weight = torch.randn(7, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rounding = Rounding(bits, group, symmetric)
    on = grid(weight, rounding)
    values, codes = on.nearest(weight), on.codes(weight)
    low, high = rounding.ends
    assert torch.equal(codes, codes.round())
    assert codes.min() >= low
    assert codes.max() <= high
    for row in values:
        for part in row.split(group or 20):
            assert len(part.unique()) <= 2**bits
    # A product in integers, rescaled, is the product of the numbers that they stand for.
    x = torch.randint(-5, 6, (3, 20), dtype=torch.float64)
    if not group:
        scale, zero = on.scale[:, 0], on.zero[:, 0]
        integers = x.long() @ codes.long().T - x.long().sum(1, keepdim=True) * zero.long()
        torch.testing.assert_close(integers * scale, x @ values.T, rtol=1e-12, atol=1e-12)


def test_eight_bits_move_a_number_by_half_a_step_at_most():
    weight = torch.randn(7, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    on = Levels(torch.full_like(weight, 0.05), torch.full_like(weight, 100.0), 0, 255)
    assert (on.nearest(weight) - weight).abs().max() <= 0.025 + 1e-12


def test_zeros_stay_zeros():
    weight = torch.randn(6, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight[:, ::3] = 0
    for rounding in (Rounding(2), Rounding(4, 7), Rounding(3, symmetric=True)):
        assert (grid(weight, rounding).nearest(weight)[:, ::3] == 0).all()


def test_bytes_are_those_of_packed_numbers():
    def packed(rows: int, columns: int, rounding: Rounding) -> int:
        groups = len(range(0, columns, rounding.group)) if rounding.group else 1
        scales = np.zeros((rows, groups), np.float32)
        zeros = np.zeros((rows, 0 if rounding.symmetric else groups), np.uint8)
        return len(np.packbits(np.zeros(rows * columns * rounding.bits, bool))) + scales.nbytes + zeros.nbytes

    for rounding in (Rounding(4), Rounding(3, 16), Rounding(2, symmetric=True), Rounding(8, 128)):
        for rows, columns in ((3, 40), (64, 576), (1, 9)):
            expected = min(packed(rows, columns, rounding), 4 * rows * columns)
            assert rounding.nbytes(np.array([rows]), np.array([columns]), 4)[0] == expected


def test_compensation_keeps_more_of_a_network_than_the_nearest_numbers():
    """Outputs of a calibrated network in 3 bits, on inputs that were not calibrated on."""
    torch.manual_seed(0)
    net, x = ToyNet().eval(), torch.randn(300, 3, 6, 6)
    blueprint = trace(net, x[:4])
    data = blueprint.calibrate([((x[:200],), {})])
    off = {}
    for way in ("plain", "compensated"):
        space = blueprint.space("prune", "bits", calibration=data, bits=(3,), bits_rounding=way)
        built = space.build(space.candidate([0 if c.name.startswith("prune") else 1 for c in space.choices]))
        with torch.no_grad():
            off[way] = float((built(x[200:]) - net(x[200:])).square().mean())
    assert off["compensated"] < off["plain"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": (9,)}, "2 to 8 bits, got 9"),
        ({"bits": (4, 8)}, "numbers that fall"),
        ({"bits_group": -1}, "number of inputs"),
        ({"bits_scheme": "odd"}, "'affine' or 'symmetric'"),
        ({"bits_rounding": "up"}, "'compensated' or 'plain'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BitsKind(**options)


def test_whole_numbers_are_left_alone_with_the_reason():
    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(12).view(3, 4))
            self.real = torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.real(x) + torch.nn.functional.linear(x.round().long(), self.table).sum(
                1, keepdim=True
            )

    space = trace(Mixed().eval(), torch.randn(3, 4)).space("bits")
    assert [c.name for c in space.choices] == ["bits:real"]
    assert space.side.left_out["bits:table"] == "holds whole numbers already"


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_weight_that_is_multiplied_from_the_right_has_a_scale_for_each_output(calibrated):
    """[inputs, outputs], as in GPT-2: costs, rounding and packing agree on which axis is which."""

    class Right(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(6, 24)
            self.weight = torch.nn.Parameter(torch.randn(24, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.addmm(torch.zeros(5), self.first(x).relu(), self.weight)

    torch.manual_seed(0)
    blueprint = trace(Right().eval(), torch.randn(4, 6))
    data = blueprint.calibrate([((torch.randn(200, 6),), {})]) if calibrated else None
    space = blueprint.space("prune", "bits", bits=(3,), ratios=[0, 0.5], calibration=data)
    names = [c.name for c in space.choices]
    for prune in (0, 1):
        candidate = space.candidate([prune if n.startswith("prune") else n == "bits:weight" for n in names])
        built = dict(space.build(candidate).named_parameters())["weight"].detach()
        assert all(len(column.unique()) <= 8 for column in built.T)
        form, parts = pack(built)
        assert form[3] == 1
        stored = sum(p.numel() * p.element_size() for p in parts.values())
        wider = space.candidate([prune if n.startswith("prune") else 0 for n in names])
        costs = space.cost_arrays([candidate, wider])["size_mb"] * 1e6
        assert costs[1] - costs[0] == pytest.approx(4 * built.numel() - stored)


def test_size_is_that_of_the_layers_together():
    """bops and size of the toy network in 4 bits, summed by hand."""
    net, x = KindConformance.network()
    space = trace(net, x).space("bits", bits=(4,))
    costs = {k: float(v[0]) for k, v in space.cost_arrays([space.candidate([1] * len(space))]).items()}
    whole = {k: float(v[0]) for k, v in space.cost_arrays([space.baseline]).items()}
    weights = [p for p in net.parameters() if p.dim() > 1]
    packed = sum(-(-p.numel() * 4 // 8) + 5 * len(p) for p in weights)
    assert whole["size_mb"] * 1e6 - costs["size_mb"] * 1e6 == pytest.approx(
        sum(4 * p.numel() for p in weights) - packed
    )
    assert whole["bops"] == whole["macs"] * 32 * 32
    assert costs["bops"] == whole["macs"] * 4 * 32


@pytest.mark.parametrize("rounding", [Rounding(8), Rounding(4), Rounding(3, 16), Rounding(2, symmetric=True)])
@pytest.mark.parametrize("shape", [(24, 40), (16, 8, 3, 3)])
def test_packed_weights_are_the_same_numbers_in_few_bytes(rounding, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    flat = weight.double().flatten(1)
    weight = grid(flat, rounding).nearest(flat).float().view(shape)
    found = pack(weight, (0, 16))
    assert found is not None
    form, parts = found
    assert torch.equal(unpacked(*parts.values(), *form), weight)
    stored = sum(p.numel() * p.element_size() for p in parts.values())
    said = int(rounding.nbytes(np.array([flat.shape[0]]), np.array([flat.shape[1]]), 4)[0])
    assert stored <= said + parts["zero"].numel()


def test_weights_of_no_grid_are_not_packed():
    assert pack(torch.randn(24, 40, generator=torch.Generator().manual_seed(0))) is None
