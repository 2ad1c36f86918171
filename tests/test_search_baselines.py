"""Grid, Latin hypercube and ladder: what they promise about coverage, counted."""

import numpy as np
import pytest
from netcarve.search.baselines import Grid, Ladder, LatinHypercube
from netcarve.spaces import Choice, Space
from netcarve.testing import OBJECTIVES, SearcherConformance, drive, toy_space


class TestGrid(SearcherConformance):
    searcher = Grid
    learns = False
    random = False


class TestLatinHypercube(SearcherConformance):
    searcher = LatinHypercube
    learns = False


class TestLadder(SearcherConformance):
    searcher = Ladder
    learns = False
    random = False


def ragged(counts):
    return Space([Choice(f"c{d}", tuple(range(n))) for d, n in enumerate(counts)])


@pytest.mark.parametrize("counts", [[1], [7], [2, 3, 4], [5, 5], [1, 6, 1, 2], [2] * 9])
def test_grid_is_the_whole_space_once(counts):
    space = ragged(counts)
    trials = drive(Grid(space, OBJECTIVES), 10_000, scores=lambda c: {"quality": 0.0, "cost": 0.0})
    assert len(trials) == len({t.candidate for t in trials}) == space.size


def test_grid_levels_are_even_and_hold_the_ends():
    trials = drive(Grid(ragged([9, 2, 4]), OBJECTIVES, levels=3), 100)
    columns = [sorted(set(column)) for column in zip(*(t.candidate.indices for t in trials), strict=True)]
    assert columns == [[0, 4, 8], [0, 1], [0, 2, 3]]
    assert len(trials) == 18
    with pytest.raises(ValueError, match="levels must be at least 2"):
        Grid(toy_space(), OBJECTIVES, levels=1)


@pytest.mark.parametrize("counts", [[4] * 6, [3, 8, 5, 2], [8] * 12])
def test_every_beginning_of_the_grid_covers_each_choice(counts):
    """Counting in order would leave the first choices at option 0."""
    rows = np.array([c.indices for c in Grid(ragged(counts), OBJECTIVES).ask(120)])
    for n in (40, 80, 120):
        for d, options in enumerate(counts):
            taken = np.bincount(rows[:n, d], minlength=options)
            assert np.abs(taken - n / options).max() <= 4, (n, d, taken)


def test_grid_of_a_space_beyond_floating_point():
    asked = Grid(toy_space(100, 8), OBJECTIVES).ask(50)
    assert len(set(asked)) == 50
    assert len({c.indices[0] for c in asked}) == 8


@pytest.mark.parametrize("counts", [[2, 4, 8], [3, 6, 2], [5, 10], [7, 7]])
@pytest.mark.parametrize("seed", range(3))
def test_latin_hypercube_takes_every_option_equally_often(counts, seed):
    space = ragged(counts)
    made = LatinHypercube(space, OBJECTIVES, seed=seed)
    for _ in range(3):
        rows = np.array([c.indices for c in made.ask(made.points)])
        for d, n in enumerate(counts):
            assert np.bincount(rows[:, d], minlength=n).tolist() == [made.points // n] * n


def test_latin_hypercube_strata_where_options_do_not_divide():
    """Every stratum is drawn from once, so an option may miss its share by the strata across its borders."""
    space = ragged([3, 7, 5])
    for seed in range(20):
        rows = np.array([c.indices for c in LatinHypercube(space, OBJECTIVES, seed=seed, points=16).ask(16)])
        for d, n in enumerate([3, 7, 5]):
            assert np.abs(np.bincount(rows[:, d], minlength=n) - 16 / n).max() <= 2


def test_latin_hypercube_pairs_choices_at_random():
    """Over many blocks every pair of options comes equally often: 5 standard deviations."""
    made = LatinHypercube(toy_space(2, 4), OBJECTIVES, seed=0, points=4)
    rows = np.array([c.indices for c in made.ask(8000)])
    pairs = np.bincount(rows[:, 0] * 4 + rows[:, 1], minlength=16)
    assert np.abs(pairs - 500).max() < 5 * np.sqrt(500)


def test_latin_hypercube_block_size():
    assert LatinHypercube(ragged([2, 3]), OBJECTIVES).points == 12
    assert LatinHypercube(ragged([8, 8]), OBJECTIVES).points == 16
    assert LatinHypercube(ragged([7, 9, 11]), OBJECTIVES).points == 16
    assert LatinHypercube(ragged([100, 3]), OBJECTIVES).points == 100
    with pytest.raises(ValueError, match="points must be at least 1"):
        LatinHypercube(toy_space(), OBJECTIVES, points=0)


def test_ladder_is_the_diagonal_from_its_ends():
    assert [c.indices for c in Ladder(toy_space(3, 5), OBJECTIVES).ask(9)] == [
        (0, 0, 0),
        (4, 4, 4),
        (2, 2, 2),
        (1, 1, 1),
        (3, 3, 3),
    ]


def test_ladder_keeps_ratios_equal_where_option_counts_differ():
    space = ragged([5, 3, 9])
    made = Ladder(space, OBJECTIVES)
    for candidate in made.ask(100):
        x = space.encode(candidate)
        assert np.ptp(x) <= 0.25 + 0.125  # half an option of the coarsest choice, and of the second
    assert made.finished
