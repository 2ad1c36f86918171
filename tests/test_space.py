"""Choices, candidates and spaces without a model."""

import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from netcarve import Candidate, Choice, Space


def make_space(counts):
    return Space([Choice(f"c{i}", tuple(range(n))) for i, n in enumerate(counts)])


spaces = st.lists(st.integers(1, 6), min_size=1, max_size=6).map(make_space)


@given(spaces, st.integers(0, 2**32 - 1))
def test_encode_decode_round_trip_and_bounds(space, seed):
    for candidate in space.sample(np.random.default_rng(seed), 5):
        x = space.encode(candidate)
        assert x.shape == (len(space),)
        assert (x >= 0).all()
        assert (x <= 1).all()
        assert space.decode(x) == candidate
        assert space.from_values(json.loads(candidate.to_json())) == candidate


@given(spaces)
def test_neighbours_differ_by_one_step_in_one_choice(space):
    base = space.sample(np.random.default_rng(0), 1)[0]
    near = space.neighbours(base)
    assert len(set(near)) == len(near)
    for other in near:
        steps = [abs(a - b) for a, b in zip(base.indices, other.indices, strict=True)]
        assert sorted(steps)[-1] == 1
        assert sum(steps) == 1
    expected = sum((i > 0) + (i < len(c) - 1) for i, c in zip(base.indices, space.choices, strict=True))
    assert len(near) == expected


def test_sampling_is_uniform_and_seeded():
    space = make_space([2, 3])
    drawn = space.sample(np.random.default_rng(1), 6000)
    assert drawn == space.sample(np.random.default_rng(1), 6000)
    counts = [drawn.count(space.candidate((i, j))) for i in range(2) for j in range(3)]
    assert min(counts) > 850
    assert max(counts) < 1150


def test_a_space_of_very_many_choices_is_made_at_once():
    start = time.process_time()
    space = Space([Choice(f"c{i}", (0, 1)) for i in range(90_000)])
    assert len(space) == 90_000
    assert time.process_time() - start < 10  # seconds; in quadratic time minutes


def test_size_is_exact_for_huge_spaces():
    assert make_space([8] * 100).size == 8**100


def test_baseline_is_the_first_option_of_every_choice():
    assert make_space([3, 2]).baseline == Candidate((0, 0))


def test_join():
    joined = Space([Choice("a", (0, 1))]) + Space([Choice("b", ("x", "y", "z"))])
    assert joined.size == 6
    assert joined.candidate((1, 2)).values == {"a": 1, "b": "z"}
    with pytest.raises(ValueError, match="distinct names"):
        joined + Space([Choice("a", (0,))])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Space([]), "at least one choice"),
        (lambda: Choice("a", ()), "no options"),
        (lambda: Choice("", (1,)), "needs a name"),
        (lambda: Choice("a", (1, 1)), "twice"),
        (lambda: make_space([2]).candidate((2,)), "index 2"),
        (lambda: make_space([2]).candidate((0, 0)), "has 1 indices, got 2"),
        (lambda: make_space([2]).from_values({"x": 0}), "missing"),
        (lambda: make_space([2]).from_values({"c0": 7}), "no option 7"),
        (lambda: make_space([2]).decode([float("nan")]), "finite"),
        (lambda: make_space([2]).costs([]), "space of a model"),
        (lambda: make_space([2]).build(Candidate((0,))), "space of a model"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
