"""Merge and split moves of the evolutionary searchers."""

import numpy as np
import pytest
from netcarve.devices import Device, Link
from netcarve.search.evolutionary.evolution import SHARE, boundaries, jump
from netcarve.spaces import Choice, Space
from netcarve.spaces.kinds.splits.plan import SplitPlan, splitting_choices
from netcarve.testing import toy_space


def split_space(encoding):
    plan = SplitPlan(
        places=("a", "b", "c"),
        indices=(1, 2, 3),
        encoding=encoding,
        placement="ordered",
        parts=4,
        devices=(Device("one"), Device("two")),
        links=(Link(),),
    )
    return Space([Choice("prune:x", (0.0, 0.5)), *splitting_choices(plan), Choice("drop:y", (False, True))])


def test_boundaries_merge_with_a_neighbour_or_go_anywhere():
    space = split_space("positions")
    columns = boundaries(space)
    assert columns.tolist() == [1, 2, 3]
    rows = np.tile([1, 3, 2, 1, 0], (4000, 1))  # after a, after b, after c
    moved = jump(np.random.default_rng(0), rows, columns, space.counts)
    changed = moved[(moved != rows).any(axis=1)]
    assert ((changed != rows[0]).sum(axis=1) == 1).all()  # one boundary a row
    assert (changed[:, [0, 4]] == [1, 0]).all()
    share = {
        tuple(row): n / 4000 for row, n in zip(*np.unique(moved, axis=0, return_counts=True), strict=True)
    }
    # SHARE / 3 boundaries: 1 / 4 to each side's neighbour, 1 / 10 to each of the five places.
    assert share[1, 2, 2, 1, 0] == pytest.approx(SHARE / 3 * (1 / 4 + 1 / 10), rel=0.3)  # merged with b
    assert share[1, 4, 2, 1, 0] == pytest.approx(SHARE / 3 * (1 / 4 + 1 / 10), rel=0.3)  # with the start
    assert share[1, 3, 2, 0, 0] == pytest.approx(SHARE / 3 * (1 / 4 + 1 / 10), rel=0.3)  # with the end
    assert share[1, 0, 2, 1, 0] == pytest.approx(SHARE / 3 / 10, rel=0.5)


def test_without_boundaries_nothing_is_drawn():
    for space in (toy_space(), split_space("each")):
        rng = np.random.default_rng(0)
        rows = np.zeros((5, len(space)), dtype=np.int64)
        assert jump(rng, rows, boundaries(space), space.counts) is rows
        assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state
