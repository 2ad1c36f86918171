"""A front as a small picture of Braille characters, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .front import Front
from .table import HEADINGS, metric_text
from .trial import Trial, in_full

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
