"""From the text a person types to a :class:`Task`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..results.trust import known_tasks
from .errors import TaskError, first_line

if TYPE_CHECKING:
    from .task import Task


def resolve_task(text: str) -> Task:
    """The task that ``text`` names: a known name, ``file.py:function`` or ``package.module:function``.

    ``task.spec`` is then a text that names it from any folder.

    Raises:
        TaskError: unknown name, missing file or function, code that raises (its traceback, ours
            removed, is in ``detail``), or something else than a Task.
    """
    where, name, is_file = _located(text)
    module = _from_file(Path(where).expanduser(), text) if is_file else _from_package(where, text)
    task = _call(module, name, text)
    known = text in known_tasks()
    task.spec = text if known or not is_file else f"{Path(where).expanduser().resolve()}:{name}"
    return task


def module_of(spec: str) -> ModuleType | None:
    """The imported module that :attr:`Task.spec` names."""
    where, _, is_file = _located(spec)
    return sys.modules.get(_name_of(Path(where)) if is_file else where)


def import_module_of(spec: str) -> None:
    """In a worker, before a task is rebuilt: import what it came from, for what that registers and patches.

    A file that is not on this machine is passed over: what it defines comes with the task.

    Raises:
        TaskError: its code raises.
    """
    where, _, is_file = _located(spec)
    if not is_file:
        _from_package(where, spec)
    elif Path(where).is_file():
        _from_file(Path(where), spec)


def _located(text: str) -> tuple[str, str, bool]:
    """File or module, function, and whether it is a file.

    Raises:
        TaskError: the text names neither.
    """
    known = known_tasks()
    where, colon, name = known.get(text, text).rpartition(":")
    if text.rstrip(":").endswith(".py"):
        raise TaskError(f"task {text!r}: which function? Write {text.rstrip(':')}:function")
    if not colon or not where or not name:
        raise TaskError(
            f"unknown task {text!r}: known are {', '.join(sorted(known))}; "
            "for one of your own write file.py:function or package.module:function"
        )
    return where, name, where.endswith(".py") or "/" in where


def _name_of(path: Path) -> str:
    # Stable, so that pickles and repeated calls agree; with the folder in it, since many are task.py.
    return f"netcarve_task_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def _from_file(path: Path, text: str) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise TaskError(f"task {text!r}: there is no file {path}")
    name = _name_of(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TaskError(f"task {text!r}: {path.name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:  # as when Python runs a script: it may import its neighbours
        sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise TaskError(
            f"task {text!r}: {_failed('importing the file', error)}", detail=_trace(error)
        ) from None
    # Workers cannot import the file by its name, so what it defines travels with the pickles.
    importlib.import_module("cloudpickle").register_pickle_by_value(module)
    return module


def _from_package(where: str, text: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a console script does not look in the working folder
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and (where == error.name or where.startswith(f"{error.name}.")):
            raise TaskError(
                f"task {text!r}: there is no module {error.name!r}; for a file write {where}.py:function"
            ) from None
        raise TaskError(f"task {text!r}: {_failed('importing it', error)}", detail=_trace(error)) from None
    except (Exception, SystemExit) as error:
        raise TaskError(f"task {text!r}: {_failed('importing it', error)}", detail=_trace(error)) from None


def _call(module: ModuleType, name: str, text: str) -> Task:
    from .task import Task

    made = getattr(module, name, None)
    if made is None:
        there = [
            k
            for k, v in vars(module).items()
            if callable(v) and getattr(v, "__module__", "") == module.__name__
        ]
        raise TaskError(f"task {text!r}: no {name!r} in it; it defines {', '.join(there) or 'no function'}")
    if callable(made) and not isinstance(made, Task):
        try:
            made = made()
        except TaskError:
            raise
        except (Exception, SystemExit) as error:
            raise TaskError(f"task {text!r}: {_failed(f'{name}()', error)}", detail=_trace(error)) from None
    if not isinstance(made, Task):
        raise TaskError(f"task {text!r}: {name} must return a netcarve.Task, got {type(made).__name__}")
    return made


def _failed(what: str, error: BaseException) -> str:
    return f"{what} raised {first_line(error)}"


def _trace(error: BaseException) -> str:
    """The traceback from the user's first frame on: ours and the import machinery's say nothing to them."""
    kept: Any = error.__traceback__
    while kept is not None and (
        kept.tb_frame.f_code.co_filename == __file__ or "importlib" in kept.tb_frame.f_code.co_filename
    ):
        kept = kept.tb_next
    if kept is None and not isinstance(error, SyntaxError):  # which itself says where it is
        return ""
    return "".join(traceback.format_exception(type(error), error, kept))
