"""Weights set to zero with compensation, and patterns n:m: against brute force, and on networks."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from netcarve import trace
from netcarve.model.compensation import Columns, sparsified
from netcarve.spaces.kinds.mask import semi_structured
from netcarve.spaces.kinds.mask.kind import MaskKind
from netcarve.spaces.kinds.mask.program import Pattern, Quota
from netcarve.spaces.testing import KindConformance, ToyNet
from torch import nn


def _problem(seed: int, rows: int = 3, columns: int = 6) -> Columns:
    """Weights, and second moments of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(200, columns, generator=generator, dtype=torch.float64) @ mixed
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return Columns(weight, torch.arange(columns), x.T @ x)


def _error(off: torch.Tensor, second: torch.Tensor) -> float:
    return float(torch.einsum("oi,ij,oj->", off, second, off))


def _best(row: torch.Tensor, second: torch.Tensor, gone: tuple[int, ...]) -> float:
    """Least error of a row with zeros at ``gone``, the others free: w_g^T ([H^-1]_gg)^-1 w_g."""
    inverse = torch.linalg.inv(second)[list(gone)][:, list(gone)]
    return float(row[list(gone)] @ torch.linalg.solve(inverse, row[list(gone)]))


def test_the_first_column_s_zero_is_made_up_for_as_well_as_can_be():
    """One zero in each row, in a span before all others: the optimal brain surgeon's error, to rounding."""
    for seed in range(10):
        columns = _problem(seed)
        new = sparsified(columns, 1, [1, 5], lambda worth: torch.full_like(worth, worth.shape[1] > 1).bool())
        assert (new[:, 0] == 0).all()
        least = sum(_best(row, columns.second, (0,)) for row in columns.rows)
        assert _error(new - columns.rows, columns.second) == pytest.approx(least, rel=1e-9)


def test_compensated_zeros_lie_between_the_best_and_the_smallest_numbers():
    """Two of four stay, against all masks with the best weights for each, and against magnitude alone."""
    ratios = []
    pattern = Pattern(2, 4)
    for seed in range(30):
        columns = _problem(seed, rows=1, columns=8)
        new = sparsified(columns, 1, pattern.spans(8), pattern.pick)
        halves = list(combinations(range(4), 2))
        best = min(
            _best(columns.rows[0], columns.second, (*a, *(4 + i for i in b))) for a in halves for b in halves
        )
        plain = columns.rows * pattern.pick(columns.rows.abs())
        here = _error(new - columns.rows, columns.second)
        assert here >= best * (1 - 1e-9)
        ratios.append((best, here, _error(plain - columns.rows, columns.second)))
    best, here, plain = np.exp(np.log(ratios).mean(axis=0))
    assert here < 0.65 * plain
    assert here < 4 * best


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 7), st.integers(2, 8), st.integers(1, 23), st.integers(0, 99))
def test_a_pattern_keeps_the_largest_of_each_group(n: int, m: int, inputs: int, seed: int):
    if n >= m:
        return
    pattern = Pattern(n, m)
    worth = torch.rand(3, inputs, generator=torch.Generator().manual_seed(seed))
    stays = pattern.pick(worth)
    assert sum(pattern.spans(inputs)) == inputs
    for row, kept in zip(worth, stays, strict=True):
        for values, there in zip(row.split(m), kept.split(m), strict=True):
            assert int(there.sum()) == min(n, len(values))
            assert set(values[there].tolist()) == set(values.sort(descending=True).values[:n].tolist())
    assert (~stays).sum() == 3 * pattern.zeros(np.array(inputs))


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 0.99), st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 99))
def test_a_quota_is_met_to_the_number(amount: float, spans: list[int], seed: int):
    generator = torch.Generator().manual_seed(seed)
    quota = Quota(amount, 4 * sum(spans))
    gone = sum(int((~quota.pick(torch.rand(4, span, generator=generator))).sum()) for span in spans)
    assert gone == min(round(amount * 4 * sum(spans)), 4 * sum(spans) - 1)


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    net = ToyNet().eval()
    x = torch.randn(300, 3, 6, 6)
    blueprint = trace(net, x[:4])
    return net, x, blueprint, blueprint.calibrate([((x[:200],), {})])


@pytest.mark.parametrize("sparsities", [(0, 0.6), (0, "2:4")])
def test_compensation_keeps_more_of_a_network(made, sparsities):
    """Outputs of a calibrated network, pruned and masked, on inputs that were not calibrated on."""
    net, x, blueprint, data = made
    off = {}
    for way in ("plain", "compensated"):
        space = blueprint.space(
            "prune", "mask", calibration=data, ratios=4, sparsities=sparsities, masking=way
        )
        chosen = [1 if c.name.startswith("prune") else len(c) - 1 for c in space.choices]
        candidate = space.candidate(chosen)
        built = space.build(candidate)
        held = sum(int((p != 0).sum()) if p.dim() > 1 else p.numel() for p in built.parameters())
        assert space.cost_arrays([candidate])["nonzeros"][0] == held
        with torch.no_grad():
            off[way] = float((built(x[200:]) - net(x[200:])).square().mean())
    assert off["compensated"] < 0.9 * off["plain"]


def test_a_pattern_holds_at_each_tap_of_the_built_network(made):
    _, _, blueprint, data = made
    space = blueprint.space("mask", "bits", calibration=data, sparsities=(0, "2:4"), bits=(4,))
    assert "mask:stem.0.weight" in space.side.left_out  # three inputs
    built = space.build(space.candidate(space.counts - 1))
    for name in ("block.0.weight", "block.2.weight", "hidden.weight"):
        weight = built.get_parameter(name)
        groups = weight.movedim(1, -1).unflatten(-1, (-1, 4))
        assert ((groups != 0).sum(-1) <= 2).all(), name  # rounding to bits puts nothing back
        assert (groups != 0).any(), name


def test_sparse_kernels_are_refused_where_the_device_has_none(made):
    with pytest.raises(ValueError, match=r"no 2:4 kernels on cpu"):
        semi_structured(made[0])


class TestPatterns(KindConformance):
    kind, beside, options = "mask", ("prune",), {"sparsities": (0, 0.25, "2:4", "1:4")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsities": (0, "4:2")}, "keeps n of m inputs, 0 < n < m, got 4:2"),
        ({"sparsities": (0, "two:4")}, "a share below 1 or a pattern such as 2:4, got 'two:4'"),
        ({"sparsities": (0, 0.5, "2:4")}, "start with 0 and rise"),
        ({"sparsities": ("2:4",)}, "start with 0"),
        ({"masking": "odd"}, "'compensated' or 'plain', got 'odd'"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MaskKind(**options)


def test_a_weight_multiplied_from_the_right_is_masked_along_its_inputs():
    """[inputs, outputs], as in GPT-2."""

    class Right(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.out = nn.Parameter(torch.randn(8, 6)), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.relu(x @ self.weight))

    space = trace(Right().eval(), torch.randn(4, 8)).space("mask", sparsities=(0, "2:4"))
    built = space.build(space.candidate([1, *[0] * (len(space) - 1)]))
    assert ((built.get_parameter("weight").T.unflatten(-1, (-1, 4)) != 0).sum(-1) == 2).all()
