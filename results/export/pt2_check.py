"""What a ``.pt2`` would run when it is opened: a file from elsewhere must hold a graph and numbers, no code.

``torch.export.load`` unpickles tensors of subclasses and custom objects, evaluates the strings of symbolic
shapes (``sympy.sympify``), executes guards, and resolves operators by walking attributes from ``torch``. So a
crafted file could do anything. What netcarve writes needs none of this but shapes and guards in a small
arithmetic; all else is refused here, before torch opens the file.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .error import ExportError

_FILES = (
    "models/model.json",
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
    "data/sample_inputs/model.pt",
    "archive_format",
    "archive_version",
    "byteorder",
    ".data/version",
    ".data/serialization_id",
    ".format_version",
    ".storage_alignment",
)
_NUMBERS = re.compile(r"data/(weights/weight_\d+|constants/tensor_\d+)")
_OPERATOR = re.compile(
    # registered kernels: by namespace, since `torch.ops.load_library` is no kernel
    r"torch\.ops\.(aten|prims|prim|higher_order|quantized_decomposed|torchvision)\.(_?[a-z]\w*|__\w+__)"
    r"(\.[A-Za-z]\w*)?"
    r"|torch\.sym_\w+|math\.[a-z]\w*"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
)
_DUNDERS = re.compile(r"__i?(and|or|xor|lshift|rshift)__")  # kernels of aten with such names
_REFUSED = re.compile(r"torch\.ops\.aten\.from_file\b")  # it reads and writes files
_CONTAINERS = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", None)
_CALLS = re.compile(r"[A-Z][A-Za-z]*|size|stride|storage_offset|dim|len|abs|max|min|int|float|sym_\w+")
_ATTRIBUTES = ("shape", "size", "stride", "storage_offset", "dim", "ndim")
_NODES = (
    ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.Attribute, ast.Subscript,
    ast.Tuple, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop,
    ast.cmpop,
)  # fmt: skip
_TEXT = re.compile(r"[\w.\[\]]*")


def check_pt2(path: Path) -> None:
    """
    Raises:
        ExportError: the file is no program, or holds more than a graph and numbers; the message says what.
    """
    from torch.export.pt2_archive._package import PT2ArchiveReader

    try:
        # torch's own reader: another one might see another file of the same name.
        with PT2ArchiveReader(str(path)) as archive:
            names = archive.get_file_names()
            for name in names:
                if name not in _FILES and not _NUMBERS.fullmatch(name):
                    raise ExportError(f"{path} holds {name!r}, which a graph with numbers does not need")
            if archive.read_bytes("data/sample_inputs/model.pt"):
                raise ExportError(f"{path} holds pickled sample inputs")
            for config in (
                "data/weights/model_weights_config.json",
                "data/constants/model_constants_config.json",
            ):
                for name, payload in json.loads(archive.read_string(config))["config"].items():
                    if payload["use_pickle"] or not re.fullmatch(
                        r"(weight|tensor)_\d+", payload["path_name"]
                    ):
                        raise ExportError(f"{path} holds {name!r} as a pickle")
            _check_program(path, json.loads(archive.read_string("models/model.json")))
    except ExportError:
        raise
    except Exception as error:  # of torch's reader, whose errors have no common class
        raise ExportError(f"{path} is not a program of torch.export ({type(error).__name__})") from error


def _check_program(path: Path, program: Any) -> None:
    for key, value in _strings(program):
        if key == "target" and not _allowed(value):
            raise ExportError(f"{path} calls {value!r}, which is no operator that netcarve exports")
        if key in ("expr_str", "guards_code", "range_constraints") and not is_arithmetic(value):
            raise ExportError(f"{path} holds the expression {value[:80]!r}, which is more than arithmetic")
        if key in ("in_spec", "out_spec"):
            for kind in _kinds(json.loads(value)):
                if kind not in _CONTAINERS:
                    raise ExportError(f"{path} takes or gives a {kind}, which is no plain container")
        if key in ("as_custom_obj", "as_operator", "class_fqn"):
            raise ExportError(f"{path} holds an object ({value[:80]!r}), not only a graph and numbers")


def _allowed(target: str) -> bool:
    parts = target.split(".")
    return bool(
        _OPERATOR.fullmatch(target)
        and not _REFUSED.match(target)
        and not any(part.startswith("__") and not _DUNDERS.fullmatch(part) for part in parts)
    )


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string that torch reads, with the key it stands under. What it only shows is left out."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if key == "range_constraints":
                yield key, name
            elif name in ("metadata", "module_call_graph") and key in ("nodes", "graph_module"):
                # Call graphs hold tree specs below; metadata holds names of layers, which are not resolved.
                if name == "module_call_graph":
                    yield from _strings(inner, name)
                continue
            yield from _strings(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, key)
    elif isinstance(value, str):
        yield key, value


def _kinds(spec: Any) -> Iterator[Any]:
    """Type names of a serialised tree spec ``[protocol, {"type", "children_spec"}]``."""
    node = spec[1] if isinstance(spec, list) and len(spec) == 2 else spec
    yield node["type"]
    for child in node["children_spec"]:
        yield from _kinds(child)


def is_arithmetic(text: str) -> bool:
    """Is it an expression over shapes and numbers, and nothing that could be executed to another end?"""
    if "\n" in text or "#" in text:  # torch pastes it into lines of code
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_harmless(node) for node in ast.walk(tree))


def _harmless(node: ast.AST) -> bool:
    if not isinstance(node, _NODES):
        return False
    if isinstance(node, ast.Name):
        return not node.id.startswith("_")
    if isinstance(node, ast.Attribute):
        return node.attr in _ATTRIBUTES
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return _CALLS.fullmatch(name) is not None
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _TEXT.fullmatch(node.value) is not None
    return not isinstance(node, ast.Constant) or isinstance(node.value, int | float | None)
