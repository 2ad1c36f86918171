"""Numbers as text, the rich table, the JSON object and the picture."""

import io
import json

import pytest
from netcarve import Choice, Front, Space, Trial
from netcarve.results.plot import plot_front
from netcarve.results.table import (
    front_document,
    front_rows,
    metric_text,
    plain,
    ratio_text,
    render_front,
    si,
    sweep_document,
)

SPACE = Space([Choice("width", (1.0, 0.5, 0.25)), Choice("kind", ("conv", "separable"))])


def trial(number, indices, error=None, **scores):
    return Trial(number, SPACE.candidate(indices), scores, error=error)


TRIALS = [
    trial(0, (0, 0), accuracy=0.9867, macs=2_630_000.0, params=174_970.0, latency_ms=1.302),
    trial(1, (1, 0), accuracy=0.98, macs=1_213_440.0, params=42_567.0, latency_ms=0.412),
    trial(2, (1, 1), accuracy=0.95, macs=81_000.0, params=4_000.0),
    trial(3, (0, 1), accuracy=0.94, macs=1_300_000.0, params=4_000.0),
    trial(4, (2, 1), error="ValueError: no"),
]
FRONT = Front(TRIALS, ["accuracy", "macs"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (64, "64"),
        (999, "999"),
        (1000, "1.00 k"),
        (42_567, "42.6 k"),
        (999_499, "999 k"),
        (999_950, "1.00 M"),
        (1_213_440, "1.21 M"),
        (11.3e9, "11.3 G"),
        (4e18, "4000 P"),
        (0.5, "0.500"),
        (-1500, "-1.50 k"),
        (float("inf"), "inf"),
    ],
)
def test_si(value, text):
    assert si(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.4123, "0.412"),
        (1.3, "1.30"),
        (9.999, "10.0"),
        (1234.5, "1230"),
        (1e-7, "1e-07"),
        (-2.5, "-2.50"),
    ],
)
def test_plain(value, text):
    assert plain(value) == text


@pytest.mark.parametrize(
    ("name", "value", "unit", "text"),
    [
        ("accuracy", 0.98666, "", "98.67 %"),
        ("macs", 1_213_440, "", "1.21 M"),
        ("params", 42_567, "", "42.6 k"),
        ("latency", 0.4121, "", "0.412 ms"),
        ("size_mb", 0.1712, "", "0.171 MB"),
        ("loss", 0.05, "", "0.0500"),
        ("mae", 3.14159, "mm", "3.142 mm"),
    ],
)
def test_metric_text(name, value, unit, text):
    assert metric_text(name, value, unit) == text


@pytest.mark.parametrize(
    ("value", "base", "text"),
    [
        (43, 100, "0.43x"),
        (100, 100, "1.00x"),
        (3.1, 100, "0.031x"),
        (1230, 100, "12.3x"),
        (1, 0, ""),
        (0, 5, "0.00x"),
    ],
)
def test_ratio_text(value, base, text):
    assert ratio_text(value, base) == text


def test_rows_start_with_the_unchanged_model_and_mark_the_knee():
    rows = front_rows(FRONT)
    assert [row["trial"] for row in rows] == ["0", "1", "2"]
    assert [row["note"] for row in rows] == ["unchanged", "knee", ""]
    assert rows[0] == {
        "trial": "0",
        "accuracy": "98.67 %",
        "macs": "2.63 M",
        "params": "175 k",
        "latency_ms": "1.30 ms",
        "note": "unchanged",
    }
    assert rows[1]["macs"] == "1.21 M 0.46x"
    assert rows[2]["macs"] == "81.0 k 0.031x"
    assert rows[2]["latency_ms"] == ""


def test_rows_without_baseline_and_with_other_extras():
    front = Front(TRIALS[1:], ["accuracy", "macs"])
    rows = front_rows(front, extra=["size_mb"])
    assert [list(row) for row in rows] == [["trial", "accuracy", "macs", "note"]] * 2
    assert rows[0]["macs"] == "1.21 M"
    assert front_rows(Front([], ["macs"])) == []


def test_rich_table_fits_a_terminal():
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_front(FRONT, title="digits"))
    lines = [line.rstrip() for line in console.export_text().splitlines() if line.strip()]
    assert len(lines) == 3 + 3  # title, heads, rule; nothing is wrapped
    assert lines[1].split() == ["trial", "accuracy", "MACs", "parameters", "latency"]
    assert lines[4].endswith("knee")
    assert "1.21 M 0.46x" in lines[4]
    assert "…" not in "".join(lines)


def test_document_is_the_contract():
    document = front_document(FRONT, task="digits", searcher="nsga2", seed=3)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert list(document) == ["task", "searcher", "seed", "objectives", "baseline", "trials"]
    assert document["objectives"][0] == {"name": "accuracy", "goal": "max", "unit": ""}
    assert document["baseline"]["macs"] == 2_630_000.0
    assert document["trials"][1] == {
        "number": 1,
        "candidate": {"width": 0.5, "kind": "conv"},
        "scores": {"accuracy": 0.98, "macs": 1_213_440.0, "params": 42_567.0, "latency_ms": 0.412},
    }
    assert front_document(Front([], ["macs"]), task=None, searcher="random", seed=0)["baseline"] == {}


def test_sweep_document_adds_how_it_went():
    document = sweep_document(
        FRONT, task="digits", searcher="nsga2", seed=3, out="runs/x", evaluated=5, failed=1, seconds=2.5
    )
    added = {"out": "runs/x", "evaluated": 5, "failed": 1, "seconds": 2.5, "hypervolume": FRONT.hypervolume()}
    assert document == front_document(FRONT, task="digits", searcher="nsga2", seed=3) | added


@pytest.mark.quick("objectives0-axes0", "objectives3-axes3")
@pytest.mark.parametrize(
    ("objectives", "axes"),
    [
        (["accuracy", "macs"], {}),
        (["accuracy", "macs"], {"x": "latency"}),
        (["accuracy", "macs", "latency_ms"], {"x": "params", "y": "accuracy"}),
        (["accuracy"], {}),
        (["macs"], {"y": "accuracy"}),
        (["params", "macs"], {}),
    ],
)
def test_picture_is_drawn(tmp_path, objectives, axes):
    plot_front(Front(TRIALS, objectives), TRIALS, tmp_path / "front.png", **axes)
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_picture_of_little(tmp_path):
    plot_front(Front(TRIALS[:1], ["accuracy", "macs"]), TRIALS[:1], tmp_path / "front.svg")
    none_left = Front(TRIALS, ["accuracy", "macs"], limits=["macs<=1"])
    plot_front(none_left, TRIALS, tmp_path / "none.png")
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_front(Front([], ["accuracy", "macs"]), [], tmp_path / "x.png")
    with pytest.raises(ValueError, match="two metrics"):
        plot_front(FRONT, TRIALS, tmp_path / "x.png", x="macs", y="macs")
