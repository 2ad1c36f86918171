"""``netcarve.load``: whatever netcarve has written, opened again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
