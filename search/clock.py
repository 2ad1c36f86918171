"""How many outcomes a run had at which second of its own time."""

from __future__ import annotations

from collections.abc import Sequence

POINTS = 400  # kept at most; then every other one goes


class Clock:
    """Points ``[outcomes, seconds]``, both rising.

    Args:
        points: of the sessions before.
    """

    def __init__(self, points: Sequence[Sequence[float]] = ()) -> None:
        self.points = [[int(count), float(seconds)] for count, seconds in points]
        self._every = 1

    def add(self, count: int, seconds: float) -> None:
        """So many outcomes are known after so many seconds; less than the last point is left out."""
        if self.points and count - self.points[-1][0] < self._every:
            return
        self.points.append([count, round(max(seconds, self.points[-1][1] if self.points else 0.0), 3)])
        if len(self.points) > POINTS:
            del self.points[1:-1:2]
            self._every *= 2
