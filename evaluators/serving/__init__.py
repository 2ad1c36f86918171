"""Stages of a network run as processes that talk to each other."""

from .deployment import Deployment
from .errors import InputError, ServeError, StageError
from .record import Boundary, Record, StageRecord

__all__ = ["Boundary", "Deployment", "InputError", "Record", "ServeError", "StageError", "StageRecord"]
