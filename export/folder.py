"""The target folder: checked before any work, filled beside its place, moved there when all is proven."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .error import ExportError
from .receipt import RECEIPT, Receipt

CACHE = "__pycache__"  # of scripts in an export that were run there


@contextmanager
def partial_folder(target: Path, *, needed_bytes: int) -> Iterator[Path]:
    """A new folder ``.<name>.partial`` beside ``target`` that takes its place when the block succeeds.

    When the block raises, the folder is removed and ``target`` is as it was.

    Args:
        target: resolved; passed :func:`check_target`. What is there is replaced.
        needed_bytes: room that must be free.

    Raises:
        ExportError: at the start: the place cannot be written, or there is no room; during
            the block: the system refuses to write.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if partial.exists():  # of an export that was killed
            shutil.rmtree(partial)
        partial.mkdir()
    except OSError as error:
        raise ExportError(
            f"cannot write to {target.parent}: {error.strerror or error}; choose another folder"
        ) from error
    try:
        free = shutil.disk_usage(partial).free
        if free < needed_bytes:
            raise ExportError(
                f"no room in {target.parent}: about {needed_bytes / 1e6:.0f} MB are needed, "
                f"{free / 1e6:.0f} MB are free; make room or choose another folder"
            )
        yield partial
        check_target(target, overwrite=True)  # what has been put there meanwhile is not ours
        _move(partial, target)
    except OSError as error:
        raise ExportError(f"cannot write to {target.parent}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse a target that is taken.

    Raises:
        ExportError: it is a file, a symbolic link, or a folder with anything in it but, with ``overwrite``,
            an earlier export: the files that its receipt lists, and no others.
    """
    try:
        if target.is_symlink():
            raise ExportError(f"{target} is a symbolic link, which is not followed; give the folder itself")
        if not target.exists() or (target.is_dir() and not any(target.iterdir())):
            return
        ours = (target / RECEIPT).is_file()
    except OSError as error:
        raise ExportError(
            f"cannot read {target}: {error.strerror or error}; choose another folder"
        ) from error
    if not ours:
        # Never delete what we did not write, whatever was asked.
        raise ExportError(f"{target} exists and is not an export; choose another folder")
    if not overwrite:
        raise ExportError(
            f"{target} holds an earlier export; choose another folder, or replace it: --overwrite "
            "(overwrite=True)"
        )
    try:
        listed = {*Receipt.load(target).files, RECEIPT}
    except ValueError as error:
        raise ExportError(f"{error}; nothing there is overwritten, choose another folder") from error
    strays = sorted(p.name for p in target.iterdir() if p.name not in listed or not p.is_file())
    if strays := [name for name in strays if name != CACHE]:
        raise ExportError(
            f"{target} holds what the earlier export did not write ({', '.join(strays[:3])}"
            f"{', ...' if len(strays) > 3 else ''}); move that elsewhere, or choose another folder"
        )


def _move(partial: Path, target: Path) -> None:
    """A rename: whoever looks sees the earlier export or the whole new one (between the two, nothing)."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    try:
        os.rename(partial, target)
    except OSError:
        if old.exists():
            os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
