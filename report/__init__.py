"""The report: one or several runs as one HTML file that needs nothing else.

``document`` gathers what the page shows as plain JSON values; ``page`` puts it into the templates.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .document import Reported, report_document
from .page import EXPLANATION, render

__all__ = ["Reported", "check_output", "report_document", "write_explanation", "write_report"]


def write_report(
    runs: Sequence[Reported], path: str | os.PathLike[str], *, program: str = "netcarve"
) -> Path:
    """Write the interactive page of one or several runs.

    Args:
        runs: at least one, each with the trials of one ledger.
        path: the HTML file; one that exists is replaced, and only when the new one is whole.
        program: what to type for netcarve in the commands that the page shows.

    Returns:
        The file's path.

    Raises:
        ValueError: no run, or one without a trial.
        OSError: the file cannot be written; said before anything is computed where that can be known.
    """
    target = check_output(path)
    return _replace(target, render(report_document(runs, program=program)))


def write_explanation(document: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the page of one explained trial.

    Args:
        document: of :func:`netcarve.engine.explaining.explain`.
        path: the HTML file; one that exists is replaced, and only when the new one is whole.

    Raises:
        OSError: the file cannot be written.
    """
    return _replace(check_output(path), render(document, EXPLANATION))


def _replace(target: Path, text: str) -> Path:
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8", newline="\n")
        beside.replace(target)
    except OSError as error:  # a full disk names no file
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        beside.unlink(missing_ok=True)
    return target


def check_output(path: str | os.PathLike[str]) -> Path:
    """The path, if a file can be written there.

    Raises:
        OSError: it is a folder, its folder is missing, or writing is not allowed.
    """
    target = Path(path).expanduser()
    if target.is_dir():
        raise IsADirectoryError(f"cannot write the page to {target}: it is a folder; name a file in it")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write the page to {target}: there is no folder {target.parent}")
    if not os.access(target.parent, os.W_OK) or (target.exists() and not os.access(target, os.W_OK)):
        raise PermissionError(f"cannot write the page to {target}: not allowed; choose another place with -o")
    return target
