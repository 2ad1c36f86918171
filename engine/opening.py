"""Runs opened again: ``netcarve.load`` of whatever netcarve has written, and the list of runs in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..results.ledger import LedgerError
from .run import Run
from .settings import LEDGER, RunError

if TYPE_CHECKING:
    from ..evaluators.task import Task
    from ..spaces import Space


def load(
    path: str | Path, task: Task | str | None = None, *, space: Space | None = None, format: str | None = None
) -> Any:
    """A :class:`Run` from its folder or ledger, a module (``torch.nn.Module``) from the folder of an export.

    A module is made of ``pt2``, which needs torch alone, or of ``state``, which needs the task that made the
    user's class. It is in eval mode and can be trained; no file is unpickled.
    See :func:`netcarve.export.load_export`.

    Args:
        task: of a run: the one it was made with, where it cannot be found again by name, or another user made
            it. Of an export: what ``state`` is rebuilt from. Both also as text (``"my_task.py:task"``).
        space: of a run, likewise.
        format: of an export: ``"pt2"`` or ``"state"``; by default ``state`` where a task is given, else
            ``pt2`` where it is there.

    Raises:
        RunError: neither a run nor an export.
        ValueError: an export that is damaged, or holds nothing that makes a module.
        LedgerError: a run that cannot be read.
    """
    folder = Path(path).expanduser()
    if (folder / "receipt.json").is_file() and not (folder / LEDGER).exists():
        from ..export import load_export

        return load_export(folder, task=task, format=format)
    if folder.is_dir() and not (folder / LEDGER).exists():
        raise RunError(
            f"{folder} is neither a run (there is no {LEDGER} in it) nor an export (no receipt.json); give a "
            "folder that netcarve sweep or netcarve export has made"
        )
    from .run import Run

    return Run(folder, task=task, space=space)


# -- The runs in a folder, one line each ----------------------------------------------------------------


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
