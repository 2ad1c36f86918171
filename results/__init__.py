"""Outcomes: objectives, trials, the ledger that keeps them, the front that people look at, export."""

from .fidelity import Fidelity, Proposal
from .front import Front, FrontTracker
from .ledger import Ledger, LedgerError
from .objective import METRICS, Limit, Objective, total_violation
from .trial import Measurement, Trial, in_full

__all__ = [
    "METRICS",
    "Fidelity",
    "Front",
    "FrontTracker",
    "Ledger",
    "LedgerError",
    "Limit",
    "Measurement",
    "Objective",
    "Proposal",
    "Trial",
    "in_full",
    "total_violation",
]
