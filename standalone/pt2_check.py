"""Reader of ``.pt2`` files from elsewhere: a graph and numbers are taken over, anything else is refused.

``torch.export.load`` can run what a crafted file holds: it unpickles tensors of subclasses, custom objects
and sample inputs, loads compiled libraries, imports the modules that enums in tree specs name, evaluates
shape expressions (``sympy.sympify``) and guards (``exec``), pastes names into generated code, and resolves
operators by walking attributes from ``torch``. What netcarve writes needs none of this. So a file is read
with the types of torch's own schema, each text by the rule of its field (:data:`_RULES`; a text without a
rule is refused), and torch opens only the clean copy that is written from what was read. Needs torch, and
nothing of netcarve but its neighbours :mod:`.pt2_texts` and :mod:`.limits`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import shutil
import tempfile
import types
import typing
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import IntEnum
from pathlib import Path
from typing import Any

if __package__:
    from . import pt2_texts as texts
    from .limits import open_regular
    from .pt2_texts import Pt2Error
else:  # beside a stage that was exported
    import pt2_texts as texts  # type: ignore[import-not-found, no-redef]
    from limits import open_regular  # type: ignore[import-not-found, no-redef]
    from pt2_texts import Pt2Error  # type: ignore[no-redef]

_GRAPH = "models/model.json"
_TABLES = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_SAMPLES = "data/sample_inputs/model.pt"
_FIXED = {
    "archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little", ".data/version": b"6\n",
}  # fmt: skip
_IGNORED = (".data/serialization_id", ".format_version", ".storage_alignment")
_PAYLOAD = re.compile(r"data/(weights/weight|constants/tensor)_\d{1,7}")
_MAX_FILES = 200_000
_MAX_JSON = 128 << 20  # bytes of one part; those of the largest graph that _MOST lets through
_MAX_DISTINCT = 200_000  # characters of a file's different expressions and guards; networks of timm need 500
_MAX_REPEATED = 1_000_000  # of these with repetitions, as torch evaluates each again
_MAX_ALL = 4_000_000  # with plain symbols, which take less; networks of timm need 28,000
_MOST = {  # in a file, subgraphs and all: torch takes milliseconds for each
    "Graph.nodes": 20_000, "Graph.tensor_values": 20_000, "Graph.sym_int_values": 20_000,
    "Graph.sym_float_values": 20_000, "Graph.sym_bool_values": 20_000,
}  # fmt: skip
_CURE = "export a smaller network, or open a file that you trust with torch.export.load"
_DTYPE_BYTES = {  # by the schema's ScalarType
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 9: 4, 10: 8, 11: 16, 12: 1, 13: 2, 28: 2, 29: 1, 30: 1,
    31: 1, 32: 1, 33: 1, 34: 4, 35: 8,
}  # fmt: skip

_TEXT = re.compile(r"[^\x00-\x1f\x7f]{0,4000}")  # of arguments and messages, which torch quotes
# Of parameters and modules: torch pastes each part of the path between double quotes.
_PART = re.compile(r"(?!__\w*__$)[^\"\\{}.\x00-\x1f\x7f]{1,300}")
_DEVICE = re.compile(r"[a-z]{1,20}", re.ASCII)


def check_pt2(path: Path) -> None:
    """Read a file through, without opening it with torch.

    Raises:
        Pt2Error: it is not a program, or holds more than a graph and numbers; the message says what.
    """
    with _opened(path) as archive:
        archive.graph()


def clean_pt2(path: Path, to: Path) -> None:
    """Write a copy that holds what was read and nothing else.

    Raises:
        Pt2Error: as of :func:`check_pt2`.
        OSError: the copy cannot be written.
    """
    with _opened(path) as archive:
        graph = archive.graph()
        with zipfile.ZipFile(to, "x") as copy:
            parts = {**_FIXED, _GRAPH: graph, **archive.tables, _SAMPLES: b""}
            for name, data in parts.items():
                copy.writestr(f"model/{name}", data)
            for name in archive.payloads:
                with (
                    archive.open(name) as source,
                    copy.open(f"model/{name}", "w", force_zip64=True) as target,
                ):
                    shutil.copyfileobj(source, target, 1 << 20)


def load_pt2(path: Path) -> Any:
    """The program of a file from elsewhere, a ``torch.export.ExportedProgram``.

    Raises:
        Pt2Error: as of :func:`check_pt2`; or torch cannot make a program of the graph.
    """
    import torch

    with tempfile.TemporaryDirectory(prefix="netcarve-pt2-") as folder:
        clean = Path(folder) / "model.pt2"
        clean_pt2(path, clean)
        try:
            return torch.export.load(clean)
        except MemoryError:  # of this machine, not of the file
            raise
        except Exception as error:  # of any kind: torch trusts what it reads
            why = (str(error).strip().splitlines() or [""])[0][:200]
            raise Pt2Error(
                f"{path} is no program that torch {torch.__version__} opens ({type(error).__name__}: {why}); "
                "it is damaged or of another torch: export it again, or open it with the torch that wrote it"
            ) from error


@contextmanager
def _opened(path: Path) -> Iterator[_Archive]:
    try:
        file = open_regular(path)
    except FileNotFoundError as error:
        raise Pt2Error(f"{path} does not exist") from error
    except OSError as error:
        raise Pt2Error(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        with file, zipfile.ZipFile(file) as archive:
            yield _Archive(path, archive, os.fstat(file.fileno()).st_size)
    except Pt2Error:
        raise
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, UnicodeError) as error:
        raise Pt2Error(f"{path} is not a program of torch.export ({type(error).__name__})") from error


class _Archive:
    """The parts of a ``.pt2``, whose sizes are judged before any is read."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, size: int) -> None:
        self.path, self._zip = path, archive
        self.infos: dict[str, zipfile.ZipInfo] = {}
        self.tables: dict[str, bytes] = {}
        infos = archive.infolist()
        if len(infos) > _MAX_FILES or sum(info.file_size for info in infos) > size:
            self._refuse("it declares more than it holds")  # packed or overlapping: torch writes neither
        for info in infos:
            name = info.filename.partition("/")[2]
            if name in self.infos or info.flag_bits & 1 or info.compress_type != zipfile.ZIP_STORED:
                self._refuse(f"{name[:80]!r} is packed, encrypted or there twice")
            if name not in (_GRAPH, *_TABLES, _SAMPLES, *_FIXED, *_IGNORED) and not _PAYLOAD.fullmatch(name):
                self._refuse(f"holds {name[:80]!r}, which a graph with numbers does not need")
            self.infos[name] = info
        if missing := {_GRAPH, *_TABLES, *_FIXED} - self.infos.keys():
            self._refuse(f"is not a program of torch.export: it has no {min(missing)}")
        for name in ("archive_format", "byteorder"):
            if self._bytes(name, 100) != _FIXED[name]:
                self._refuse(f"is not a program of torch.export: {name} is not {_FIXED[name].decode()}")
        if _SAMPLES in self.infos and self.infos[_SAMPLES].file_size:
            self._refuse("holds pickled sample inputs")
        self.payloads = [name for name in self.infos if _PAYLOAD.fullmatch(name)]

    def graph(self) -> bytes:
        """The graph as torch may read it; the tables of tensors are read on the way."""
        from torch._export.serde import schema

        _EXPRESSIONS.set(_Expressions())
        for table in _TABLES:
            read = self._rebuilt(table, schema.PayloadConfig)
            for name, payload in read["config"].items():
                self._check_tensor(f"{table.rpartition('/')[0]}/{payload['path_name']}", name, payload)
            self.tables[table] = _dumped(read)
        return _dumped(self._rebuilt(_GRAPH, schema.ExportedProgram))

    def open(self, name: str) -> Any:
        return self._zip.open(self.infos[name])

    def _rebuilt(self, name: str, cls: type) -> Any:
        try:
            return _rebuilt(cls, json.loads(self._bytes(name, _MAX_JSON)), "", "")
        except Pt2Error as error:
            raise Pt2Error(f"{self.path} {error}") from error
        except (ValueError, RecursionError) as error:
            raise Pt2Error(f"{self.path} is not a program of torch.export: {name} is not JSON") from error

    def _bytes(self, name: str, most: int) -> bytes:
        if self.infos[name].file_size > most:
            self._refuse(f"{name} has more than {most} bytes")
        return self._zip.read(self.infos[name])

    def _check_tensor(self, file: str, name: str, payload: dict[str, Any]) -> None:
        """A tensor lies within its file: nothing is made up out of nothing."""
        meta = payload["tensor_meta"]
        if payload["use_pickle"] or not _PAYLOAD.fullmatch(file) or meta is None:
            self._refuse(f"holds {name[:80]!r} as a pickle")
        numbers = [[size.get("as_int") for size in meta[axis]] for axis in ("sizes", "strides")]
        sizes, strides, offset = *numbers, meta["storage_offset"].get("as_int")
        whole = all(isinstance(n, int) and n >= 0 for n in (*sizes, *strides, offset))
        if (
            not whole
            or len(sizes) != len(strides)
            or meta["dtype"] not in _DTYPE_BYTES
            or file not in self.infos
        ):
            self._refuse(f"has no numbers for {name[:80]!r}")
        items = offset + 1 + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
        if math.prod(sizes) and items * _DTYPE_BYTES[meta["dtype"]] > self.infos[file].file_size:
            self._refuse(f"has too few numbers for {name[:80]!r}")

    def _refuse(self, why: str) -> typing.NoReturn:
        raise Pt2Error(f"{self.path} {why}")


class _Expressions:
    """What one file comes to: its expressions and guards in characters, its nodes and values in number."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.distinct = self.repeated = self.all = 0
        self.held = dict.fromkeys(_MOST, 0)

    def hold(self, field: str, count: int) -> None:
        if field in _MOST:
            self.held[field] += count
            if self.held[field] > _MOST[field]:
                what = field.partition(".")[2].replace("_", " ")
                raise Pt2Error(f"holds more than {_MOST[field]} {what} and may take long to open; {_CURE}")

    def add(self, text: str) -> None:
        self.all += len(text)
        if not _PLAIN.fullmatch(text):
            self.repeated += len(text)
            self.distinct += 0 if text in self.seen else len(text)
            self.seen.add(text)
        for count, most, which in (
            (self.distinct, _MAX_DISTINCT, "different "),
            (self.repeated, _MAX_REPEATED, "repeated "),
            (self.all, _MAX_ALL, ""),
        ):
            if count > most:
                raise Pt2Error(
                    f"holds more than {most} characters of {which}expressions of sizes and guards, "
                    f"which a network does not need; {_CURE}"
                )


_PLAIN = re.compile(r"Symbol\('\w+'[\w ,=]*\)|(Integer\()?-?\d+\)?", re.ASCII)
_EXPRESSIONS: ContextVar[_Expressions] = ContextVar("expressions of the file that is being read")


def _dumped(value: object) -> bytes:
    return json.dumps(value, allow_nan=False).encode()


def _rebuilt(kind: object, value: object, owner: str, field: str) -> Any:
    """A value of torch's schema, made anew from what may stand there.

    Args:
        kind: a type of :mod:`torch._export.serde.schema`.
        owner, field: class and name of the field that holds it, by which texts have their rule.
    """
    from torch._export.serde.union import _Union

    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):  # X | None
        return None if value is None else _rebuilt(args[0], value, owner, field)
    if origin in (list, dict) and isinstance(value, origin):
        _EXPRESSIONS.get().hold(f"{owner}.{field}", len(value))
    if origin is list and isinstance(value, list):
        return [_rebuilt(args[0], one, owner, field) for one in value]
    if origin is dict and isinstance(value, dict):
        if (owner, field) in _DROPPED:
            return {}
        keys = [_ruled(f"{owner}.{field}.keys", key) for key in value]
        values = (_rebuilt(args[1], one, owner, field) for one in value.values())
        return dict(zip(keys, values, strict=True))
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = _hints(kind)
        if issubclass(kind, _Union):
            if len(value) != 1 or not value.keys() <= hints.keys():
                raise Pt2Error(f"has no {kind.__name__} where one is expected")
            ((name, inner),) = value.items()
            return {name: _rebuilt(hints[name], inner, kind.__name__, name)}
        needed = {
            f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING
        }
        if not needed <= value.keys():
            raise Pt2Error(f"has no {kind.__name__} where one is expected")
        return {
            name: _rebuilt(hints[name], value[name], kind.__name__, name) for name in hints if name in value
        }
    return _plain(kind, value, owner, field)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    from torch._export.serde import schema

    return typing.get_type_hints(kind, globalns=vars(schema))


def _plain(kind: object, value: object, owner: str, field: str) -> Any:
    if kind is str and isinstance(value, str):
        return _ruled(f"{owner}.{field}", value)
    if kind is bool and isinstance(value, bool):
        return value
    whole = type(value) is int and abs(value) < texts.MAX_INTEGER
    if kind is int and whole:
        return value
    if kind is float and (whole or isinstance(value, float) or value in ("Infinity", "-Infinity", "NaN")):
        return value
    if isinstance(kind, type) and issubclass(kind, IntEnum) and whole and value in set(kind):
        return value
    raise Pt2Error(f"has {str(value)[:80]!r} as {owner}.{field}, which is not what torch writes")


def _ruled(field: str, text: str) -> str:
    """A text by the rule of its field."""
    rule = _RULES.get(field)
    if rule is None:
        raise Pt2Error(f"holds an object ({field}: {text[:80]!r}), not only a graph and numbers")
    return rule(text)


def _matching(what: str, pattern: re.Pattern[str]) -> Callable[[str], str]:
    def rule(text: str) -> str:
        if not pattern.fullmatch(text):
            raise Pt2Error(f"has {text[:80]!r} as {what}, which is none")
        return text

    return rule


def _counted(read: Callable[[str], str]) -> Callable[[str], str]:
    def rule(text: str) -> str:
        _EXPRESSIONS.get().add(text)
        return read(text)

    return rule


def _path(text: str) -> str:
    if len(text) > 2000 or not all(map(_PART.fullmatch, text.split("."))):
        raise Pt2Error(f"has {text[:80]!r} as the path of a tensor, which is none")
    return text


_NAME = _matching("a name", texts.NAME)
_SYMBOL = _matching("a symbol", texts.SYMBOL)
_ANY = _matching("a text", _TEXT)
_DROPPED = {  # notes for people and for other loaders
    ("Node", "metadata"), ("GraphModule", "metadata"), ("GraphModule", "treespec_namedtuple_fields"),
}  # fmt: skip
# Field of torch's schema -> what may stand there; the text that torch is given. A field that is not here is
# refused: those of custom objects (CustomObjArgument.*, Argument.as_operator) are left out on purpose.
_RULES: dict[str, Callable[[str], str]] = {
    **dict.fromkeys(
        ("TensorArgument.name", "TokenArgument.name", "GraphArgument.name", "Node.name",
         "SymIntArgument.as_name", "SymFloatArgument.as_name", "SymBoolArgument.as_name",
         "InputToConstantInputSpec.name", "GradientToUserInputSpec.user_input_name",
         "UserInputMutationSpec.user_input_name", "ModuleCallSignature.forward_arg_names",
         "Graph.tensor_values.keys", "Graph.sym_int_values.keys", "Graph.sym_bool_values.keys",
         "Graph.sym_float_values.keys"), _NAME,
    ),
    "NamedArgument.name": lambda text: text and _NAME(text),
    "ModuleCallEntry.fqn": lambda text: text and _path(text),
    **dict.fromkeys(
        ("InputToParameterSpec.parameter_name", "InputToBufferSpec.buffer_name",
         "InputToTensorConstantSpec.tensor_constant_name", "BufferMutationSpec.buffer_name",
         "ParameterMutationSpec.parameter_name", "GradientToParameterSpec.parameter_name",
         "PayloadConfig.config.keys"), _path,
    ),
    **dict.fromkeys(("Argument.as_string", "Argument.as_strings", "ConstantValue.as_string"), _ANY),
    **dict.fromkeys(("ModuleCallSignature.in_spec", "ModuleCallSignature.out_spec"), texts.tree_spec),
    **dict.fromkeys(("Argument.as_string_to_argument.keys", "PayloadMeta.path_name"), _NAME),
    "Node.target": texts.operator,
    "SymExpr.expr_str": _counted(texts.shape_expression),
    "ExportedProgram.guards_code": _counted(texts.guard),
    "ExportedProgram.range_constraints.keys": _SYMBOL,
    "ExportedProgram.opset_version.keys": _NAME,
    "ExportedProgram.verifiers": _matching("a dialect", re.compile(r"[A-Z_]{1,40}", re.ASCII)),
    "ExportedProgram.torch_version": _ANY,
    "Device.type": _matching("a device", _DEVICE),
}  # fmt: skip
