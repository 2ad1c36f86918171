"""What a mirror of a run is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from ...results.settings import RunSettings
from ...results.trial import Trial


class Mirror(ABC):
    """Copies trials to another tool's storage, one by one, in number order.

    Args:
        where: in the tool's own words (a folder, a URI); "" for a place that the tool or the run suggests.

    Attributes:
        needs: module that must be installed.
    """

    needs: ClassVar[str] = ""

    def __init__(self, where: str = "") -> None:
        self.where = where

    @abstractmethod
    def open(self, folder: Path, settings: RunSettings) -> set[int]:
        """Begin, or go on with a run that was resumed.

        Args:
            folder: of the run.
            settings: of the run.

        Returns:
            Numbers of the trials that are there already.
        """

    @abstractmethod
    def write(self, trial: Trial, *, front: int, volume: float) -> None:
        """Copy one trial.

        Args:
            front: trials on the front, this one counted.
            volume: hypervolume of that front.
        """

    @abstractmethod
    def close(self, *, finished: bool) -> None:
        """No more trials in this session; ``finished``: the run has come to its end."""
