"""What a report reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from ..front import Front
from ..objective import Limit, Objective
from ..settings import RunSettings
from ..trial import Trial


class Reported(Protocol):
    """What a report reads from a run; :class:`netcarve.Run` has it."""

    path: Path
    settings: RunSettings
    info: dict[str, Any]
    trials: list[Trial]

    @property
    def objectives(self) -> tuple[Objective, ...]: ...
    @property
    def limits(self) -> tuple[Limit, ...]: ...
    @property
    def front(self) -> Front: ...
    @property
    def uniform(self) -> list[Trial]: ...
    @property
    def unconfirmed(self) -> str: ...
    @property
    def certificate(self) -> Any: ...
