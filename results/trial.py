"""One scored (or failed) candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..spaces import Candidate


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

    @property
    def failed(self) -> bool:
        return self.error is not None

    @property
    def reason(self) -> str:
        """Last line of the traceback; empty for a success."""
        lines = (self.error or "").strip().splitlines()
        return lines[-1] if lines else ""
