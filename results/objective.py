"""What is wanted of a candidate: objectives to trade off, limits to keep."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# name -> (goal, unit). One place for every metric that netcarve itself reports.
METRICS: dict[str, tuple[str, str]] = {
    "accuracy": ("max", ""),
    "loss": ("min", "nats"),
    "macs": ("min", "MAC"),
    "flops": ("min", "FLOP"),
    "branch_macs": ("min", "MAC"),
    "params": ("min", ""),
    "nonzeros": ("min", ""),
    "size_mb": ("min", "MB"),
    "activation_mb": ("min", "MB"),
    "memory_mb": ("min", "MB"),
    "traffic_kb": ("min", "kB"),
    "stages": ("min", ""),
    "latency_ms": ("min", "ms"),
    "latency_change": ("min", ""),
    "throughput_per_s": ("max", "1/s"),
    "throughput_change": ("min", ""),
    "robust_accuracy": ("max", ""),
    "energy_mj": ("min", "mJ"),
}
ALIASES = {
    "latency": "latency_ms",
    "memory": "memory_mb",
    "size": "size_mb",
    "traffic": "traffic_kb",
    "throughput": "throughput_per_s",
    "energy": "energy_mj",
}


def known_metric(name: str) -> tuple[str, str]:
    """Goal and unit of a metric that netcarve itself reports, ``memory_mb:edge`` included; else empty."""
    return METRICS.get(name.partition(":")[0], ("", ""))


@dataclass(frozen=True, slots=True)
class Objective:
    """A metric to improve.

    Args:
        name: metric name; the short names in ``ALIASES`` are accepted.
        goal: ``"min"`` or ``"max"``; filled in for known metrics.
        unit: for tables and plots.

    Raises:
        ValueError: an unknown metric without a goal, or a goal other than min and max.
    """

    name: str
    goal: str = ""
    unit: str = ""

    def __post_init__(self) -> None:
        name = ALIASES.get(self.name, self.name)
        known = known_metric(name)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "goal", self.goal or known[0])
        object.__setattr__(self, "unit", self.unit or known[1])
        if not self.goal:
            raise ValueError(
                f"unknown metric {name!r}: known are {', '.join(METRICS)}; for one of your own say which "
                f"way is better, Objective({name!r}, goal='max') or '{name}:max' on the command line"
            )
        if self.goal not in ("min", "max"):
            raise ValueError(f"the goal of {name!r} must be 'min' or 'max', got {self.goal!r}")

    @classmethod
    def parse(cls, text: str) -> Objective:
        """``"macs"``, ``"my_metric:max"`` or, of one device, ``"memory_mb:edge"``."""
        name, _, goal = text.rpartition(":")
        of_device = name.strip() in METRICS and goal.strip() not in ("min", "max")
        if not name or of_device:
            return cls(text.strip())
        return cls(name.strip(), goal.strip())

    @property
    def sign(self) -> float:
        """Multiplier that turns the metric into one to minimise."""
        return 1.0 if self.goal == "min" else -1.0


_LIMIT = re.compile(r"\s*([\w:.-]+)\s*(<=|>=)\s*(-?[0-9.]+(?:[eE][+-]?\d+)?)\s*(x?)\s*")


@dataclass(frozen=True, slots=True)
class Limit:
    """A bound that a wanted candidate keeps: ``Limit("macs<=0.5x")``.

    ``x`` makes the number relative to the unchanged model.

    Raises:
        ValueError: not of the form ``metric<=number`` or ``metric>=number`` with an optional ``x``.
    """

    text: str

    def __post_init__(self) -> None:
        self._parts()

    def _parts(self) -> tuple[str, str, float, bool]:
        match = _LIMIT.fullmatch(self.text)
        try:
            if match is None:
                raise ValueError
            name, op, number, relative = match.groups()
            return ALIASES.get(name, name), op, float(number), bool(relative)
        except ValueError:
            raise ValueError(
                f"cannot read the limit {self.text!r}; write it like macs<=0.5x (half of the unchanged "
                "model) or accuracy>=0.95"
            ) from None

    @property
    def metric(self) -> str:
        return self._parts()[0]

    @property
    def relative(self) -> bool:
        return self._parts()[3]

    def bound(self, baseline: Mapping[str, float]) -> float:
        """The bound as an absolute number, given the unchanged model's scores.

        Raises:
            ValueError: relative to a metric that the baseline lacks.
        """
        metric, _, number, relative = self._parts()
        if not relative:
            return number
        if metric not in baseline:
            raise ValueError(
                f"the limit {self.text!r} is relative to the unchanged model, whose {metric!r} is not "
                f"known; known are {sorted(baseline)}"
            )
        return number * baseline[metric]

    def violation(self, scores: Mapping[str, float], baseline: Mapping[str, float]) -> float:
        """How far ``scores`` break the limit, relative to the bound; 0 when kept.

        A metric that ``scores`` lacks cannot break the limit.
        """
        metric, op, _, _ = self._parts()
        if metric not in scores:
            return 0.0
        bound = self.bound(baseline)
        excess = scores[metric] - bound if op == "<=" else bound - scores[metric]
        return max(0.0, excess / max(abs(bound), 1e-12))


def total_violation(
    limits: Iterable[Limit], scores: Mapping[str, float], baseline: Mapping[str, float]
) -> float:
    """Sum of the relative violations; 0 means that every limit is kept."""
    return sum(limit.violation(scores, baseline) for limit in limits)
