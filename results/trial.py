"""One scored (or failed) candidate, and how a ledger keeps it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..spaces import Candidate
from .fidelity import FULL, Proposal
from .objective import known_metric


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one candidate. Failure is a value: ``error`` holds the traceback.

    ``scores`` is empty exactly when the trial failed.
    """

    number: int  # 0 is the unchanged model; order of proposal
    candidate: Candidate
    scores: Mapping[str, float] = field(default_factory=dict)  # metric name -> value
    error: str | None = None  # traceback text of a failure
    seconds: float = 0.0  # wall time of the evaluation
    worker: str = ""  # who evaluated it
    detail: Mapping[str, Any] = field(default_factory=dict)  # kept beside the scores, plain JSON
    fidelity: str = FULL.name  # how thoroughly it was judged: the name of a rung of the run

    @property
    def proposal(self) -> Proposal:
        """The candidate with its fidelity."""
        return Proposal(self.candidate, self.fidelity)

    @property
    def failed(self) -> bool:
        return self.error is not None

    @property
    def confirmation(self) -> Mapping[str, Any]:
        """How it was scored on data that chose nothing (see :mod:`.confirmation`); empty where it was not."""
        record = self.detail.get("confirmed")
        return record if isinstance(record, Mapping) else {}

    @property
    def confirmed(self) -> Mapping[str, float]:
        """Scores on data that no candidate was selected on; empty where there are none."""
        scores = self.confirmation.get("scores")
        if not isinstance(scores, Mapping):
            return {}
        return {m: float(v) for m, v in scores.items() if is_score(v)}

    @property
    def reason(self) -> str:
        """Last line of the traceback; empty for a success."""
        lines = (self.error or "").strip().splitlines()
        return lines[-1] if lines else ""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Scores of a trial that were taken after it was recorded (latency of the front, for example)."""

    number: int  # of the trial
    scores: Mapping[str, float]  # metric name -> value
    detail: Mapping[str, Any] = field(default_factory=dict)  # quartiles, device, ...: plain JSON


def in_full(trials: Iterable[Trial]) -> list[Trial]:
    """The trials that results are read from: those of the fidelity of the first by number.

    In a run that is trial 0, the unchanged model, which is always judged as thoroughly as the run judges.
    """
    trials = list(trials)
    top = min(trials, key=lambda t: t.number).fidelity if trials else FULL.name
    return [t for t in trials if t.fidelity == top]


def comparable(trial: Trial, baseline: Trial | None) -> Mapping[str, float]:
    """The unchanged model's scores to read a trial's beside: on a lower rung the costs alone."""
    if baseline is None:
        return {}
    if trial.fidelity == baseline.fidelity:
        return baseline.scores
    costs = (name for name in baseline.scores if known_metric(name)[0] == "min" and name != "loss")
    return {name: baseline.scores[name] for name in costs}


def is_score(value: object) -> bool:
    """Is it a finite number that a float holds?"""
    largest = sys.float_info.max  # JSON knows integers beyond it, which are no floats
    return isinstance(value, (int, float)) and -largest <= value <= largest


def scores_text(number: int, scores: Mapping[str, float]) -> str:
    """Scores of a trial as JSON.

    Raises:
        ValueError: there are none, or one is not finite.
    """
    if not scores:
        raise ValueError(f"trial {number} has no scores; a trial that failed needs an error text instead")
    bad = {name: value for name, value in scores.items() if not math.isfinite(value)}
    if bad:
        raise ValueError(f"trial {number} has scores that are not finite: {bad}; record it as failed instead")
    return json.dumps({name: float(value) for name, value in scores.items()})


def outcome_row(trial: Trial) -> tuple[int, str, str | None, float, str]:
    """The row of a trial in the table ``outcomes``.

    Raises:
        ValueError: neither scores nor error, or both; a number that is not finite.
    """
    number, error = int(trial.number), trial.error
    if not math.isfinite(trial.seconds):
        raise ValueError(f"trial {number} took {trial.seconds} seconds; give a finite number")
    if error is None:
        return number, scores_text(number, trial.scores), None, float(trial.seconds), trial.worker
    if trial.scores:
        raise ValueError(f"trial {number} has both scores and an error; a failed trial has no scores")
    error = error.encode("utf-8", "backslashreplace").decode()  # tracebacks may hold lone surrogates
    return number, "{}", error, float(trial.seconds), trial.worker
