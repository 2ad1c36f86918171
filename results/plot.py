"""Pictures of a front, as a file and in a terminal: cost across, quality up, what was beaten in grey."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .confirmation import confirming_data
from .front import Front
from .hypervolume import nondominated
from .objective import FRACTIONS, Objective
from .table import COUNTS, HEADINGS, USUAL, metric_text, ratio_text, si
from .trial import Trial, in_full

if TYPE_CHECKING:
    from matplotlib.axes import Axes


INK, MUTED, FAINT = "#1f2933", "#7b8794", "#e4e7eb"
GREY, FRONT, KNEE, UNIFORM = "#b8c2cc", "#2563eb", "#d97706", "#0f766e"


def plot_front(
    front: Front,
    all_trials: Sequence[Trial],
    path: str | os.PathLike[str],
    x: str | None = None,
    y: str | None = None,
    *,
    title: str | None = None,
    uniform: Sequence[Trial] = (),
) -> None:
    """Draw the front into an image file; the ending of ``path`` (.png, .svg, .pdf) says which kind.

    Where the front was confirmed, its line and its full marks are at the confirmed figures, and hollow marks
    show where the search saw them.

    Args:
        all_trials: the trials behind the front, drawn dimmed.
        x, y: metrics of the axes; by default an objective to minimise (a known cost first) across and the
            first other objective up.
        title: by default made of the metrics' names.
        uniform: the trials of uniform cuts, drawn as a line of their own.

    Raises:
        ValueError: no second metric to draw against, or no trial has one of the metrics.
        OSError: the file cannot be written.
    """
    # A figure of its own canvas: pyplot would keep global state and may look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across, up = _axes(front, x, y)
    # With another metric on an axis, or more than two objectives, the staircase is that of the picture.
    on_front = [t for t in front if across.name in t.scores and up.name in t.scores]
    numbers = {t.number for t in on_front}
    rest = [
        t
        for t in in_full(all_trials)
        if across.name in t.scores and up.name in t.scores and t.number not in numbers and t.number != 0
    ]
    if not on_front and not rest:
        raise ValueError(f"no trial has both {across.name!r} and {up.name!r}, so there is nothing to draw")

    figure = Figure(figsize=(8.0, 5.2), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    data = confirming_data(on_front) if all(up.name in t.confirmed for t in on_front) else None
    if rest:
        axes.scatter(
            [t.scores[across.name] for t in rest],
            [t.scores[up.name] for t in rest],
            s=16,
            color=GREY,
            alpha=0.7,
            linewidths=0,
            label=f"other trials ({len(rest)}{', not confirmed' if data else ''})",
            zorder=2,
        )
    _style(axes, across, up, front)
    _uniform_line(axes, front, uniform, across, up, data)
    if on_front:
        _front_line(axes, on_front, across, up, data)
    _marks(axes, front, on_front, across, up, data)
    failed = sum(t.failed for t in all_trials)
    trials = f"{len(all_trials)} trial{'s' * (len(all_trials) != 1)}"
    counts = f"{trials}, {len(front)} on the front" + (f", {failed} failed" if failed else "")
    rise = 22 if _base(front, across) else 0  # points, for the ratios along the top
    heading = title or f"{_name(up)} against {_name(across, start=False)}"
    axes.set_title(heading, loc="left", fontsize=13, fontweight="bold", color=INK, pad=26 + rise)
    above: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate(counts, (0, 1), xytext=(0, 9 + rise), fontsize=9, color=MUTED, **above)
    axes.legend(
        loc="best",
        fontsize=9,
        frameon=True,
        facecolor="white",
        edgecolor=FAINT,
        labelcolor=INK,
        framealpha=0.9,
    )
    figure.savefig(path)


def _axes(front: Front, x: str | None, y: str | None) -> tuple[Objective, Objective]:
    """The objectives (or other metrics) across and up."""
    by_name = {o.name: o for o in front.objectives}

    def named(text: str) -> Objective:
        asked = text.partition(":")[0]
        return by_name.get(asked) or Objective.parse(text)

    objectives = list(front.objectives)
    across, up = named(x) if x else None, named(y) if y else None
    if across is None:
        left = [o for o in objectives if o != up]
        left.sort(key=lambda o: (o.goal != "min", o.name == "loss"))  # sorted stably: costs before qualities
        others = [Objective(n) for n in USUAL if n not in by_name and any(n in t.scores for t in front)]
        pool = left if (len(left) > 1 or up is not None) else [*others, *left]
        across = pool[0] if pool else None
    if up is None:
        up = next((o for o in objectives if o != across), None)
    if across is None or up is None or across == up:
        raise ValueError("a picture needs two metrics; name another one for x or y")
    return across, up


def _height(trial: Trial, up: Objective, data: tuple[str, int] | None) -> float:
    """The metric as confirmed where the front is, else as the search saw it."""
    return float(trial.confirmed.get(up.name, trial.scores[up.name]) if data else trial.scores[up.name])


def _uniform_line(
    axes: Axes,
    front: Front,
    uniform: Sequence[Trial],
    across: Objective,
    up: Objective,
    data: tuple[str, int] | None,
) -> None:
    """The unchanged model and the uniform cuts, joined; nothing where one lacks a figure of the same kind."""
    line = [t for t in [*uniform, *([front.baseline] if front.baseline else [])] if across.name in t.scores]
    line = [t for t in line if (up.name in t.confirmed if data else up.name in t.scores)]
    if len(line) < 2:
        return
    line.sort(key=lambda t: t.scores[across.name])
    x = [t.scores[across.name] for t in line]
    y = [_height(t, up, data) for t in line]
    label = f"uniform cuts ({len(line) - (front.baseline in line)})"
    axes.plot(x, y, "s--", color=UNIFORM, markersize=4.5, linewidth=1.1, label=label, zorder=3.5)


def _front_line(
    axes: Axes,
    on_front: Sequence[Trial],
    across: Objective,
    up: Objective,
    data: tuple[str, int] | None,
) -> None:
    """The front's points, and the border of what they dominate as the search saw it."""
    seen = np.array([[t.scores[across.name], t.scores[up.name]] for t in on_front])
    points = np.array([[t.scores[across.name], _height(t, up, data)] for t in on_front])
    border = np.flatnonzero(nondominated(seen * [across.sign, up.sign]))
    border = border[np.argsort(across.sign * seen[border, 0], kind="stable")]
    corner = points[border]
    axes.step(corner[:, 0], corner[:, 1], where="post", color=FRONT, linewidth=1.6, alpha=0.55, zorder=3)
    label = f"front ({len(points)})"
    if data:
        label = f"front ({len(points)}), confirmed on {data[1]:,} samples"
        style: dict[str, Any] = {"facecolors": "none", "edgecolors": FRONT, "alpha": 0.45}
        axes.vlines(seen[:, 0], points[:, 1], seen[:, 1], color=FRONT, linewidth=0.7, alpha=0.35, zorder=2.5)
        axes.scatter(
            seen[:, 0], seen[:, 1], s=20, linewidths=0.8, label="as the search saw it", zorder=2.6, **style
        )
    axes.scatter(
        points[:, 0],
        points[:, 1],
        s=38,
        color=FRONT,
        edgecolors="white",
        linewidths=0.8,
        label=label,
        zorder=4,
    )


def _marks(
    axes: Axes,
    front: Front,
    on_front: Sequence[Trial],
    across: Objective,
    up: Objective,
    data: tuple[str, int] | None,
) -> None:
    """The knee, with its numbers, and the unchanged model."""
    base = front.baseline
    if len(front) > 2 and front.knee in on_front:
        knee = front.knee
        at = (knee.scores[across.name], _height(knee, up, data))
        text = ", ".join(_value(o, value) for o, value in zip((up, across), at[::-1], strict=True))
        if base and base.scores.get(across.name):
            text += f" ({ratio_text(at[0], base.scores[across.name])})"
        axes.scatter(
            *at,
            s=120,
            marker="D",
            color=KNEE,
            edgecolors="white",
            linewidths=1.0,
            zorder=5,
            label=f"knee: trial {knee.number}, {text}",
        )
    if base and across.name in base.scores and up.name in base.scores:
        axes.scatter(
            base.scores[across.name],
            _height(base, up, data),
            s=170,
            marker="*",
            color=INK,
            edgecolors="white",
            linewidths=0.8,
            zorder=5,
            label="unchanged model",
        )


def _style(axes: Axes, across: Objective, up: Objective, front: Front) -> None:
    """Quiet frame, units on the axes, and the ratio to the unchanged model along the top."""
    from matplotlib.ticker import FuncFormatter

    axes.set_axisbelow(True)
    axes.grid(color=FAINT, linewidth=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    axes.tick_params(colors=MUTED, labelsize=9, length=0, pad=6)
    axes.margins(0.06)
    axes.set_xlabel(_label(across), fontsize=10, color=INK)
    axes.set_ylabel(_label(up), fontsize=10, color=INK)
    for axis, objective in ((axes.xaxis, across), (axes.yaxis, up)):
        if objective.name in FRACTIONS:
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
        elif objective.name in COUNTS:
            axis.set_major_formatter(FuncFormatter(lambda value, _: si(value)))
    base = _base(front, across)
    if base:
        ratio: Any = (lambda value: value / base, lambda value: value * base)
        top: Any = axes.secondary_xaxis("top", functions=ratio)
        top.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        top.tick_params(colors=MUTED, labelsize=9, length=0, pad=4)
        top.spines["top"].set_visible(False)


def _base(front: Front, across: Objective) -> float:
    """The unchanged model's value along x where a ratio to it makes sense, else 0."""
    return (
        float(front.baseline.scores.get(across.name, 0.0)) if front.baseline and across.goal == "min" else 0.0
    )


def _name(objective: Objective, *, start: bool = True) -> str:
    """The metric's name in words, capitalised at the start of a label."""
    name = HEADINGS.get(objective.name, objective.name)
    return name[:1].upper() + name[1:] if start else name


def _value(objective: Objective, value: float) -> str:
    name = f" {_name(objective, start=False)}" if objective.name in COUNTS else ""
    return metric_text(objective.name, value, objective.unit) + name


def _label(objective: Objective) -> str:
    unit = "%" if objective.name in FRACTIONS else "" if objective.name in COUNTS else objective.unit
    better = "less is better" if objective.goal == "min" else "more is better"
    return f"{_name(objective)}{f' [{unit}]' if unit else ''}  ({better})"


# -- A front as a small picture of Braille characters, for a terminal -----------------------------------

COLUMNS, ROWS = 64, 14  # characters
# Bits of the dots of a Braille character, [row, column] (Unicode 6.0, block U+2800).
DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])


def braille(
    layers: Sequence[tuple[np.ndarray, str]],
    low: np.ndarray,
    high: np.ndarray,
    *,
    columns: int = COLUMNS,
    rows: int = ROWS,
) -> list[list[tuple[str, str]]]:
    """Points as rows of (character, style), the topmost first; 2 x 4 dots a character.

    Args:
        layers: float64 [n, 2] (x to the right, y upwards) and a style each; later ones cover earlier ones.
        low, high: float64 [2], corners; points outside are left out.
    """
    span = np.where(high > low, high - low, 1.0)
    bits = np.zeros((rows, columns), dtype=np.int64)
    styles = np.full((rows, columns), -1)
    for number, (points, _) in enumerate(layers):
        x, y = ((np.asarray(points, dtype=np.float64).reshape(-1, 2) - low) / span).T
        inside = (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)
        across = np.minimum((x[inside] * 2 * columns).astype(int), 2 * columns - 1)
        down = np.minimum(((1 - y[inside]) * 4 * rows).astype(int), 4 * rows - 1)
        np.bitwise_or.at(bits, (down // 4, across // 2), DOTS[down % 4, across % 2])
        styles[down // 4, across // 2] = number
    return [
        [
            (chr(0x2800 + bit), layers[style][1]) if style >= 0 else (" ", "")
            for bit, style in zip(*row, strict=True)
        ]
        for row in zip(bits, styles, strict=True)
    ]


def sketch(
    front: Front, trials: Iterable[Trial] = (), *, columns: int = COLUMNS, rows: int = ROWS
) -> list[list[tuple[str, str]]]:
    """The first two objectives of a front as lines of (text, style), with axes; empty without two of them.

    The second objective goes to the right, the first upwards; dominated trials are dim. The window holds the
    front and the unchanged model.

    Args:
        trials: all of the run.
    """
    if len(front.objectives) < 2 or not len(front):
        return []
    up, right = front.objectives[0], front.objectives[1]

    def at(some: Iterable[Trial]) -> np.ndarray:
        found = [
            (t.scores[right.name], t.scores[up.name])
            for t in some
            if right.name in t.scores and up.name in t.scores
        ]
        return np.array(found, dtype=np.float64).reshape(-1, 2)

    best = at(front)
    window = np.concatenate([best, at([front.baseline] if front.baseline else [])])
    least, most = window.min(axis=0), window.max(axis=0)
    low, high = least - 0.03 * (most - least), most + 0.03 * (most - least)
    layers = [(at(in_full(trials)), "dim"), (best, "bold cyan"), (at([front.knee]), "bold green")]
    if front.baseline is not None:
        layers.append((at([front.baseline]), "bold yellow"))
    picture = braille(layers, low, high, columns=columns, rows=rows)
    top, bottom = (metric_text(up.name, float(v[1]), up.unit) for v in (most, least))
    margin = max(len(top), len(bottom), len(title := HEADINGS.get(up.name, up.name)))
    labels = {0: top, rows // 2: title, rows - 1: bottom}
    lines = [
        [(f"{labels.get(i, ''):>{margin}} ", "dim"), ("│", "dim"), *line] for i, line in enumerate(picture)
    ]
    lines.append([(" " * (margin + 1) + "└" + "─" * columns, "dim")])
    left, end = (metric_text(right.name, float(v[0]), right.unit) for v in (least, most))
    middle = HEADINGS.get(right.name, right.name)
    space = columns - len(left) - len(end)
    lines.append([(" " * (margin + 2) + left + middle.center(space)[:space] + end, "dim")])
    return lines
