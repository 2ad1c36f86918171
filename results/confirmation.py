"""Confirmation: a front's figures on data that chose nothing, with intervals and what they can tell apart.

A search picks the candidates that its validation samples flatter. So the front is scored once more at the end
of a sweep, on other data (see ``engine.measured_front``); each trial keeps that in ``detail["confirmed"]``:
``{"data": what it was, "samples": n, "scores": {metric: value}, "right": [count, hexadecimal digits]}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .front import Front
from .objective import Objective
from .points import points_of, scaled_hypervolume
from .significance import sign_test, wilson
from .trial import Trial

LEVEL = 0.05  # of the paired test that tells two networks apart


@dataclass(frozen=True)
class Value:
    """A metric of one trial, and where it comes from."""

    value: float
    low: float | None  # 95 % interval (Wilson); None where samples are not right or wrong
    high: float | None
    samples: int | None  # None: not recorded
    confirmed: bool  # on data that no candidate was selected on; else on the search's own

    @property
    def margin(self) -> float | None:
        """Half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def confirming_data(trials: Sequence[Trial]) -> tuple[str, int] | None:
    """What confirmed these trials, and how many samples it holds; None where nothing did."""
    for trial in trials:
        record = trial.confirmation
        if trial.confirmed and type(record.get("samples")) is int:
            return str(record.get("data", ""))[:80], record["samples"]
    return None


def value_of(trial: Trial, metric: str) -> Value | None:
    """The metric as confirmed, else as the search saw it; None where the trial lacks it."""
    own = trial.confirmed
    value = own.get(metric, trial.scores.get(metric))
    if value is None:
        return None
    bits = _right(trial.confirmation if metric in own else trial.detail) if metric == "accuracy" else None
    if bits is None:
        samples = trial.confirmation.get("samples") if metric in own else None
        return Value(value, None, None, samples if type(samples) is int else None, metric in own)
    low, high = wilson(int(bits.sum()), bits.size)
    return Value(value, low, high, bits.size, metric in own)


def samples_right(trials: Sequence[Trial]) -> np.ndarray | None:
    """Which samples each trial got right, float64 [trials, samples] of 0 and 1: those that confirm where all
    trials are confirmed, else the search's own; None where they are not kept, or not the same for all."""
    found = [_right(t.confirmation) for t in trials]
    if any(bits is None for bits in found):
        found = [_right(t.detail) for t in trials]
    rows = [bits for bits in found if bits is not None]
    if not rows or len(rows) < len(trials) or len({row.size for row in rows}) != 1:
        return None
    return np.array(rows, dtype=np.float64)


def measured_objective(front: Front) -> Objective | None:
    """The objective that data decide: the one that was confirmed, else accuracy; None where there is none."""
    for objective in front.objectives:
        if any(objective.name in t.confirmed for t in front):
            return objective
    return next((o for o in front.objectives if o.name == "accuracy"), None)


def indistinct(front: Front, level: float = LEVEL) -> dict[int, list[int]]:
    """By trial of the front, the others whose accuracy is not told apart from its own: McNemar's exact test
    on the samples where they disagree, confirmed ones where there are.

    In the front's order; no entry where samples are not kept.
    """
    right = samples_right(list(front))
    if right is None or len(front) < 2:
        return {}
    numbers = [t.number for t in front]
    gained = np.rint(right @ (1.0 - right).T).astype(np.int64)  # [trials, trials]: the row alone is right
    p = sign_test(gained, gained.T)
    return {
        number: [numbers[j] for j in np.flatnonzero(p[i] >= level) if j != i]
        for i, number in enumerate(numbers)
    }


def chosen_volume(
    front: Front, value: Callable[[Trial], float], reference: Mapping[str, float] | None = None
) -> float | None:
    """Hypervolume of the front as the search's own figures choose from it, with other values of its measured
    objective.

    For every budget of costs the trial that the search holds for the best counts, with ``value`` of it. This
    equals :meth:`Front.hypervolume` for the search's own values. For confirmed ones it is their mean over
    budgets: unlike a hypervolume of confirmed points it picks nobody by the data that confirm, so that it
    promises no more than it keeps.

    Args:
        reference: as for :meth:`Front.hypervolume`.

    Returns:
        None where no objective is measured, or others than it are not known of a trial.
    """
    measured = measured_objective(front)
    if measured is None or not len(front):
        return None
    costs = [o for o in front.objectives if o != measured]
    ranked = sorted(front, key=lambda t: (measured.sign * t.scores[measured.name], t.number))
    reference = front.reference if reference is None else reference
    total, before = 0.0, 0.0
    for i, trial in enumerate(ranked):
        owned = 1.0
        if costs:
            owned = scaled_hypervolume(points_of(ranked[: i + 1], costs), costs, reference)
        worst = reference[measured.name]
        gain = measured.sign * (worst - value(trial)) / (abs(worst) or 1.0)
        total += (owned - before) * max(0.0, gain)
        before = owned
    return total


def optimism(front: Front, reference: Mapping[str, float] | None = None) -> tuple[float, float] | None:
    """Hypervolume of the front as the search sees it, and confirmed; None where a trial is not confirmed."""
    measured = measured_objective(front)
    if measured is None or not all(measured.name in t.confirmed for t in front):
        return None
    value = chosen_volume(front, lambda t: t.confirmed[measured.name], reference)
    return None if value is None else (front.hypervolume(reference), value)


def notes(front: Front, unconfirmed: str = "") -> list[str]:
    """What a reader of the front's figures has to know, a sentence each.

    Args:
        unconfirmed: why nothing was confirmed, where that is known.
    """
    found = []
    measured = measured_objective(front)
    if measured is None or not len(front):
        return []
    name = measured.name
    if (data := confirming_data(list(front))) is not None:
        text = f"Confirmed on {data[1]:,} samples of {data[0]}, which chose nothing"
        if (volumes := optimism(front)) is not None:
            text += (
                f": hypervolume {volumes[1]:.4f}, where the search saw {volumes[0]:.4f} "
                f"(optimism {volumes[0] - volumes[1]:+.4f})"
            )
        found.append(text + ".")
    elif unconfirmed:
        found.append(f"Not confirmed: {unconfirmed}.")
    values = [value_of(t, name) for t in front]
    if any(v is not None and v.margin is not None for v in values):
        where = "" if data else " on the data that the search chose by"
        found.append(f"± is a 95 % interval{where}; = names trials that these samples do not tell apart.")
    elif data or unconfirmed:
        found.append(f"{name} has no interval here: samples are not right or wrong one by one.")
    return found


def _right(record: Mapping[str, Any]) -> np.ndarray | None:
    """``record["right"]`` (``[count, hexadecimal digits]``) as bool [count]; None where it is not there."""
    try:
        count, digits = record["right"]
        number = int(digits, 16)
        if type(count) is not int or not 0 < count < 10**8 or number.bit_length() > count or number < 0:
            return None
    except (KeyError, TypeError, ValueError):
        return None
    packed = np.frombuffer(number.to_bytes(-(-count // 8), "big"), dtype=np.uint8)
    return np.unpackbits(packed)[-count:].astype(bool)
