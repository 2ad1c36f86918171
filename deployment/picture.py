"""Picture of a network cut into stages: what crosses where, and which device runs which stage."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .decompose import MeasuredLayout
from .network import Network
from .setting import PartitionSettings

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


# -- The boxes of the picture of a layout ---------------------------------------------------------------

MOST = 40  # boxes


def picture_of(measured: MeasuredLayout, asked: PartitionSettings) -> GraphPicture:
    """Calls gathered by the deepest modules that leave at most 40 boxes, never across a cut."""
    layout = measured.layout
    network, ends = layout.network, layout.ends
    spans = list(zip([0, *ends], ends, strict=False))
    stage_of = [k for k, (a, b) in enumerate(spans) for _ in range(a, b)]
    depths = range(max((len(call.modules) for call in network.calls), default=0), 0, -1)
    runs = next(
        (found for found in (_runs(network, stage_of, depth) for depth in depths) if len(found) <= MOST),
        _runs(network, stage_of, 0),
    )
    scale = [measured.here_ms[k] / max(network.ms[a:b].sum(), 1e-9) for k, (a, b) in enumerate(spans)]
    boxes = tuple(
        Box(
            label or network.name,
            stage_of[a],
            float(network.ms[a:b].sum() * scale[stage_of[a]]),
            network.crossing_bytes(a - 1),
            network.crossing_bytes(b - 1),
        )
        for label, a, b in runs
    )
    lines = []
    for k, at in enumerate(layout.on):
        line = f"stage {k + 1} on {asked.devices[at].name}: {layout.costs.compute[at]:.4g} ms"
        sent = layout.cuts[k].bytes * network.batch if k < len(layout.cuts) else 0.0
        lines.append(line + (f", sends {size_text(sent)}" if sent else ""))
    return GraphPicture(
        f"{network.name} in {len(layout.on)} stage{'s' * (len(layout.on) != 1)}",
        f"{len(network.calls)} calls in {len(boxes)} boxes; width: root of the bytes that cross; ms: here",
        boxes,
        tuple(lines),
        _skips(network, runs),
    )


def _runs(network: Network, stage_of: Sequence[int], depth: int) -> list[tuple[str, int, int]]:
    """Label, first call and call after the last, of consecutive calls that share modules and stage."""
    runs: list[tuple[str, int, int]] = []
    for i, call in enumerate(network.calls):
        label = call.modules[min(depth, len(call.modules)) - 1] if depth and call.modules else ""
        if runs and runs[-1][0] == label and stage_of[i] == stage_of[i - 1]:
            runs[-1] = (label, runs[-1][1], i + 1)
        else:
            runs.append((label, i, i + 1))
    return runs


def _skips(network: Network, runs: Sequence[tuple[str, int, int]]) -> tuple[tuple[int, int], ...]:
    box_of = {i: number for number, (_, a, b) in enumerate(runs) for i in range(a, b)}
    order = network.order
    pairs = {
        (box_of[at], box_of[order.at[user]])
        for n, at in order.at.items()
        for user in n.users
        if at >= 0 and user in order.at
    }
    return tuple(sorted(pair for pair in pairs if pair[1] > pair[0] + 1))
