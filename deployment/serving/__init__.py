"""Stages of a network run as processes that talk to each other."""

from .deployment import Deployment
from .stream import Boundary, Record, StageRecord
from .transport import InputError, ServeError, StageError

__all__ = ["Boundary", "Deployment", "InputError", "Record", "ServeError", "StageError", "StageRecord"]
