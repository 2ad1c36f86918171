"""Masks by granularity and norm, and torch's own masks read and written."""

from __future__ import annotations

import copy

import netcarve
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from netcarve.model.model_copy import plain_copy
from netcarve.spaces.kinds.mask import (
    GRANULARITIES,
    Sparsify,
    apply_masks,
    make_masks,
    read_masks,
    write_masks,
)
from netcarve.spaces.kinds.mask.program import blocks_of, removed_blocks
from torch import nn
from torch.nn.utils import prune


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def _blocks(weight: torch.Tensor, granularity: str) -> list[torch.Tensor]:
    """Index masks of the blocks, written out."""
    out = []
    places = {
        "element": [tuple(i) for i in torch.ones_like(weight).nonzero().tolist()],
        "kernel": [(o, i) for o in range(weight.shape[0]) for i in range(weight.shape[1])],
        "row": [(o,) for o in range(weight.shape[0])],
        "column": [(slice(None), i) for i in range(weight.shape[1])],
    }
    for place in places[granularity]:
        block = torch.zeros_like(weight, dtype=torch.bool)
        block[place] = True
        out.append(block)
    return out


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(GRANULARITIES)),
    st.sampled_from([1, 2]),
    st.floats(0.0, 0.99),
    st.sampled_from([(4, 3), (5, 2, 3), (3, 4, 2, 2), (1, 1)]),
    st.integers(0, 99),
)
def test_the_weakest_blocks_go(
    granularity: str, norm: int, amount: float, shape: tuple[int, ...], seed: int
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    mask = make_masks({"w": weight}, [Sparsify(amount, granularity, norm)])["w"]
    blocks = _blocks(weight, granularity)
    assert len(blocks) == blocks_of(shape, granularity)
    stays = [bool(mask[b].all()) for b in blocks]
    assert all(bool(mask[b].any()) == s for b, s in zip(blocks, stays, strict=True))
    assert stays.count(False) == removed_blocks(amount, len(blocks))
    size = [
        float(weight[b].abs().double().mean() if norm == 1 else weight[b].double().norm()) for b in blocks
    ]
    kept, gone = (
        [v for v, s in zip(size, stays, strict=True) if s],
        [v for v, s in zip(size, stays, strict=True) if not s],
    )
    assert max(gone, default=-1.0) <= min(kept) + 1e-12


def test_a_mixed_program_is_structured_first() -> None:
    weight = torch.randn(10, 20, generator=torch.Generator().manual_seed(0))
    rows = make_masks({"w": weight}, [Sparsify(0.3, "row")])["w"]
    both = make_masks({"w": weight}, [Sparsify(0.3, "row"), Sparsify(0.5)])["w"]
    assert int(rows.sum()) == 140
    assert int(both.sum()) == 70
    assert bool((rows | ~both).all())
    expected = weight[rows].abs().sort().values[70:].sum()
    assert float(weight[both].abs().sum()) == pytest.approx(float(expected))


def test_globally_a_weak_layer_loses_more_but_never_all() -> None:
    strong, weak = torch.rand(8, 8) + 2.0, torch.rand(4, 4) * 1e-3
    masks = make_masks({"strong": strong, "weak": weak}, [Sparsify(0.5)], scope="global")
    assert sum(int(m.sum()) for m in masks.values()) == 40
    assert int(masks["weak"].sum()) == 1
    layer = make_masks({"strong": strong, "weak": weak}, [Sparsify(0.5)])
    assert [int(m.sum()) for m in layer.values()] == [32, 8]


@pytest.mark.parametrize(
    ("granularity", "norm", "theirs"),
    [
        ("element", 1, lambda m: prune.l1_unstructured(m, "weight", 0.4)),
        ("row", 1, lambda m: prune.ln_structured(m, "weight", 0.4, n=1, dim=0)),
        ("row", 2, lambda m: prune.ln_structured(m, "weight", 0.4, n=2, dim=0)),
        ("column", 2, lambda m: prune.ln_structured(m, "weight", 0.4, n=2, dim=1)),
    ],
)
def test_the_same_as_torch(granularity: str, norm: int, theirs: object) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 10, 3)
    ours = make_masks({"weight": layer.weight}, [Sparsify(0.4, granularity, norm)])
    theirs(layer)  # type: ignore[operator]
    assert torch.equal(read_masks(layer)["weight"], ours["weight"])


def test_masks_go_to_torch_and_back() -> None:
    net = _net()
    before = copy.deepcopy(net)
    names = ["0.weight", "5.weight"]
    masks = make_masks({n: net.get_parameter(n) for n in names}, [Sparsify(0.5, "kernel", 2)])
    write_masks(net, masks)
    assert {n: m.tolist() for n, m in read_masks(net).items()} == {n: m.tolist() for n, m in masks.items()}
    x = torch.randn(4, 3, 6, 6)
    apply_masks(before, masks)
    assert torch.equal(net.eval()(x), before.eval()(x))
    # Masked weights stay zero through momentum and weight decay.
    optimizer = torch.optim.AdamW(net.train().parameters(), 0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()
    net.eval()(x)
    assert not net[0].weight[~masks["0.weight"]].any()
    assert net[0].weight[masks["0.weight"]].all()


def test_a_model_masked_by_torch_is_traced_as_what_it_computes() -> None:
    net = _net().eval()
    prune.l1_unstructured(net[0], "weight", 0.5)
    prune.ln_structured(net[5], "weight", 0.25, n=2, dim=1)
    x = torch.randn(2, 3, 6, 6)
    expected = net(x)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(net)
    plain = plain_copy(net)
    assert read_masks(plain) == {}
    assert sorted(dict(plain.named_parameters())) == sorted(dict(_net().named_parameters()))
    assert torch.equal(plain(x), expected)
    assert len(read_masks(net)) == 2  # the original is left alone
    space = netcarve.trace(net, x).space(ratios=2)
    assert torch.allclose(space.build(space.baseline)(x), expected, atol=1e-6)
    assert space.build(space.candidate([1] * len(space)))(x).shape == (2, 5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Sparsify(1.0), "delete the layer"),
        (lambda: Sparsify(-0.1), "amount"),
        (lambda: Sparsify(0.5, "tile"), "granularity"),
        (lambda: Sparsify(0.5, norm=3), "norm"),
        (lambda: make_masks({"b": torch.ones(3)}, [Sparsify(0.5)]), "shape"),
        (lambda: make_masks({"w": torch.ones(3, 3)}, [], scope="all"), "scope"),  # type: ignore[arg-type]
        (lambda: write_masks(_net(), {"7.weight": torch.ones(1)}), "no parameter"),
        (lambda: write_masks(_net(), {"0.weight": torch.ones(1)}), "its mask"),
        (lambda: apply_masks(_net(), {"0.weight": torch.ones(1)}), "its mask"),
    ],
)
def test_nonsense_is_refused(wrong: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()  # type: ignore[operator]
