"""Outcomes: objectives, trials, the ledger that keeps them, the front that people look at, export."""

from .front import Front
from .ledger import Ledger, LedgerError, Measurement
from .objective import METRICS, Limit, Objective, total_violation
from .tracker import FrontTracker
from .trial import Trial

__all__ = [
    "METRICS",
    "Front",
    "FrontTracker",
    "Ledger",
    "LedgerError",
    "Limit",
    "Measurement",
    "Objective",
    "Trial",
    "total_violation",
]
