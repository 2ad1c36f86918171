"""Mirrors: runs shown elsewhere (TensorBoard, MLflow, Optuna's storage). The ledger stays the record."""

from .mirroring import MIRRORS, Mirror, Mirroring, mirror

__all__ = ["MIRRORS", "Mirror", "Mirroring", "mirror"]
