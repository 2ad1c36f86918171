"""Sections of an explanation, with pictures that a page can draw without knowing more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

KINDS = ("bars", "lines", "heat", "intervals", "images", "table", "text")


class Skipped(ValueError):  # noqa: N818, it is a result
    """An analysis that does not apply here; the message says why."""


@dataclass(frozen=True)
class SectionFigure:
    """One picture.

    ``content`` holds plain JSON values, by kind:

    - ``bars``, ``lines``: ``labels`` [n], ``series`` ``[{"name", "values" [n]}]``, ``percent``, ``axis``
    - ``intervals``: ``labels`` [n], ``low``, ``middle``, ``high`` [n], ``percent``, ``axis``
    - ``heat``: ``across`` [m], ``down`` [n], ``values`` [n][m], ``signed`` (bool), ``axis``
    - ``images``: ``rows`` ``[{"name", "pictures": [{"name", "pixels" [h][w], "signed"}]}]``
    - ``table``: ``head`` [m], ``rows`` [n][m] of text
    - ``text``: ``lines`` of text
    """

    kind: str  # of KINDS
    title: str
    read: str  # one sentence on how to read it
    content: dict[str, Any]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no picture of kind {self.kind!r}; known are {', '.join(KINDS)}")


@dataclass(frozen=True)
class Section:
    """One analysis: what came of it in a sentence, its pictures, and its figures for machines."""

    name: str
    title: str
    summary: str = ""  # one sentence for the terminal
    basis: str = ""  # what it was computed on: samples, trials, method
    figures: tuple[SectionFigure, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)  # plain JSON values
    skipped: str = ""  # why there is nothing; then only name and title are set
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; every number is finite or None."""
        return plain_json(asdict(self))


def plain_json(value: object) -> Any:
    """Arrays as lists, NumPy's numbers as Python's, None for what is not finite."""
    if isinstance(value, dict):
        return {str(k): plain_json(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain_json(value.tolist())
    if isinstance(value, list | tuple):
        return [plain_json(v) for v in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value if value is None else str(value)


def series(**columns: Sequence[float | None] | np.ndarray) -> list[dict[str, Any]]:
    """Named columns as a figure's ``series``."""
    return [{"name": name, "values": list(values)} for name, values in columns.items()]


def clipped(array: np.ndarray, digits: int = 4) -> list[Any]:
    """Numbers with so many significant digits, as nested lists: a page needs no more, and is smaller."""
    rounded = np.array([float(f"{v:.{digits}g}") for v in np.ravel(array)])
    return rounded.reshape(np.shape(array)).tolist()


def pairs_figure(
    title: str, read: str, names: Sequence[str], interactions: np.ndarray | None, *, percent: bool
) -> list[SectionFigure]:
    """The picture of interaction indices [n, n] of pairs; none where there are none, or all are 0."""
    if interactions is None or not np.any(interactions):
        return []
    content = {
        "across": list(names),
        "down": list(names),
        "values": clipped(interactions),
        "signed": True,
        "percent": percent,
        "axis": "interaction index",
    }
    return [SectionFigure("heat", title, read, content)]
