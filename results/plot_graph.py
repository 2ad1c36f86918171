"""A picture of a network cut into stages: what crosses where, and which stage is where."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, FAINT = "#1f2933", "#7b8794", "#c9d1d9"
CUT = "#dc2626"
STAGES = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#db2777", "#0891b2", "#65a30d", "#b45309")
ROWS = 44  # boxes of a column
WIDTH, SIDE = 2.0, 5.6  # of the widest box, of a column; a box is 1 high
SKIPS = 60  # more arcs than these would hide the boxes


@dataclass(frozen=True, slots=True)
class Box:
    """Consecutive calls of one module and one stage."""

    label: str
    stage: int  # from 0
    ms: float
    enters: float  # bytes alive before it: what a cut there would send
    leaves: float  # bytes alive after it; of the last box what it returns


@dataclass(frozen=True, slots=True)
class GraphPicture:
    title: str
    subtitle: str
    boxes: tuple[Box, ...]  # in the order in which they run
    stages: tuple[str, ...]  # a line about each
    skips: tuple[tuple[int, int], ...] = ()  # boxes joined past the ones between


def plot_graph(picture: GraphPicture, path: str | os.PathLike[str]) -> None:
    """Draw a cut network into an image file; the ending of ``path`` (.png, .svg, .pdf) says which kind.

    Boxes run from top to bottom, then on in the next column; their edges are as wide as the square root of
    the bytes alive there.

    Raises:
        ValueError: no boxes.
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not picture.boxes:
        raise ValueError("there is no box to draw")
    count = len(picture.boxes)
    columns = math.ceil(count / ROWS)
    rows = math.ceil(count / columns)
    top = 1.4 + 0.75 * len(picture.stages)
    size = (max(columns * SIDE * 0.95, 7.0), (rows + top + 1.7) * 0.27 + 0.4)
    figure = Figure(figsize=size, dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(-0.53 * SIDE, (columns - 0.47) * SIDE)
    axes.set_ylim(rows + 0.8, -top - 0.9)
    _heading(axes, picture, top)
    widest = max(max(box.enters, box.leaves) for box in picture.boxes) or 1.0
    for number, box in enumerate(picture.boxes):
        before = picture.boxes[number - 1] if number else None
        _box(axes, box, before, number % rows, (number // rows) * SIDE, widest)
    if len(picture.skips) <= SKIPS:
        for one, other in picture.skips:
            if one // rows == other // rows:
                _arc(axes, one % rows, other % rows, (one // rows) * SIDE)
    figure.savefig(path)


def _heading(axes: Axes, picture: GraphPicture, top: float) -> None:
    left = -0.5 * SIDE
    axes.text(left, -top, picture.title, fontsize=12, fontweight="bold", color=INK, va="center")
    axes.text(left, -top + 0.85, picture.subtitle, fontsize=7, color=MUTED, va="center")
    for k, text in enumerate(picture.stages):
        y = -top + 1.65 + 0.75 * k
        axes.text(left, y, "■", fontsize=10, color=_colour(k), va="center")
        axes.text(left + 0.25, y, text, fontsize=8, color=INK, va="center")


def _box(axes: Axes, box: Box, before: Box | None, row: int, x: float, widest: float) -> None:
    from matplotlib.patches import Polygon

    over, under = (max(WIDTH * math.sqrt(size / widest), 0.04) / 2 for size in (box.enters, box.leaves))
    corners = [(x - over, row), (x + over, row), (x + under, row + 1), (x - under, row + 1)]
    axes.add_patch(
        Polygon(corners, facecolor=_colour(box.stage), edgecolor="white", linewidth=1.0, alpha=0.85)
    )
    middle = row + 0.5
    right = x + 0.47 * SIDE
    side: dict[str, Any] = {"ha": "right", "va": "center"}
    axes.text(x - WIDTH / 2 - 0.1, middle, _short(box.label), fontsize=7, color=INK, **side)
    axes.text(right - 0.62, middle, f"{box.ms:.3g} ms", fontsize=6.5, color=MUTED, **side)
    if before is not None and before.stage != box.stage:
        axes.plot([x - 0.49 * SIDE, right], [row, row], color=CUT, linewidth=1.3, linestyle=(0, (4, 2)))
        sent = size_text(box.enters)
        axes.text(right, row - 0.06, sent, fontsize=7, color=CUT, ha="right", va="bottom", fontweight="bold")


def _arc(axes: Axes, one: int, other: int, x: float) -> None:
    """From the end of a box past others to the beginning of another."""
    from matplotlib.patches import Arc

    low, high = one + 1, other
    reach = min(0.25 + 0.05 * (high - low), 0.55)
    middle = (x + WIDTH / 2 + 0.05, (low + high) / 2)
    axes.add_patch(Arc(middle, 2 * reach, high - low, theta1=-90, theta2=90, color=FAINT, linewidth=0.9))


def size_text(size: float) -> str:
    """``401_408`` as ``"401 kB"``."""
    return f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.3g} kB"


def _colour(stage: int) -> str:
    return STAGES[stage % len(STAGES)]


def _short(label: str, most: int = 26) -> str:
    return label if len(label) <= most else "…" + label[1 - most :]
