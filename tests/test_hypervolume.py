"""Dominance, hypervolume and knee against closed forms and brute force."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from netcarve.results.hypervolume import dominance_ranks, hypervolume, knee, nondominated

EDGE = 6  # integer points in [0, EDGE)^m, reference EDGE


def integer_points(objectives, most=9):
    shape = st.tuples(st.integers(0, most), st.just(objectives))
    return arrays(np.float64, shape, elements=st.integers(0, EDGE + 1).map(float))


def cells_dominated(points, corner):
    """Unit cells below ``corner`` that some integer point dominates, counted one by one."""
    m = len(corner)
    cells = np.indices((EDGE,) * m).reshape(m, -1).T
    dominated = np.zeros(len(cells), dtype=bool)
    for point in points:
        dominated |= (point <= cells).all(axis=1)
    return int(dominated.sum())


def inclusion_exclusion(points, corner):
    boxes = [np.asarray(p) for p in points if (np.asarray(p) < corner).all()]
    total = 0.0
    for size in range(1, len(boxes) + 1):
        for some in combinations(boxes, size):
            total += (-1) ** (size + 1) * float(np.prod(corner - np.max(some, axis=0)))
    return total


def dominated_by_definition(points):
    return [any((q <= p).all() and (q < p).any() for q in points) for p in points]


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@given(data=st.data())
def test_hypervolume_counts_the_dominated_cells(objectives, data):
    points = data.draw(integer_points(objectives))
    corner = np.full(objectives, float(EDGE))
    assert hypervolume(points, corner) == cells_dominated(points, corner)


@pytest.mark.parametrize("objectives", [2, 3, 4, 5])
def test_hypervolume_equals_inclusion_exclusion(objectives):
    rng = np.random.default_rng(objectives)
    for _ in range(10):
        points = rng.uniform(-1, 1.2, size=(9, objectives))
        corner = np.ones(objectives)
        assert hypervolume(points, corner) == pytest.approx(inclusion_exclusion(points, corner), rel=1e-12)


@pytest.mark.parametrize("objectives", [1, 2, 3, 4, 6])
def test_one_point_is_a_box(objectives):
    assert hypervolume(np.zeros((1, objectives)), np.full(objectives, 10.0)) == 10.0**objectives


@pytest.mark.parametrize("objectives", [2, 3, 4, 5])
def test_half_off_in_each_objective(objectives):
    # Below e_j / 2 lie all cells of the unit cube whose j-th coordinate is at least one half.
    covered = 1.0 - 0.5**objectives
    assert hypervolume(0.5 * np.eye(objectives), np.ones(objectives)) == pytest.approx(covered)


@pytest.mark.parametrize("objectives", [2, 3, 4])
@given(data=st.data())
def test_hypervolume_ignores_order_duplicates_and_dominated_points(objectives, data):
    points = data.draw(integer_points(objectives))
    corner = np.full(objectives, float(EDGE))
    shuffled = np.concatenate([points, points])[data.draw(st.permutations(range(2 * len(points))))]
    whole = hypervolume(points, corner)
    assert hypervolume(shuffled, corner) == whole
    assert hypervolume(points[nondominated(points)], corner) == whole


def test_nothing_dominates_nothing():
    assert hypervolume([], [1.0, 1.0]) == 0.0
    assert hypervolume([[2.0, 0.0], [1.0, 0.0]], [1.0, 1.0]) == 0.0
    assert nondominated([]).shape == (0,)


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@given(data=st.data())
def test_nondominated_is_the_definition(objectives, data):
    points = data.draw(integer_points(objectives, most=14))
    assert (~nondominated(points)).tolist() == dominated_by_definition(points)


@pytest.mark.parametrize("objectives", [1, 2, 3, 4, 40])
@given(data=st.data())
def test_fronts_come_off_one_after_the_other(objectives, data):
    some = st.sampled_from([-np.inf, -1e308, -0.0, 0.0, 1.0, np.inf])
    points = data.draw(arrays(np.float64, st.tuples(st.integers(0, 9), st.just(objectives)), elements=some))
    found, left, level = dominance_ranks(points), np.arange(len(points)), 0
    assert (nondominated(points) == (found == 0)).all()
    while len(left):
        beaten = np.array(dominated_by_definition(points[left]), dtype=bool)
        assert (found[left[~beaten]] == level).all()
        left, level = left[beaten], level + 1


def test_equal_points_are_kept_together_and_zero_has_one_sign():
    assert nondominated([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).tolist() == [
        True,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: nondominated([[0.0, np.nan]]), "NaN"),
        (lambda: nondominated([1.0, 2.0]), "shape"),
        (lambda: hypervolume([[0.0, 0.0]], [1.0]), "one number per objective"),
        (lambda: hypervolume([[0.0, -np.inf]], [1.0, 1.0]), "finite"),
        (lambda: hypervolume([[0.0, 0.0]], [1.0, np.inf]), "finite"),
        (lambda: knee(np.empty((0, 2))), "at least one"),
    ],
)
def test_bad_input_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_knee_is_the_point_that_bulges_most():
    assert knee([[0, 100], [1, 20], [2, 18], [10, 0]]) == 1
    assert knee([[0, 10, 10], [10, 0, 10], [10, 10, 0], [3, 3, 3]]) == 3


def test_knee_does_not_depend_on_units():
    points = np.array([[0.01, 2.6e6], [0.02, 1.1e6], [0.05, 0.9e6], [0.60, 0.1e6]])
    assert knee(points) == knee(points * [100, 1e-6]) == knee(points + np.array([5, 1e6])) == 2


def test_knee_of_few_or_flat_points_is_the_first_best():
    assert knee([[3, 4]]) == 0
    assert knee([[0, 1], [1, 0]]) == 0
    assert knee([[1, 1], [1, 1]]) == 0
    assert knee([[0, 5], [0, 5]]) == 0
