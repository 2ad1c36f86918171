"""Sending a job to workers once: the data as arrays that they share, the rest as one pickle."""

from __future__ import annotations

import copy
import copyreg
import importlib
import io
import json
import os
import pickle
import subprocess
import sys
import sysconfig
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import IO, TYPE_CHECKING, Any, Self

import cloudpickle
import numpy as np

from .errors import PoolError, TaskError, first_line, their_part
from .pool import Job
from .resolve import import_module_of, module_of

if TYPE_CHECKING:
    from .task import Task


_LARGE = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Parcel:
    """A job ready for an object store, which keeps the arrays out of the pickle (zero-copy on a machine)."""

    pickled: bytes  # the job, its task without batches
    data: Any  # (batches, calibration batches) of the task with arrays for tensors, or None
    path: tuple[str, ...]  # where the driver imports from
    spec: str | None = None  # of the task: its module is imported before anything is rebuilt

    @property
    def size(self) -> int:
        """Bytes, roughly."""
        return len(self.pickled) + _array_bytes(self.data)


def pack(job: Job) -> Parcel:
    """Whatever ``job`` refers to arrives: what workers could not import goes by value.

    That is: what a script, a notebook, a task file or a test module defines.
    """
    data, spec = None, None if job.task is None else job.task.spec
    if job.task is not None:
        light = job.task.without_test() if job.tunes else job.task.without_train()
        data = _map(_to_array, (light.batches, light.calibration_batches))
        light.batches, light.calibration_batches = [], []
        job = replace(job, task=light)
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, spec)
    try:
        pickler.dump(job)
    finally:
        pickler.close()
    return Parcel(buffer.getvalue(), data, _search_path(), spec)


def unpack(parcel: Parcel) -> Job:
    """The job, in a worker. The data is shared memory: models must not write into their inputs.

    The task's module comes first: rebuilding may need what it registers, patches or adds to ``sys.path``.

    Raises:
        PoolError: why it cannot be rebuilt here.
    """
    job: Job = _rebuilt(parcel.pickled, parcel.path, parcel.spec)
    if job.task is not None and parcel.data is not None:
        task = copy.copy(job.task)
        with warnings.catch_warnings():
            # torch warns of read-only arrays; Task refuses models that overwrite their inputs.
            warnings.simplefilter("ignore", UserWarning)
            task.batches, task.calibration_batches = _map(_to_tensor, parcel.data)
        job = replace(job, task=task)
    return job


def _search_path() -> tuple[str, ...]:
    return tuple(os.path.abspath(p) for p in sys.path)


def _rebuilt(pickled: bytes, path: tuple[str, ...], spec: str | None) -> Any:
    sys.path.extend(p for p in path if p not in sys.path)
    try:
        if spec is not None:
            import_module_of(spec)
        return _Unpickler(io.BytesIO(pickled)).load()
    except (Exception, SystemExit) as error:
        said = str(error) if isinstance(error, TaskError) else first_line(error)
        detail = getattr(error, "detail", "") or their_part(traceback.format_exc())
        raise PoolError(f"workers cannot load the task: {said}", detail=detail) from None


class Rehearsal:
    """Rebuilds a task as workers will, in a fresh process beside this one; large tensors are zeros there.

    So what workers cannot load is known while the model is traced and proven, not after that.

    Raises:
        PoolError: the task's model holds what cannot travel (see :func:`check_sendable`).
    """

    def __init__(self, task: Task) -> None:
        check_sendable(task)
        light = task.without_train()
        light.batches, light.calibration_batches = [], []
        buffer = io.BytesIO()
        pickler = _Probe(buffer, task.spec, least=_LARGE)
        try:
            pickler.dump(light)
        finally:
            pickler.close()
        self._folder = tempfile.TemporaryDirectory(prefix="netcarve-task-", ignore_cleanup_errors=True)
        self._report = Path(self._folder.name) / "report.json"
        parcel = Parcel(buffer.getvalue(), None, _search_path(), task.spec)
        Path(self._folder.name, "parcel").write_bytes(pickle.dumps(parcel))
        # It ends when its standard input does, and so with this process.
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import rehearse as r; r(sys.argv[1])"
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, self._folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def check(self) -> None:
        """Returns at once, whether it is known already or not.

        Raises:
            PoolError: the task could not be rebuilt.
        """
        if self._process.poll() is None or not self._report.exists():
            return
        message, detail = json.loads(self._report.read_text(encoding="utf-8"))
        raise PoolError(message, detail=detail)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()


def rehearse(folder: str) -> None:
    """The fresh process of a :class:`Rehearsal`: writes ``report.json`` where the task cannot be rebuilt."""
    from ..standalone.limits import tie

    tie()
    parcel: Parcel = pickle.loads(Path(folder, "parcel").read_bytes())
    try:
        _rebuilt(parcel.pickled, parcel.path, parcel.spec)
    except PoolError as error:
        Path(folder, "report.json").write_text(json.dumps([str(error), error.detail]), encoding="utf-8")
    os._exit(0)  # whatever threads the user's code has started


def check_sendable(task: Task | None) -> None:
    """Refuse a task whose model holds what cannot travel to workers, before any work is done.

    Raises:
        PoolError: names the attribute.
    """
    if task is None or not _refusal(task.model):
        return
    for path, module in task.model.named_modules():
        for name, value in module.__dict__.items():
            if name != "_modules" and (reason := _refusal(value)):
                where = f"{path}.{name}" if path else name
                raise PoolError(
                    f"the model cannot be sent to workers: its attribute {where} ({type(value).__name__}): "
                    f"{reason}; score in this process with workers=0, or make it where forward needs it"
                )


def _refusal(value: object) -> str:
    """Why ``value`` cannot be pickled, its tensors apart, or ""."""
    pickler = _Probe(io.BytesIO())
    try:
        pickler.dump(value)
    except Exception as error:
        return first_line(error)
    finally:
        pickler.close()
    return ""


class _Pickler(cloudpickle.Pickler):
    """Registers, while it dumps, the modules whose contents must go by value."""

    def __init__(self, file: IO[bytes], spec: str | None = None) -> None:
        super().__init__(file, protocol=5)
        self.registered: list[ModuleType] = []
        module = None if spec is None else module_of(spec)
        self._module = module.__name__ if module else ""
        self._globals = {
            id(value): name
            for name, value in (vars(module) if module else {}).items()
            if not isinstance(value, type | FunctionType | ModuleType)
        }
        from ..model.model_copy import LOCKS

        self._locks = LOCKS

    def close(self) -> None:
        for module in self.registered:
            cloudpickle.unregister_pickle_by_value(module)

    def reducer_override(self, obj: object) -> Any:
        if type(obj) in self._locks:
            return self._locks[type(obj)], ()  # a lock of its own does for each process
        name = obj.__name__ if isinstance(obj, ModuleType) else None
        if name is not None and type(obj) is not ModuleType and sys.modules.get(name) is obj:
            # cloudpickle takes along any submodule of torch that an attribute is called like: torch.ops too.
            return importlib.import_module, (name,)
        if isinstance(obj, type | FunctionType):
            name = obj.__module__
        module = sys.modules.get(name) if isinstance(name, str) else None
        if (
            module is not None
            and name not in cloudpickle.list_registry_pickle_by_value()
            and not _found(name)
        ):
            cloudpickle.register_pickle_by_value(module)
            self.registered.append(module)
        elif id(obj) in self._globals and _refusal(obj):
            # An operator that the task's module registers, a library that it opens: there is one in workers.
            return _global, (self._module, self._globals[id(obj)])
        if "parametrizations" in getattr(obj, "__dict__", {}).get("_modules", ()):
            # torch refuses to pickle a parametrised module, whose class it makes at run time.
            return copyreg.__newobj__, (type(obj),), obj.__dict__  # type: ignore[attr-defined]
        return super().reducer_override(obj)


def _global(module: str, name: str) -> Any:
    return getattr(sys.modules[module], name)


class _Probe(_Pickler):
    """Leaves out the values of tensors of ``least`` bytes or more, which always travel."""

    def __init__(self, file: IO[bytes], spec: str | None = None, *, least: int = 0) -> None:
        super().__init__(file, spec)
        self._least = least

    def persistent_id(self, obj: object) -> Any:
        import torch

        if not isinstance(obj, torch.Tensor) or obj.nbytes < self._least:
            return None
        shape = () if obj.is_nested else tuple(obj.shape)
        return shape, obj.dtype, isinstance(obj, torch.nn.Parameter), obj.requires_grad


class _Unpickler(pickle.Unpickler):
    """Also of what a :class:`_Probe` wrote: zeros for the tensors that it left out."""

    def persistent_load(self, pid: Any) -> Any:
        import torch

        shape, dtype, parameter, grad = pid
        zeros = torch.zeros((), dtype=dtype).expand(shape)  # no memory, whatever the shape
        return torch.nn.Parameter(zeros, requires_grad=grad) if parameter else zeros


_INSTALLED = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")})


@cache
def _found(name: str) -> bool:
    """Would a worker, given our ``sys.path``, import the same file under this name?

    Not where a tool loaded a file under a name of its own (pytest, a task file).
    """
    file = getattr(sys.modules[name], "__file__", None)
    if name == "__main__" or file is None or name.partition(".")[0] == __name__.partition(".")[0]:
        return True  # cloudpickle knows about __main__ itself
    if os.path.abspath(file).startswith(_INSTALLED):
        return True
    where, spec = None, None
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        spec = _find(".".join(parts[:end]), where)
        if spec is None:
            return False
        where = spec.submodule_search_locations
    return (
        spec is not None
        and spec.origin is not None
        and os.path.realpath(spec.origin) == os.path.realpath(file)
    )


def _find(name: str, where: Any) -> Any:
    """As ``importlib.util.find_spec``, but ignoring what is already imported."""
    for finder in sys.meta_path:
        spec = finder.find_spec(name, where)
        if spec is not None:
            return spec
    return None


@dataclass(frozen=True, slots=True)
class _Array:
    """A tensor as an array; a class of its own, since tasks may hold arrays too."""

    values: np.ndarray


def _to_array(value: object) -> Any:
    import torch

    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        try:
            return _Array(value.contiguous().numpy())
        except TypeError:  # bfloat16 and the like have no array; they are copied
            return value
    return value


def _to_tensor(value: object) -> Any:
    import torch

    return torch.from_numpy(value.values) if isinstance(value, _Array) else value


def _map(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _map(change, v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_map(change, v) for v in value)
    return change(value)


def _array_bytes(value: object) -> int:
    if isinstance(value, dict):
        return sum(map(_array_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_array_bytes, value))
    return value.values.nbytes if isinstance(value, _Array) else getattr(value, "nbytes", 0)
