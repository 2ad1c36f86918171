"""The runs in a folder, one line each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..results.ledger import LedgerError
from .run import Run
from .settings import LEDGER, RunError


@dataclass(frozen=True, slots=True)
class Summary:
    """One run at a glance; ``error`` says why it cannot be read, and all else is empty then."""

    path: str
    task: str = ""
    searcher: str = ""
    seed: int | None = None
    trials: int = 0
    failed: int = 0
    front: int = 0  # trials on it
    hypervolume: float | None = None  # comparable between runs of one task and the same objectives
    objectives: tuple[str, ...] = ()
    status: str = ""  # "finished", "interrupted", "running", "killed"
    seconds: float = 0.0  # spent, all sessions together
    error: str = ""


def runs_in(folder: str | Path) -> list[Summary]:
    """Every run in ``folder`` and below, by name; none is left out because it cannot be read.

    Raises:
        RunError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"there is no folder {folder}; runs are made in `runs` of the working directory")
    return [_summary(path) for path in sorted(_runs(folder), key=_natural)]


def _runs(folder: Path) -> Iterator[Path]:
    for ledger in folder.rglob(LEDGER):
        yield ledger.parent


def _natural(path: Path) -> tuple[tuple[int, str], ...]:
    """``run-9`` before ``run-10``."""
    parts = str(path).replace("-", " - ").split()
    return tuple((int(p), "") if p.isdigit() else (-1, p) for p in parts)


def _summary(path: Path) -> Summary:
    try:
        run = Run(path)
        front = run.front
        return Summary(
            str(path),
            task=run.settings.task or "",
            searcher=run.settings.searcher,
            seed=run.settings.seed,
            trials=len(run),
            failed=sum(t.failed for t in run.trials),
            front=len(front),
            hypervolume=front.hypervolume() if len(front) else None,
            objectives=tuple(o.name for o in run.objectives),
            status=run.info.get("status", ""),
            seconds=run.info.get("seconds", 0.0),
        )
    except (LedgerError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        text = f"its settings lack {error}" if isinstance(error, KeyError) else str(error)
        return Summary(str(path), error=text)
