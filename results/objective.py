"""Objectives to trade off, and limits to keep."""

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
    "bops": ("min", ""),
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


FRACTIONS = ("accuracy", "robust_accuracy")  # between 0 and 1, shown as percent
CHANGES = ("latency_change", "throughput_change")  # shares of the unchanged decomposition's, shown as percent

_BYTES = {
    "B": 1.0,
    "kB": 1e3,
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "KiB": 2.0**10,
    "MiB": 2.0**20,
    "GiB": 2.0**30,
}
# unit of a metric -> units that a limit may be given in -> how many of the metric's own one of them is
UNITS: dict[str, dict[str, float]] = {
    "ms": {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3},
    "MB": {unit: size / 1e6 for unit, size in _BYTES.items()},
    "kB": {unit: size / 1e3 for unit, size in _BYTES.items()},
    "1/s": {"/s": 1.0, "k/s": 1e3, "fps": 1.0},
    "mJ": {"uJ": 1e-3, "µJ": 1e-3, "mJ": 1.0, "J": 1e3},
    "": {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},  # counts
}
_COUNTED = ("MAC", "FLOP")


def known_metric(name: str) -> tuple[str, str]:
    """Goal and unit of a metric that netcarve itself reports, ``memory_mb:edge`` included; else empty."""
    return METRICS.get(name.partition(":")[0], ("", ""))


def full_name(name: str) -> str:
    """``latency_ms`` of ``latency``, ``memory_mb:edge`` of ``memory:edge``; other names as they are."""
    metric, colon, device = name.strip().partition(":")
    return f"{ALIASES.get(metric, metric)}{colon}{device}"


def units_of(metric: str) -> dict[str, float]:
    """Units that a limit on a metric may be given in, with their sizes in its own; ``%`` and ``x`` besides.

    Empty for a metric of the user's, whose unit nobody knows.
    """
    goal, unit = known_metric(metric)
    if not goal or metric in (*FRACTIONS, *CHANGES, "loss"):
        return {}
    return UNITS["" if unit in _COUNTED else unit]


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
        name = full_name(self.name)
        known = known_metric(name)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "goal", self.goal or known[0])
        object.__setattr__(self, "unit", self.unit or known[1])
        if not self.goal:
            raise ValueError(
                f"unknown metric {name!r}: known are {', '.join(METRICS)}; for one of your own say which "
                f"way is better, Task(metric=..., goal='max') or, of another evaluator, '{name}:max'"
            )
        if self.goal not in ("min", "max"):
            raise ValueError(f"the goal of {name!r} must be 'min' or 'max', got {self.goal!r}")

    @classmethod
    def parse(cls, text: str, goals: Mapping[str, str] = {}) -> Objective:
        """``"macs"``, ``"my_metric:max"`` or, of one device, ``"memory_mb:edge"``.

        Args:
            goals: ``"min"`` or ``"max"`` of metrics that netcarve does not know, by name.
        """
        name, goal = cls._parts(text)
        return cls(name, goal or goals.get(name, ""))

    @classmethod
    def name_in(cls, text: str) -> str:
        """The metric's name in a text for :meth:`parse`, whether its goal is known or not."""
        name = cls._parts(text)[0]
        return full_name(name)

    @staticmethod
    def _parts(text: str) -> tuple[str, str]:
        name, _, goal = map(str.strip, text.rpartition(":"))
        of_device = full_name(name) in METRICS and goal not in ("min", "max")
        return (text.strip(), "") if not name or of_device else (name, goal)

    @property
    def sign(self) -> float:
        """Multiplier that turns the metric into one to minimise."""
        return 1.0 if self.goal == "min" else -1.0


_LIMIT = re.compile(r"\s*([\w:.-]+?)\s*(<=|>=)\s*(-?[0-9.]+(?:[eE][+-]?\d+)?)\s*([^\s\d.][^\s]*)?\s*")


@dataclass(frozen=True, slots=True)
class Limit:
    """A bound that a wanted candidate keeps: ``Limit("macs<=0.5x")``.

    A number without a unit is in the metric's own. ``x`` makes it relative to the unchanged model, and so
    does ``%`` for all but accuracies and changes, which are fractions: ``macs<=50%`` is ``macs<=0.5x``, and
    ``accuracy>=95%`` is ``accuracy>=0.95``. Other units are those of :data:`UNITS`: ``latency<=5ms``,
    ``params<=1M``, ``size<=2MiB``.

    Raises:
        ValueError: not of the form ``metric<=number`` or ``metric>=number``, or a unit that the metric
            does not have.
    """

    text: str

    def __post_init__(self) -> None:
        self._parts()

    def _parts(self) -> tuple[str, str, float, bool]:
        """Metric, operator, number in the metric's own unit, and is it relative to the unchanged model?"""
        match = _LIMIT.fullmatch(self.text)
        try:
            if match is None:
                raise ValueError
            name, op, number, unit = match.groups()
            value = float(number)
        except ValueError:
            raise ValueError(
                f"cannot read the limit {self.text!r}; write it like macs<=0.5x (half of the unchanged "
                "model), latency<=5ms or accuracy>=95%"
            ) from None
        metric, unit = full_name(name), unit or ""
        known = units_of(metric)
        if unit in ("", "x") or unit in known:
            return metric, op, value * known.get(unit, 1.0), unit == "x"
        if unit == "%" and (known or metric in (*FRACTIONS, *CHANGES)):
            return metric, op, value / 100, bool(known)
        percent = [] if metric == "loss" or not known_metric(metric)[0] else ["%"]
        raise ValueError(
            f"the limit {self.text!r} has the unit {unit!r}; a limit on {metric} may be in "
            f"{', '.join([*known, *percent, 'x'])} (x: of the unchanged model), or a plain number"
        )

    def check(self) -> None:
        """See that the number can be meant.

        Raises:
            ValueError: an accuracy above 1, or a bound that no value of the metric can keep.
        """
        metric, op, number, relative = self._parts()
        if metric in FRACTIONS and not relative and number > 1:
            given = self.text.strip()
            cure = (
                "no accuracy is above 100%"
                if given.endswith("%")
                else f"accuracies are fractions; write {given}%, or {number / 100:g}"
            )
            raise ValueError(f"the limit {self.text!r} asks for more than can be: {cure}")
        if op == "<=" and number < 0 and metric in METRICS and metric not in CHANGES:
            raise ValueError(f"the limit {self.text!r} cannot be kept: {metric} is never below 0")

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
