"""Texts of a ``.pt2`` that torch evaluates: parsed, bounded, and printed again.

torch evaluates expressions of symbolic sizes by ``sympy.sympify`` and guards by ``exec``, resolves operators
by attributes, and imports what a tree of containers names. So the text of a file is never handed on: it is
parsed by the small grammars below, and torch is given what is printed from the parsed tree. Expressions are
in sympy's ``srepr``: ``Mul(Integer(3), Symbol('s77'))``; guards are Python: ``L['x'].size()[0] // 2 <= 4``.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

MAX_TEXT = 2_000  # characters of one expression; networks of timm need 61
MAX_DEPTH = 30  # of its tree; each strided layer on symbolic sides may add three
MAX_INTEGER = 2**64
MAX_POWER = 8
MAX_BITS = 4096  # of the largest value, where a symbol stands for 64
MAX_TERMS = 2_000  # once sums are multiplied out, as sympy may do
MAX_DIVIDED = 64  # terms on both sides of a division, where sympy looks for common factors: seconds for 400

SYMBOL = re.compile(r"(?:s|u|zf|zuf|ps)\d{1,5}")  # torch counts up to the number of a ``u``
NAME = re.compile(r"[^\W\d]\w{0,199}")
KEY = re.compile(r"[\w .:/+@=,<>()\[\]-]{1,300}")  # nothing that could end a string of Python
_ASSUMPTIONS = frozenset(
    ("commutative", "complex", "even", "extended_real", "finite", "hermitian", "infinite", "integer",
     "negative", "nonnegative", "nonpositive", "nonzero", "odd", "positive", "rational", "real", "zero")
)  # fmt: skip
_CONSTANTS = frozenset(("true", "false", "oo", "nan"))
# Functions that torch writes: name -> fewest and most arguments. Those of torch/utils/_sympy/functions.py
# that torch's deserializer knows, and of sympy those that ``srepr`` gives for arithmetic. Not ``S``,
# ``sympify``, ``Function``, ``Lambda`` or matrices: these evaluate their text.
_FUNCTIONS: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("Add", "Mul", "Max", "Min", "And", "Or"), (1, 500)),
    **dict.fromkeys(("Piecewise", "Where"), (1, 50)),
    **dict.fromkeys(("Not", "Abs", "floor", "ceiling", "CeilToInt", "FloorToInt", "TruncToFloat"), (1, 1)),
    **dict.fromkeys(("TruncToInt", "RoundToInt", "ToFloat", "Identity"), (1, 1)),
    **dict.fromkeys(("Equality", "Unequality", "GreaterThan", "LessThan"), (2, 2)),
    **dict.fromkeys(("StrictGreaterThan", "StrictLessThan", "ExprCondPair", "RoundDecimal"), (2, 2)),
    **dict.fromkeys(("FloorDiv", "CleanDiv", "CeilDiv", "Mod", "PythonMod", "RShift"), (2, 2)),
    **dict.fromkeys(("FloatTrueDiv", "IntTrueDiv", "LShift", "Pow", "PowByNatural", "FloatPow"), (2, 2)),
    "ModularIndexing": (3, 3),
    "IsNonOverlappingAndDenseIndicator": (2, 50),
}
_POWERS = frozenset(("Pow", "PowByNatural", "FloatPow", "LShift"))
_DIVISIONS = frozenset(name for name in _FUNCTIONS if name.endswith(("Div", "Mod", "ModularIndexing")))
_ZERO = re.compile(r"(Mul\(Integer\(-1\), )?(Integer\(0\)|Rational\(0, \d+\)|Float\('-?0+(\.0*)?['e].*\))\)?")
_GUARD_FUNCTIONS = frozenset(
    ("max", "min", "abs", "len", "int", "float", "round", "math.floor", "math.ceil", "math.trunc",
     "math.sqrt", "math.log2", "torch.sym_float", "torch.sym_int", "torch.sym_max", "torch.sym_min",
     "torch._sym_sqrt", "IsNonOverlappingAndDenseIndicator", "cast_symbool_to_symint_guardless")
)  # fmt: skip
_GUARD_METHODS = frozenset(("size", "stride", "storage_offset", "dim"))
_GUARD_OPERATORS = (
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.BitAnd, ast.BitOr, ast.BitXor,
    ast.RShift, ast.USub, ast.UAdd, ast.Not, ast.And, ast.Or,
    ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip

_OPERATOR = re.compile(
    # registered kernels: by namespace, since `torch.ops.load_library` is no kernel
    r"torch\.ops\.(?P<namespace>aten|prims|quantized_decomposed|torchvision)"
    r"\.(?P<name>_?[a-z]\w*|__i?(and|or|xor|lshift|rshift)__)\.(?P<overload>[A-Za-z]\w*)"
    r"|torch\.ops\.higher_order\.(cond|while_loop|scan|associative_scan|map_impl|wrap_with_set_grad_enabled"
    r"|wrap_with_autocast|invoke_subgraph|flex_attention)"
    r"|torch\.(sym_(float|int|ite|max|min|not|sqrt|sum)|_sym_sqrt)|math\.(trunc|floor|ceil|sqrt)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_|lshift"
    r"|rshift|getitem)",
    re.ASCII,
)
_REFUSED = ("from_file", "save")  # kernels that read and write files
_TORCHVISION = ("nms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
_CONTAINERS = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")


class Pt2Error(ValueError):
    """The file is not a program of ``torch.export``, or holds more than a graph and numbers."""


class _Term(NamedTuple):
    """A parsed part: how it is written, and bounds of what it can become."""

    text: str
    bits: int
    terms: int


@functools.lru_cache(4096)  # the same few stand at most tensors of a graph
def shape_expression(text: str) -> str:
    """The text, printed anew from what was parsed.

    Raises:
        Pt2Error: it is not an expression of sizes that torch writes.
    """
    with _arithmetic(text):
        return _shape(_parsed(text), MAX_DEPTH).text


def guard(text: str) -> str:
    """The text of a guard, printed anew from what was parsed.

    Raises:
        Pt2Error: it is not a condition on the sizes of inputs.
    """
    with _arithmetic(text):
        tree = _parsed(text)
        _guard(tree, MAX_DEPTH)
        return ast.unparse(tree)


@contextmanager
def _arithmetic(text: str) -> Iterator[None]:
    try:
        yield
    except Pt2Error as error:
        raise Pt2Error(
            f"holds the expression {text[:80]!r}, which is more than arithmetic ({error})"
        ) from error


def _parsed(text: str) -> ast.expr:
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise Pt2Error(f"more than {MAX_TEXT} characters")
    if not text.isprintable():
        raise Pt2Error("characters that cannot be printed")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Pt2Error("no expression") from error


def _shape(node: ast.expr, depth: int) -> _Term:
    if depth == 0:
        raise Pt2Error(f"more than {MAX_DEPTH} levels")
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _Term(node.id, 1, 1)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _shape(node.operand, depth - 1)
        return _bounded(f"-{inner.text}" if inner.text == "oo" else f"Mul(Integer(-1), {inner.text})", inner)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise Pt2Error(f"{type(node).__name__} is not expected here")
    name = node.func.id
    if name in _LEAVES:
        return _LEAVES[name](node)
    fewest, most = _FUNCTIONS.get(name, (0, -1))
    if node.keywords or not fewest <= len(node.args) <= most:
        raise Pt2Error(f"{name[:40]!r} with {len(node.args)} arguments is not a function of sizes")
    parts = [_shape(argument, depth - 1) for argument in node.args]
    text = f"{name}({', '.join(part.text for part in parts)})"
    checked = parts[1:] if name in _DIVISIONS else parts[:1] if name in _POWERS else []
    if any(_ZERO.fullmatch(part.text) for part in checked):
        raise Pt2Error("a division by zero, or a power of zero")
    if name in _DIVISIONS and sum(part.terms for part in parts) > MAX_DIVIDED:
        raise Pt2Error("it grows too large")
    if name in _POWERS:
        return _power(text, parts[0], _exponent(node.args[1]))
    return _bounded(text, *parts, product=name == "Mul")


def _symbol(node: ast.Call) -> _Term:
    name = _literal(node.args[0], str) if len(node.args) == 1 else None
    if name is None or not SYMBOL.fullmatch(name):
        raise Pt2Error("a symbol has another name than torch gives")
    assumptions = []
    for keyword in node.keywords:
        value = _literal(keyword.value, bool)
        if keyword.arg not in _ASSUMPTIONS or value is None:
            raise Pt2Error("a symbol has an unknown assumption")
        assumptions.append(f", {keyword.arg}={value}")
    return _Term(f"Symbol('{name}'{''.join(assumptions)})", 64, 1)


def _number(node: ast.Call) -> _Term:
    """``Integer(3)``, ``Rational(1, 2)``."""
    assert isinstance(node.func, ast.Name)
    values = [_integer(argument) for argument in node.args]
    if node.keywords or len(values) != (2 if node.func.id == "Rational" else 1) or values[1:] == [0]:
        raise Pt2Error("a number has other arguments than torch writes")
    bits = max(value.bit_length() for value in values)
    return _Term(f"{node.func.id}({', '.join(map(str, values))})", bits + 1, 1)


def _float(node: ast.Call) -> _Term:
    """``Float('0.5', precision=53)``."""
    text = _literal(node.args[0], str) if len(node.args) == 1 else None
    precision = [_integer(k.value) for k in node.keywords if k.arg == "precision"]
    if text is None or not re.fullmatch(r"-?\d{1,60}(\.\d{0,60})?(e[+-]?\d{1,3})?", text, re.ASCII):
        raise Pt2Error("a float is written in another way than torch does")
    if len(precision) != len(node.keywords) or any(not 1 <= p <= 256 for p in precision):
        raise Pt2Error("a float has another precision than torch gives")
    return _Term(f"Float('{text}'{''.join(f', precision={p}' for p in precision)})", 64, 1)


_LEAVES: dict[str, Callable[[ast.Call], _Term]] = {
    "Symbol": _symbol, "Integer": _number, "Rational": _number, "Float": _float,
}  # fmt: skip


def _literal(node: ast.expr, kind: type) -> str | None:
    value = node.value if isinstance(node, ast.Constant) else None
    return str(value) if type(value) is kind else None


def _integer(node: ast.expr) -> int:
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, node = -1, node.operand
    value = node.value if isinstance(node, ast.Constant) else None
    if type(value) is not int or value >= MAX_INTEGER:
        raise Pt2Error("an integer is expected, below 2**64")
    return sign * value


def _exponent(node: ast.expr, *, calls: bool = True) -> int:
    """The size of an exponent, which must be a small number: ``Integer(2)``, ``Rational(1, 2)``, ``2``."""
    if calls and isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _LEAVES:
        if node.func.id == "Symbol" or not node.args:
            raise Pt2Error("an exponent is not a number")
        if node.func.id == "Float":
            value = abs(float(_literal(node.args[0], str) or "nan"))
        else:
            value = abs(_integer(node.args[0]))
    else:
        value = abs(_integer(node))
    if not value <= MAX_POWER:
        raise Pt2Error(f"an exponent above {MAX_POWER}")
    return max(1, round(value))


def _power(text: str, base: _Term, exponent: int) -> _Term:
    return _checked(_Term(text, base.bits * exponent + exponent, base.terms**exponent))


def _bounded(text: str, *parts: _Term, product: bool = False) -> _Term:
    terms = 1
    for part in parts:
        terms = terms * part.terms if product else terms + part.terms
        if terms > MAX_TERMS:
            break
    return _checked(_Term(text, sum(part.bits for part in parts) if product else _widest(parts), terms))


def _widest(parts: Iterable[_Term]) -> int:
    bits = [part.bits for part in parts]
    return max(bits) + len(bits)


def _checked(term: _Term) -> _Term:
    if term.bits > MAX_BITS or term.terms > MAX_TERMS:
        raise Pt2Error("it grows too large")
    return term


def _guard(node: ast.expr, depth: int) -> _Term:
    """Bounds of a guard, whose tree is all allowed; its text is printed by whoever asks."""
    if depth == 0:
        raise Pt2Error(f"more than {MAX_DEPTH} levels")
    children: list[ast.expr]
    operators: list[ast.AST]
    if _is_source(node):
        return _Term("", 64, 1)
    if isinstance(node, ast.Constant):
        return _guard_constant(node.value)
    if isinstance(node, ast.Attribute) and ast.unparse(node) in ("math.inf", "math.nan"):
        return _Term("", 1, 1)
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.Pow):
            return _power("", _guard(node.left, depth - 1), _exponent(node.right, calls=False))
        divides = isinstance(node.op, ast.Div | ast.FloorDiv | ast.Mod)
        if divides and isinstance(node.right, ast.Constant) and not node.right.value:
            raise Pt2Error("a division by zero")
        children, operators = [node.left, node.right], [node.op]
    elif isinstance(node, ast.UnaryOp):
        children, operators = [node.operand], [node.op]
    elif isinstance(node, ast.BoolOp):
        children, operators = node.values, [node.op]
    elif isinstance(node, ast.Compare):
        children, operators = [node.left, *node.comparators], list(node.ops)
    elif isinstance(node, ast.Call) and not node.keywords and _dotted(node.func) in _GUARD_FUNCTIONS:
        children, operators = node.args, []
    else:
        raise Pt2Error(f"{type(node).__name__} is not expected in a guard")
    if not all(isinstance(operator, _GUARD_OPERATORS) for operator in operators) or len(children) > 500:
        raise Pt2Error("an operator that guards do not need")
    parts = [_guard(child, depth - 1) for child in children]
    return _bounded("", *parts, product=any(isinstance(operator, ast.Mult) for operator in operators))


def _guard_constant(value: object) -> _Term:
    if type(value) is int and value < MAX_INTEGER:
        return _Term("", value.bit_length() + 1, 1)
    if type(value) in (bool, float):
        return _Term("", 64, 1)
    raise Pt2Error("a constant that is not a number")


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _is_source(node: ast.expr, sizes: bool = True) -> bool:
    """An input, ``L['x']['k'][0]``, or a size of it: ``.size()[0]``, ``.stride()[1]``, ``.dim()``."""
    if sizes and isinstance(node, ast.Subscript) and _is_index(node.slice):
        inner = node.value
        shape = isinstance(inner, ast.Attribute) and inner.attr == "shape" and _is_source(inner.value, False)
        if shape or (_is_method(inner) and _is_index(node.slice)):
            return True
    if sizes and (_is_method(node) or (isinstance(node, ast.Attribute) and node.attr == "ndim")):
        inner = node.func.value if isinstance(node, ast.Call) else node.value  # type: ignore[attr-defined]
        return _is_source(inner, False)
    keys = 0
    while isinstance(node, ast.Subscript):
        key = node.slice
        name = key.value if isinstance(key, ast.Constant) else None
        if not _is_index(key) and not (isinstance(name, str) and KEY.fullmatch(name)):
            return False
        node, keys = node.value, keys + 1
    return keys > 0 and isinstance(node, ast.Name) and node.id == "L"


def _is_method(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and not node.args
        and not node.keywords
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _GUARD_METHODS
        and _is_source(node.func.value, False)
    )


def _is_index(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value < 10_000


def operator(text: str) -> str:
    """The name of an operator.

    Raises:
        Pt2Error: it is not one that netcarve exports.
    """
    found = _OPERATOR.fullmatch(text)
    if found and (space := found["namespace"]):
        name, overload = found["name"], found["overload"]
        if space == "aten":
            full = f"aten::{name}" + ("" if overload == "default" else f".{overload}")
            found = None if name in _REFUSED or full not in _kernels() else found
        elif space == "torchvision":
            found = found if name in _TORCHVISION else None
    if not found:
        raise Pt2Error(f"calls {text[:80]!r}, which is no operator that netcarve exports")
    return text


@functools.cache
def _kernels() -> frozenset[str]:
    """Names of the dispatcher's kernels; those of TorchScript alone, as ``aten::save``, are not there."""
    import torch

    return frozenset(torch._C._dispatch_get_all_op_names())


def tree_spec(text: str) -> str:
    """A tree of containers as ``torch.utils._pytree`` writes it, printed anew.

    Raises:
        Pt2Error: it has other containers than tuples, lists and dicts, or other keys than texts and numbers.
    """
    try:
        protocol, tree = json.loads(text)
        return json.dumps([int(protocol), _tree(tree)])
    except Pt2Error:
        raise
    except (TypeError, KeyError, ValueError, RecursionError) as error:
        raise Pt2Error(f"has {text[:80]!r} as a tree of containers, which is none") from error


def _tree(node: dict[str, Any]) -> dict[str, Any]:
    kind, context, children = node["type"], node["context"], node["children_spec"]
    if kind is not None and kind not in _CONTAINERS:
        raise Pt2Error(f"takes or gives a {str(kind)[:80]}, which is no plain container")
    if kind is not None:
        keys = json.loads(context)
        # Nothing else: torch would import the module that an enum among them names.
        texts = keys if isinstance(keys, list) else [] if keys is None else [keys]
        for key in texts:
            if type(key) not in (int, bool, float) and not (isinstance(key, str) and KEY.fullmatch(key)):
                raise Pt2Error(f"has {str(key)[:80]!r} as a key, which is none")
        context = json.dumps(keys)
    elif context is not None or children:
        raise ValueError("a leaf with children")
    return {"type": kind, "context": context, "children_spec": [_tree(child) for child in children]}
