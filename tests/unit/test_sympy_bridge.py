"""SymPy expressions become graphs of the same value, graphs become SymPy again, and bad input fails fast."""

import math
import subprocess
import sys
import time

import numpy as np
import pytest
import sympy
from sympy.codegen import cfunctions

from nlsq_nb.codegen.functions import ARITY
from nlsq_nb.codegen.graph import COMPARISONS, Graph
from nlsq_nb.codegen.lower import build_program
from nlsq_nb.codegen.module import load
from nlsq_nb.codegen.skeletons import render
from nlsq_nb.errors import ModelError
from nlsq_nb.models.sympy_bridge import from_sympy, to_sympy
from nlsq_nb.models.tracing import trace

a, b, u, x = sympy.symbols("a b u x")
THETA = {"a": 0.8, "b": 1.3}
X = np.array([-2.5, -1.0, -0.3, 0.0, 0.2, 0.7, 1.0, 3.1])


def values(graph, roots, columns, theta):
    program = build_program(graph, roots, len(columns), len(theta))
    with np.errstate(all="ignore"):
        return load(render(program, "reference")).values(*columns, np.asarray(theta, float))


def exact(expr, point):
    """Value by SymPy; nan where it is not a finite real number."""
    value = sympy.N(expr.subs({x: sympy.Float(point), a: sympy.Float(0.8), b: sympy.Float(1.3)}))
    return float(value) if value.is_number and value.is_real and value.is_finite else math.nan


EXPRESSIONS = [
    a * sympy.exp(-b * x) + sympy.Rational(1, 3) + x**5 / 7 - 2,
    sympy.pi * a + sympy.E**x + sympy.GoldenRatio * x + sympy.EulerGamma - sympy.Float("0.1"),
    sympy.sqrt(x**2 + a) + 1 / sympy.sqrt(x + 3) + (x + 3) ** sympy.Rational(1, 3) + (x + 3) ** (-b),
    a**x + 2**x + (x**2 + a) ** b,
    sympy.log(x + 3) + sympy.log(x + 3, 2) + sympy.log(a + 3, x + 9),
    sympy.sin(x) + sympy.cos(a * x) - sympy.tan(b * x),
    sympy.sec(x) + sympy.csc(x + 5) + sympy.cot(x + 4),
    sympy.asin(x / 4) + sympy.acos(x / 4) * a + sympy.atan(x),
    sympy.asec(x + 9) + sympy.acsc(x + 9) + sympy.acot(a * x) + sympy.acot(x),
    sympy.sinh(x) + sympy.cosh(x) * a + sympy.tanh(b * x),
    sympy.sech(x) + sympy.csch(x + 4) + sympy.coth(x + 4),
    sympy.asinh(x) + sympy.acosh(x + 4) + sympy.atanh(x / 4),
    sympy.asech((x + 4) / 8) + sympy.acsch(x + 4) + sympy.acoth(x + 4),
    sympy.atan2(a, x - 5) + sympy.atan2(x, b),
    sympy.Abs(x - a) + sympy.sign(x) * b + sympy.floor(x) - sympy.ceiling(a * x),
    sympy.erf(x) + sympy.erfc(a * x) + sympy.gamma(x + 4) + sympy.loggamma(x + 4),
    a * sympy.digamma(x**2 + 2) + sympy.polygamma(0, x + 4),
    sympy.Min(x, a, b * x, 1) + sympy.Max(x, -a, 0),
    sympy.Heaviside(x) + sympy.Heaviside(x, a) + sympy.Heaviside(x - a, 0),
    sympy.sinc(a * x) + sympy.sinc(x),
    sympy.Mod(x + 9, a + 0.01) + sympy.Mod(x, -b),
    sympy.Piecewise((a, x > 1), (b * x, sympy.And(x > -1, sympy.Or(x < 0, sympy.Not(x < a)))), (x, True)),
    sympy.Piecewise((a, sympy.Eq(x, 0)), (b, sympy.Ne(x, 1) & (x <= 1)), (x**2, x >= 3), (-1, True)),
    sympy.Piecewise((0, sympy.true & (x < 0)), (a, True), evaluate=False),
    cfunctions.log1p(x + 3) + cfunctions.expm1(x) + cfunctions.log2(x + 4) - cfunctions.log10(x + 4),
    cfunctions.exp2(x) + cfunctions.hypot(x, a) + cfunctions.Sqrt(x + 4) + cfunctions.Cbrt(x + 4),
    sympy.Integer(3),
]


@pytest.mark.parametrize("expr", EXPRESSIONS, ids=range(len(EXPRESSIONS)))
def test_values_and_round_trip(expr) -> None:
    graph, roots, params = from_sympy(expr, ("x",), ("a", "b"))
    found = values(graph, roots, (X,), [THETA[name] for name in params])[0]
    plain = expr.expand(func=True) if expr.has(cfunctions.hypot) else expr.doit()
    expected = [exact(plain, point) for point in X]
    assert np.isfinite(expected).any()
    np.testing.assert_allclose(found, expected, rtol=2e-13, atol=1e-14)

    (written,) = to_sympy(graph, roots, ("x",), params)
    assert written.free_symbols <= {a, b, x}
    again = from_sympy(written, ("x",), params)
    np.testing.assert_allclose(
        values(again[0], again[1], (X,), [THETA[name] for name in params])[0], found, rtol=2e-13, atol=1e-14
    )


def test_acot_has_a_derivative_at_zero() -> None:
    graph, roots, _ = from_sympy(sympy.acot(x + a), ("x",), None)
    module = load(render(build_program(graph, roots, 1, 1), "reference"))
    with np.errstate(all="ignore"):
        slope = module.derivatives(np.array([-1e9, -1.0, 0.0, 2.0]), np.zeros(1))[0, 0]
    np.testing.assert_allclose(slope, [-1e-18, -0.5, -1.0, -0.2])


class TestNames:
    def test_order(self) -> None:
        c, z = sympy.symbols("c z")
        assert from_sympy(z * x + c * u + b, ("x", "u"), None)[2] == ("b", "c", "z")
        assert from_sympy(z * x + c, ("x",), ("z", "q", "c"))[2] == ("z", "q", "c")

    def test_several_outputs_and_variables(self) -> None:
        graph, roots, params = from_sympy([a * x + u, a * u**2], ("x", "u"), None)
        assert params == ("a",)
        np.testing.assert_array_equal(
            values(graph, roots, (X, 2 * X), [3.0]), [3.0 * X + 2 * X, 3.0 * (2 * X) ** 2]
        )

    def test_unknown_symbol(self) -> None:
        with pytest.raises(ModelError, match="the symbol b is not one of x, a"):
            from_sympy(a * x + b, ("x",), ("a",))

    def test_assumptions_do_not_matter_unless_ambiguous(self) -> None:
        real = sympy.Symbol("a", real=True)
        assert from_sympy(real * x, ("x",), None)[2] == ("a",)
        with pytest.raises(ModelError, match="two different symbols are called a "):
            from_sympy(real * x + a, ("x",), None)
        with pytest.raises(ModelError, match="two different symbols are called q "):
            from_sympy(sympy.Dummy("q") * sympy.Dummy("q"), ("x",), None)

    @pytest.mark.parametrize("name", ["lambda", "x);import os", "", "a b", "a-b", "1a", "α₁ ", "q" * 500 + "!"])
    def test_refused(self, name) -> None:
        with pytest.raises(ModelError) as caught:
            from_sympy(x * sympy.Symbol(name), ("x",), None)
        assert repr(name)[:40] in str(caught.value)
        assert "expr.subs" in str(caught.value)
        assert len(str(caught.value)) < 200

    def test_only_plain_text_is_a_name(self) -> None:
        class Crafted(str):
            __slots__ = ()

            def __repr__(self) -> str:
                raise AssertionError("called")

        symbol = sympy.Symbol(Crafted("a"))
        symbol.name = Crafted("crafted")
        with pytest.raises(ModelError, match="the symbol name 'crafted' is not"):
            from_sympy(symbol * x, ("x",), None)


def tower(depth):
    value = x
    for _ in range(depth):
        value = sympy.sin(value, evaluate=False)
    return value


Q = sympy.Function("Q")
HOSTILE = [
    (sympy.gamma(10**9, evaluate=False) * x, r"the constant gamma\(1000000000.0\)"),
    (sympy.Mul(sympy.Pow(10, 10**9, evaluate=False), x, evaluate=False), r"the constant pow\(10.0, 1000000000.0\)"),
    (sympy.exp(sympy.exp(1000, evaluate=False), evaluate=False), r"the constant exp\(1000.0\)"),
    (sympy.Integer(10) ** 400 * x, "too large for float64"),
    (sympy.Integer(7) ** 200_000 * x, "too large for float64"),
    (sympy.Float("1e400") * x, "too large for float64"),
    (tower(5000), "nested deeper than 1000"),
    (sympy.I * a, "the imaginary unit I"),
    (sympy.zoo, "ComplexInfinity is in the expression"),
    (sympy.nan, "NaN is in the expression"),
    (sympy.oo, "Infinity is in the expression"),
    (sympy.Max(-sympy.oo, sympy.floor(x), evaluate=False), "NegativeInfinity is in the expression"),
    (sympy.Integral(sympy.exp(-(x**2)), (x, 0, a)), r"Integral is not supported.*expr.doit\(\)"),
    (sympy.Sum(x**u, (u, 0, 10**9)), "Sum is not supported"),
    (sympy.Derivative(Q(x), x), "Derivative is not supported"),
    (sympy.Subs(Q(x), x, a), "Subs is not supported"),
    (Q(x) * a, "undefined function Q is not supported.*supported: Abs"),
    (sympy.Function("exp" * 99)(x), "undefined function expexp.{34}…"),
    (sympy.Indexed("q", 1) * x, "Indexed is not supported"),
    (sympy.besselj(1, x), "besselj is not supported"),
    (sympy.factorial(x), "factorial is not supported"),
    (sympy.polygamma(2, x), "polygamma is supported for orders 0 and 1 only"),
    (sympy.polygamma(a, x), "polygamma is supported for orders 0 and 1 only"),
    (sympy.MatrixSymbol("M", 2, 2), "MatrixSymbol is not supported"),
    (sympy.ImmutableMatrix([x, a]), "ImmutableDenseMatrix is not supported"),
    (sympy.Piecewise((a, x > 0)), r"Piecewise .* end it with \(expression, True\)"),
    (sympy.Piecewise((a, sympy.ITE(x > 0, a > 1, a > 2)), (0, True), evaluate=False), "ITE is not supported"),
    (sympy.Piecewise((1, sympy.And(a, x > 0, evaluate=False)), (0, True)), "a condition such as x < 3 is needed"),
    (sympy.re(x), "re is not supported"),
    (1 / sympy.Add(sympy.Float(2), -2, evaluate=False), r"the constant pow\(0.0, -1.0\)"),
    (x > a, "StrictGreaterThan is not a SymPy expression"),
    ("a*x", "str is not a SymPy expression"),
    ([a * x, None], "NoneType is not a SymPy expression"),
]


@pytest.mark.parametrize(("expr", "text"), HOSTILE, ids=range(len(HOSTILE)))
def test_refused_fast(expr, text) -> None:
    spent = []
    while len(spent) < 3 and (not spent or min(spent) >= 0.1):  # a garbage collection can fall into one try
        started = time.thread_time()
        with pytest.raises(ModelError, match=text):
            from_sympy(expr, ("x",), None)
        spent.append(time.thread_time() - started)
    assert min(spent) < 0.1


def test_subclasses_of_supported_functions_are_refused() -> None:
    class mysin(sympy.sin):  # noqa: N801
        pass

    with pytest.raises(ModelError, match="mysin is not supported"):
        from_sympy(mysin(x, evaluate=False), ("x",), None)


def test_shared_subexpressions_are_visited_once() -> None:
    value = x
    for _ in range(200):  # 3**200 paths
        value = sympy.Add(
            sympy.Mul(value, value, evaluate=False), sympy.sin(value, evaluate=False), evaluate=False
        )
    started = time.thread_time()
    assert len(from_sympy(value, ("x",), None)[0].nodes) < 1000
    assert time.thread_time() - started < 0.5


def test_long_sums() -> None:
    terms = [sympy.Mul(a, sympy.Pow(x, k), evaluate=False) for k in range(2, 10_002)]
    expr = sympy.Add(*terms, evaluate=False)
    started = time.thread_time()
    graph, roots, params = from_sympy(expr, ("x",), None)
    assert time.thread_time() - started < 10.0  # a look at all pairs takes minutes
    assert params == ("a",)
    assert len(graph.nodes[roots[0]].args) == 10_000


class TestWriting:
    def test_numbers(self) -> None:
        graph = Graph()
        for value in (3.0, -2.0, 0.1, 1e300, 5e-324, 2.0**53, 1 / 3):
            (written,) = to_sympy(graph, [graph.const(value)], ("x",), ())
            assert float(written) == value
            assert written.is_Integer == (value in (3.0, -2.0, 2.0**53))

    def test_natural_forms(self) -> None:
        traced = trace(lambda x, a, b: [a * x**0.5, 2 * x + 1, np.log10(x), b / x, np.where(x > a, b, 0)], 1, None)
        written = to_sympy(traced.graph, traced.roots, ("x",), traced.params)
        choice = sympy.Piecewise((b, x > a), (0, True), evaluate=False)
        assert written == [a * sympy.sqrt(x), 2 * x + 1, sympy.log(x, 10), b / x, choice]

    def test_nested_choices_are_one_piecewise(self) -> None:
        expr = sympy.Piecewise((a, x > 1), (b, x < -1), (x, True))
        graph, roots, params = from_sympy(expr, ("x",), None)
        assert to_sympy(graph, roots, ("x",), params) == [expr]

    @pytest.mark.parametrize("name", sorted(ARITY))
    def test_every_function(self, name) -> None:
        graph = Graph()
        shift = {"acosh": 5.0, "acos": 0.0, "asin": 0.0, "atanh": 0.0, "dsinc": 0.0, "sinc": 0.0}.get(name, 3.0)
        inner = graph.combine(shift, [(0.25, graph.variable(0))])
        root = graph.call(name, *[inner, graph.param(0)][: ARITY[name]])
        (written,) = to_sympy(graph, [root], ("x",), ("a",))
        again = from_sympy(written, ("x",), ("a",))
        # the values alone: not every function has a derivative
        expected, found = (evaluate(g, r) for g, r in ((graph, root), (again[0], again[1][0])))
        np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-15)
        point = {x: sympy.Float(0.7), a: sympy.Float(1.5)}
        np.testing.assert_allclose(float(sympy.N(written.subs(point))), evaluate(graph, root, 0.7), rtol=1e-14)

    def test_every_condition(self) -> None:
        graph = Graph()
        tests = [graph.compare(op, graph.variable(0), graph.const(1.0)) for op in COMPARISONS]
        tests += [graph.logic(op, *tests[:2]) for op in ("and", "or")] + [graph.logic("not", tests[0])]
        roots = [graph.where(test, graph.param(0), graph.const(0.0)) for test in tests]
        written = to_sympy(graph, roots, ("x",), ("a",))
        again = from_sympy(written, ("x",), ("a",))
        np.testing.assert_array_equal(
            values(again[0], again[1], (X,), [2.0]), values(graph, roots, (X,), [2.0])
        )

    def test_large_powers_are_not_multiplied_out(self) -> None:
        graph = Graph()
        base = graph.combine(0.0, [(3.0, graph.param(0))])
        root = graph.power(base, graph.const(1e9))
        started = time.thread_time()
        (written,) = to_sympy(graph, [root], ("x",), ("a",))
        assert time.thread_time() - started < 0.5
        assert written.args == (3 * a, sympy.Integer(10**9))


def evaluate(graph, root, point=None):
    """Value of a node with a = 1.5, which is hidden from differentiation."""
    columns = (np.array([-1.0, -0.1, 0.0, 0.3, 1.0]) if point is None else np.array([point]),)
    text = render(build_program(graph, [root], 1, 0), "reference")
    text = text.replace("theta):\n", "theta):\n    p0 = theta[0]\n")
    with np.errstate(all="ignore"):
        return load(text).values(*columns, np.array([1.5]))[0]


def test_sympy_is_imported_only_when_needed() -> None:
    code = (
        "import sys, nlsq_nb.models.sympy_bridge, nlsq_nb.models.tracing as t; "
        "t.trace(lambda x, a: a * x, 1, None); sys.exit('sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
