"""Texts that torch would evaluate: what passes is arithmetic, and nothing of it runs."""

import contextlib
import math
import re
import sys

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from netcarve.standalone import pt2_texts as texts
from netcarve.standalone.pt2_texts import Pt2Error

EXPRESSIONS = [
    ("Mul(Integer(3), Symbol('s77', positive=True, integer=True))", True),
    ("Add(Integer(1), FloorDiv(Add(Integer(-1), Symbol('s0', integer=True)), Integer(2)))", True),
    ("Pow(Symbol('s0'), Integer(2))", True),
    ("Pow(Symbol('s0'), Rational(1, 2))", True),
    ("Max(Integer(1), Symbol('u0', integer=True))", True),
    ("Equality(Mod(Symbol('s0'), Integer(8)), Integer(0))", True),
    ("Float('0.5', precision=53)", True),
    ("Piecewise(ExprCondPair(Integer(1), StrictLessThan(Symbol('s0'), Integer(4))))", True),
    ("Symbol('s0', **{})", False),
    ("Symbol('__import__')", False),
    ("Symbol('s0', evil=True)", False),
    ("S('1')", False),
    ("S(S('open.__doc__[6]') + S('open.__doc__[6]'))", False),
    ("sympify('1')", False),
    ("Function('f')(Integer(1))", False),
    ("Lambda(Symbol('s0'), Symbol('s0'))", False),
    ("ImmutableDenseMatrix([[Integer(1)]])", False),
    ("Integer('1')", False),
    ("Pow(Integer(9), Pow(Integer(9), Integer(9)))", False),
    ("Pow(Integer(9), Integer(999999))", False),
    ("9**9**9**9", False),
    ("Integer(9**9**9**9)", False),
    ("eval('1')", False),
    ("Symbol('s0').__class__", False),
    ("Add(" * 500 + "Integer(1)" + ")" * 500, False),
    ("Integer(" + "9" * 5000 + ")", False),
    ("FloorDiv(Symbol('s0'), Integer(0))", False),
    ("Mod(Symbol('s0'), Mul(Integer(-1), Integer(0)))", False),
    ("FloatTrueDiv(Symbol('s0'), Float('0.0', precision=53))", False),
    ("ModularIndexing(Symbol('s0'), Integer(0), Integer(2))", False),
    ("Rational(1, 0)", False),
    ("Pow(Integer(0), Integer(-1))", False),
    ("FloorDiv(Integer(0), Symbol('s0'))", True),
    ("FloorDiv(Symbol('s0'), Integer(10))", True),
    ("FloatTrueDiv(Symbol('s0'), Float('0.05', precision=53))", True),
]
GUARDS = [
    ("((L['x'].size()[1]*L['x'].size()[0]) // 2) <= 4", True),
    ("L['kwargs']['x'].stride()[0] != 1 and L['args'][0].dim() == 2", True),
    ("(1 + (((-1) + L['x'].size()[3]) // 2)) != 1", True),
    ("max(1, L['n']) % 8 == 0", True),
    ("not (torch.sym_float(L['n']) / 2.0 < 0.5)", True),
    ("__import__('os').system('true')", False),
    ("().__class__", False),
    ("L['x'].__class__", False),
    ("L['x'].size().__class__", False),
    ("L['x'].data.apply_(print)", False),
    ("torch.load('x')", False),
    ("math.factorial(10)", False),
    ("9**9**9**9 < L['n']", False),
    ("L['n'] * (2 << 10**10)", False),
    ("[x for x in (1, 2)]", False),
    ("lambda: 1", False),
    ("1\n+1", False),
    ("1 #", True),
    ("(" * 500, False),
    ("x := 3", False),
    ("L['a\"b'].size()[0] == 1", False),
    ("'a' * 10**10", False),
    ("L['n'] // 0 == 1", False),
    ("L['n'] % 0.0 == 1", False),
    ("0 // L['n'] == 0", True),
]


@pytest.mark.parametrize(("read", "text", "fine"), [
    *((texts.shape_expression, *one) for one in EXPRESSIONS), *((texts.guard, *one) for one in GUARDS),
])  # fmt: skip
def test_arithmetic_and_no_more(read, text, fine):
    if not fine:
        with pytest.raises(Pt2Error, match="more than arithmetic"):
            read(text)
        return
    assert read(read(text)) == read(text)
    assert "#" not in read(text)


def sums(*sizes):
    """A product of sums of so many symbols."""
    terms = [", ".join(f"Symbol('s{i}')" for i in range(size)) for size in sizes]
    return f"Mul({', '.join(f'Add({one})' for one in terms)})"


def nested(levels):
    text = "Symbol('s77', positive=True, integer=True)"
    for _ in range(levels):
        text = f"Add(Integer(1), FloorDiv(Add(Integer(-1), {text}), Integer(2)))"
    return text


@pytest.mark.parametrize(
    ("small", "large", "reason"),
    [
        (nested(9), nested(10), "30 levels"),
        (sums(60), sums(150), "2000 characters"),
        (sums(10, 10, 10), sums(13, 13, 13), "grows too large"),
        (f"CeilDiv({sums(4, 6)}, {sums(4)})", f"CeilDiv({sums(20, 20)}, {sums(20)})", "grows too large"),
    ],
)
def test_what_costs_sympy_seconds_is_refused(small, large, reason):
    """The last took it 2 s, in 900 characters."""
    assert texts.shape_expression(small)
    with pytest.raises(Pt2Error, match=reason):
        texts.shape_expression(large)


def test_guards_are_as_short_as_expressions():
    assert texts.guard("L['n'] == " + "+".join("1" * 25))
    for long in ("L['n'] == " + "1 + " * 500 + "1", "-" * 31 + "L['n']"):
        with pytest.raises(Pt2Error, match=r"characters|levels"):
            texts.guard(long)


def test_what_is_printed_means_the_same():
    """To sympy with torch's functions, as torch reads it."""
    import sympy
    from torch.utils._sympy import functions

    known = {name: getattr(functions, name) for name in ("FloorDiv", "Mod")}
    for text, fine in EXPRESSIONS[:9]:
        if fine:
            assert sympy.sympify(texts.shape_expression(text), known) == sympy.sympify(text, known)


NAMES = ["Add", "Mul", "Pow", "Symbol", "Integer", "S", "sympify", "Function", "FloorDiv", "Max", "Eq",
         "Float", "eval", "open", "Lambda", "Matrix", "parse_expr", "Rational", "true", "LShift"]  # fmt: skip
OPERATORS = ["+", "-", "*", "//", "**", "%", "<<", ">>", "&", "|", "<", "==", "and", "or", "@", "."]
LEAVES = st.one_of(
    st.integers(-3, 10**30).map(str),
    st.sampled_from(["'s0'", "'open.__doc__[6]'", "Symbol('s0', integer=True)", "Integer(2)", "x", "open",
                     "1.5", "'1e9'", "__builtins__", "L['x'].size()[0]", "L['x']", "L['n']"]),
)  # fmt: skip
CALLS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(NAMES), st.lists(inner, max_size=3)).map(
            lambda c: f"{c[0]}({', '.join(c[1])})"
        ),
        st.tuples(inner, st.sampled_from(OPERATORS), inner).map(" ".join),
        inner.map("({})".format),
        inner.map("-{}".format),
    ),
    max_leaves=12,
)
KNOWN = "|".join([*texts._FUNCTIONS, "Integer", "Rational", *texts._CONSTANTS])
WRITTEN = re.compile(
    rf"(\b({KNOWN})\b|Symbol\('[a-z]+\d+'|Float\('[-\d.e+]+'|\b[a-z_]+=(True|False|\d+)|-?\b\d+\b|[(), -])*"
)


@given(CALLS)
@example("0 ** Integer(2)")
@settings(max_examples=600, deadline=None)
def test_what_passes_is_the_grammar_and_nothing_runs(text):
    opened = []
    AUDITED.append(opened.append)
    try:
        for read, grammar in ((texts.shape_expression, WRITTEN), (texts.guard, None)):
            try:
                made = read(text)
            except Pt2Error:
                continue
            assert read(made) == made
            assert grammar is None or grammar.fullmatch(made)
            evaluated = {"L": {"x": torch.zeros(3, 2), "n": 3}, "math": math, "torch": torch}
            if grammar is None and "L['x']" not in text.replace("L['x'].size()[0]", ""):
                with contextlib.suppress(ArithmeticError, TypeError, ValueError):
                    eval(made, {"__builtins__": {"max": max, "min": min, "abs": abs}}, evaluated)
    finally:
        AUDITED.pop()
    assert not opened


AUDITED: list = []


def _audit(event, arguments):
    if AUDITED and event in ("open", "import", "os.system", "subprocess.Popen", "socket.connect", "exec"):
        name = str(arguments[0])
        if event != "exec" or "__doc__" in name:
            AUDITED[-1]((event, name))


sys.addaudithook(_audit)
