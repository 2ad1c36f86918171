"""The formats that netcarve writes, each one small file with both of its ends.

A format file has

* ``require(describe)``: raises :class:`ExportError` at once when the format cannot be written here;
* ``write(source, folder) -> tuple[str, ...]``: writes the model, returns the names of its files;
* ``load(folder, structure, threads) -> run``: loads them again; ``run(leaves)`` takes the flat leaves of
  ``(args, kwargs)`` (:mod:`torch.utils._pytree` order; tensors as numpy arrays, constants as they are) and
  returns the output's tensors, flat, as arrays or tensors; ``structure`` is the inputs' tree spec as JSON;
* ``NEEDS``: what a user must have installed to load the files; ``needs(files)`` where that depends on them;
* ``STANDALONE``: the files load without netcarve and without the model's own code;
* ``EXACT`` (by default true): the files must answer as the module does. Of others the difference and the loss
  of the metric are stated.

``load`` runs in a fresh process that must not import netcarve, where the file is loaded by its path alone:
so a format file imports nothing of netcarve at its top level, and torch only inside functions.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from .error import ExportError

if TYPE_CHECKING:
    from .source import Source

Run = Callable[[list[Any]], list[Any]]

# name -> module of the format file; imported only when asked for.
FORMATS: dict[str, str] = {
    "pt2": f"{__package__}.pt2",
    "onnx": f"{__package__}.onnx",
    "state": f"{__package__}.state",
    "int8": f"{__package__}.int8",
    "executorch": f"{__package__}.executorch",
    "stages": f"{__package__}.stages",
}


class Format(Protocol):
    """What a format file offers."""

    NEEDS: str
    STANDALONE: bool
    __file__: str

    def require(self, describe: Mapping[str, Any]) -> None: ...

    def write(self, source: Source, folder: Path) -> tuple[str, ...]: ...

    def load(self, folder: Path, structure: str, threads: int) -> Run: ...


USUAL = ("pt2", "onnx", "state")  # where nobody says which


def is_exact(code: Format) -> bool:
    """Must its files answer as the module does?"""
    return bool(getattr(code, "EXACT", True))


def needs_of(code: Format, files: tuple[str, ...]) -> str:
    """What must be installed to load these files."""
    return str(code.needs(files)) if hasattr(code, "needs") else code.NEEDS


def known_formats(names: Iterable[str]) -> tuple[str, ...]:
    """``names`` without repeats, in the order given.

    Raises:
        ExportError: none, or one that is not in :data:`FORMATS`.
    """
    wanted = tuple(dict.fromkeys([names] if isinstance(names, str) else names))
    unknown = [name for name in wanted if name not in FORMATS]
    if unknown or not wanted:
        what = f"unknown format {unknown[0]!r}" if unknown else "no format given"
        raise ExportError(f"{what}; known are {', '.join(FORMATS)}")
    return wanted


def require(names: Iterable[str], describe: Mapping[str, Any]) -> None:
    """
    Raises:
        ExportError: one of these known formats cannot be written here: a package or a description is missing.
    """
    for name in names:
        format_file(name).require(describe)


def format_file(name: str) -> Format:
    """The format file of a known name."""
    return cast(Format, importlib.import_module(FORMATS[name]))
