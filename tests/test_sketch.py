"""The picture of a front in characters: dots are where the points are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from netcarve import Candidate, Front, Objective, Trial
from netcarve.results.plot import DOTS, braille, sketch

GOALS = (Objective("accuracy"), Objective("macs"))


def dots(lines) -> set[tuple[int, int]]:
    """(column, row from the top) of every dot of a picture."""
    found = set()
    for i, line in enumerate(lines):
        for j, (character, _) in enumerate(line):
            bits = ord(character) - 0x2800 if character != " " else 0
            found |= {(2 * j + c, 4 * i + r) for r in range(4) for c in range(2) if bits & DOTS[r, c]}
    return found


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=60))
def test_dots_are_where_the_points_are(points):
    at = np.array(points).reshape(-1, 2)
    lines = braille([(at, "x")], np.zeros(2), np.ones(2), columns=20, rows=5)
    assert [len(line) for line in lines] == [20] * 5
    assert dots(lines) == {(min(int(x * 40), 39), min(int((1 - y) * 20), 19)) for x, y in points}


def test_later_layers_colour_and_outside_is_left_out():
    one, far = np.array([[0.5, 0.5]]), np.array([[2.0, 0.5], [0.5, -1.0]])
    lines = braille([(one, "dim"), (one, "bold"), (far, "red")], np.zeros(2), np.ones(2), columns=4, rows=2)
    styles = {style for line in lines for _, style in line}
    assert styles == {"", "bold"}


def trial(number: int, accuracy: float, macs: float) -> Trial:
    return Trial(number, Candidate((number,)), {"accuracy": accuracy, "macs": macs})


def test_axes_name_the_ends():
    trials = [trial(0, 0.99, 2e6), trial(1, 0.9, 1e6), trial(2, 0.5, 2e5), trial(3, 0.4, 1.5e6)]
    lines = ["".join(text for text, _ in line) for line in sketch(Front(trials, GOALS), trials)]
    assert lines[0].startswith(" 99.00 % │") or lines[0].lstrip().startswith("99.00 %")
    assert "50.00 %" in lines[13]
    assert lines[-1].split() == ["200", "k", "MACs", "2.00", "M"]
    assert len({len(line) for line in lines[:14]}) == 1
    assert len(dots([[(c, "") for c in line if c == " " or ord(c) >= 0x2800] for line in lines[:14]])) >= 3


@pytest.mark.parametrize("trials", [[], [trial(0, 0.5, 1.0)]])
def test_small_fronts(trials):
    drawn = sketch(Front(trials, GOALS), trials)
    assert bool(drawn) == bool(trials)
    assert sketch(Front(trials, GOALS[:1]), trials) == []
