"""Runs shown elsewhere as they go: TensorBoard, MLflow, Optuna's storage. The ledger stays the record."""

from .base import Mirror
from .follow import Mirroring
from .named import MIRRORS, mirror

__all__ = ["MIRRORS", "Mirror", "Mirroring", "mirror"]
