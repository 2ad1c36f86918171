"""Fronts side by side, under one reference."""

from __future__ import annotations

import pytest
from netcarve import Candidate, Front, Trial
from netcarve.results.comparison import budget_rows, common_objectives, common_reference, compare_fronts


def front(*points: tuple[float, float], objectives: tuple[str, ...] = ("accuracy", "macs")) -> Front:
    scores = [{"accuracy": a, "macs": m, "loss": 1 - a} for a, m in points]
    return Front([Trial(i, Candidate((i,)), s) for i, s in enumerate(scores)], objectives)


def test_the_larger_hypervolume_comes_first_under_one_reference() -> None:
    small, large = front((0.9, 100.0), (0.5, 50.0)), front((0.9, 200.0), (0.8, 50.0))
    found = compare_fronts({"small": small, "large": large})
    # Reference (0, 200): 0.9 x 100 / 200 + 0.5 x 50 / 200 and 0.8 x 150 / 200, plus a strip of no width.
    assert found["reference"] == {"accuracy": 0.0, "macs": 200.0}
    assert [(row["run"], row["size"]) for row in found["runs"]] == [("large", 2), ("small", 2)]
    assert [row["hypervolume"] for row in found["runs"]] == pytest.approx([0.6, 0.575])
    assert found["runs"][0]["best"] == {"accuracy": 0.9, "macs": 50.0}


def test_the_common_reference_is_the_worst_of_all() -> None:
    assert common_reference([front((0.9, 100.0)), front((0.9, 300.0))]) == {"accuracy": 0.0, "macs": 300.0}


def test_budgets_show_what_each_front_reaches() -> None:
    fronts = {"a": front((0.9, 100.0), (0.5, 50.0)), "b": front((0.8, 100.0), (0.7, 9.0))}
    metric, cost, rows = budget_rows(fronts)
    assert (metric, cost) == ("accuracy", "macs")
    assert rows[0] == ["1x", "90.00 %", "80.00 %"]
    assert rows[2] == ["0.5x", "50.00 %", "70.00 %"]
    assert rows[-1] == ["0.1x", "-", "70.00 %"]


def test_shared_objectives_in_the_first_order() -> None:
    a, b = front((0.9, 1.0)), front((0.9, 1.0), objectives=("macs", "loss"))
    assert [o.name for o in common_objectives({"a": a, "b": b})] == ["macs"]
    with pytest.raises(ValueError, match="share no objective"):
        common_objectives({"a": a, "b": front((0.9, 1.0), objectives=("loss",))})
    assert budget_rows({"b": b})[:2] == ("loss", "macs")
    assert budget_rows({"b": front((0.9, 1.0), objectives=("loss",))}) == ("", "", [])


def test_an_empty_front_is_compared_too() -> None:
    failed = Front([Trial(0, Candidate((0,)), error="Traceback\nValueError: no")], ("accuracy", "macs"))
    found = compare_fronts({"good": front((0.9, 100.0), (0.5, 50.0)), "failed": failed})
    assert [(row["run"], row["hypervolume"]) for row in found["runs"]][1] == ("failed", 0.0)
