"""Functions traced into algebra give what NumPy gives, and what cannot be traced is named with its line."""

import functools
import inspect
import itertools
import math
import time

import numpy as np
import pytest
from scipy import special

from nlsq_nb import curve_fit
from nlsq_nb.codegen.lower import build_program
from nlsq_nb.codegen.module import load
from nlsq_nb.codegen.skeletons import render
from nlsq_nb.errors import TracingError
from nlsq_nb.models.inputs import as_model
from nlsq_nb.models.tracing import trace

X = np.array([-2.5, -1.0, -0.3, 0.0, 0.2, 0.7, 1.0, 3.1, 8.0])
COUNTER = itertools.count()


def module_of(traced):
    program = build_program(traced.graph, traced.roots, traced.n_vars, len(traced.params))
    return load(render(program, "reference"))


def values(traced, columns, theta):
    """Values (m, n) of a traced function by its generated NumPy text."""
    with np.errstate(all="ignore"):
        return module_of(traced).values(*columns, np.asarray(theta, float))


def agrees(f, theta, x=X, n_vars=None, params=None):
    traced = trace(f, n_vars, params)
    columns = (x,) if n_vars in (None, 1) else tuple(x)
    with np.errstate(all="ignore"):
        expected = f(x, *theta)
    expected = expected if isinstance(expected, (list, tuple)) else [expected]
    expected = np.stack([np.broadcast_to(part, columns[0].shape) for part in expected])
    np.testing.assert_allclose(values(traced, columns, theta), expected, rtol=1e-13, atol=1e-14)
    return traced


FUNCTIONS = [
    lambda x, a, b: a * np.exp(-b * x),
    lambda x, a, b: 2 - a + x / b - 3 / (b + x**2) + 1.5 * b - (-x),
    lambda x, a, b: a**x + 2**x + x**3 + abs(x) ** b + abs(x) ** 0.5,
    lambda x, a, b: +x % (a + 0.11) + 7 % b + x % -b + np.mod(x, b),
    lambda x, a, b: np.log(x) + np.log2(x) + np.log10(x) + np.log1p(a * x) + np.expm1(x) * b,
    lambda x, a, b: np.sqrt(x) + np.cbrt(x) * a + np.square(x) + np.reciprocal(x - a) + b,
    lambda x, a, b: np.power(np.abs(x), a) + np.float_power(np.fabs(x), b) + np.exp2(x),
    lambda x, a, b: np.sin(a * x) + np.cos(b * x) - np.tan(x),
    lambda x, a, b: np.arcsin(x / 10) + np.arccos(x / 10) * a + np.arctan(b * x),
    lambda x, a, b: np.sinh(x) + np.cosh(a * x) + np.tanh(b * x),
    lambda x, a, b: np.arcsinh(a * x) + np.arccosh(x) + np.arctanh(x / 10) * b,
    lambda x, a, b: np.arctan2(a, x) + np.arctan2(x, -b) + np.hypot(x, b),
    lambda x, a, b: np.sign(x - a) + np.floor(x) + np.ceil(b * x) + np.heaviside(x, a),
    lambda x, a, b: np.minimum(x, a) + np.maximum(b, x) + np.fmin(x, 1) * np.fmax(0, x),
    lambda x, a, b: np.deg2rad(x) + np.radians(a * x) + np.rad2deg(b) + np.degrees(x),
    lambda x, a, b: special.erf(x) + special.erfc(a * x) + special.gamma(b + x**2),
    lambda x, a, b: special.gammaln(a + x**2) + b * special.digamma(2 + x**2) + special.expit(90 * x),
    lambda x, a, b: special.logit(x / 9 + a / 10) + special.xlogy(x, b + x) + special.xlogy(a, b),
    lambda x, a, b: np.where(x > a, a * x, b),
    lambda x, a, b: np.where((x > 0) & (x < a) | ~(x >= -b), a, b * x),
    lambda x, a, b: np.where(np.logical_and(x != 0, np.logical_not(x == 1)), a, b),
    lambda x, a, b: np.where((x > a) ^ (x > b), 1, np.where(np.logical_or(x <= a, x < b), 2, 3)),
    lambda x, a, b: (x > a) * b + (a >= x) - np.logical_xor(x > 0, x > a) * 2,
    lambda x, a, b: np.where(x, a, b) + np.where(True, x, a),  # noqa: FBT003
    lambda x, a, b: np.clip(x, 0, a) + np.clip(x, None, 1) + np.clip(x, a_min=b, a_max=None),
    lambda x, a, b: np.sinc(a * x) + b * np.sinc(x),
    lambda x, a, b: np.polyval((a, b, 3.0), x) + np.polyval([1, 2], a * x) + np.polyval([], x),
    lambda x, a, b: np.select([x > a, x > -b], [x, a], default=-1),
    lambda x, a, b: np.full_like(x, a) + np.zeros_like(x) + b * np.ones_like(x, dtype=float),
    lambda x, a, b: np.sum((a, b)) * x + np.sum([a, b, 1]) + np.array([a, b])[1] + np.sum(a),
    lambda x, a, b: np.array(2.0) * x + np.array([a])[0] * np.array([3]) + np.float32(0.5) + b,
    lambda x, a, b: sum([a * x, b * x, 1]) + np.add(x, a) + np.divide(x, 3) + np.positive(b),
    lambda x, a, b: [a * x, b, 2.0],
    lambda x, a, b: (x > a, np.float64(3)),
    lambda x, a, b: 4,
]


@pytest.mark.parametrize("f", FUNCTIONS, ids=range(len(FUNCTIONS)))
def test_values_are_those_of_numpy(f) -> None:
    assert agrees(f, (0.8, 1.3)).params == ("a", "b")


def test_derivatives_hold_where_textbook_forms_fail() -> None:
    traced = trace(lambda x, a, b: special.expit(a * x) + special.xlogy(b, 2 + x * x), 1, None)
    x = np.array([-800.0, 0.0, 800.0])
    jac = module_of(traced).derivatives(x, np.array([1.0, 0.0]))[0]
    np.testing.assert_allclose(jac[0], [0.0, 0.0, 0.0], atol=1e-300)
    np.testing.assert_allclose(jac[1], np.log(2 + x * x))
    slope = module_of(trace(lambda x, a: special.expit(x + a), 1, None)).derivatives(x, np.zeros(1))
    np.testing.assert_allclose(slope[0, 0], [0.0, 0.25, 0.0], atol=1e-300)


def test_equal_formulas_are_one_node() -> None:
    traced = trace(lambda x, a: [np.exp(-a * x), np.exp(-(x * a)), x - x + np.exp(a * -x)], 1, None)
    assert len(set(traced.roots)) == 1


class TestVariables:
    X2 = np.stack([X, X[::-1] + 0.5])

    def test_rows(self) -> None:
        agrees(lambda x, a: a * x[0] + x[-1] ** 2 + x[1, :] + x[1, ...] + x[np.int64(0)], [2.0], self.X2, 2)

    def test_columns_mean_the_same_as_rows(self) -> None:
        rows = trace(lambda x, a: a * x[0] + x[1], 2, None)
        for f in (
            lambda x, a: a * x[:, 0] + x[:, 1],
            lambda x, a: a * x[..., 0] + x[..., -1],
            lambda x, a: a * x.T[0] + x.T[1],
        ):
            other = trace(f, 2, None)
            assert (other.graph.nodes, other.roots) == (rows.graph.nodes, rows.roots)

    def test_unpacking(self) -> None:
        def f(x, a, b):
            u, v = x
            return a * u + v**b + len(x)

        assert agrees(f, (2.0, 2.0), self.X2, 2).n_vars == 2

    @pytest.mark.parametrize(
        ("f", "text"),
        [
            (lambda x, a: a * x, "x holds 2 variables; take them out first"),
            (lambda x, a: x + a, "x holds 2 variables"),
            (lambda x, a: np.exp(x), "x holds 2 variables"),
            (lambda x, a: np.where(x > 0, a, 0), "x holds 2 variables"),
            (lambda x, a: np.where(a > 0, x, 0), "x holds 2 variables"),
            (lambda x, a: np.asarray(x), "x holds 2 variables"),
            (lambda x, a: x, "x holds 2 variables"),
            (lambda x, a: x == a, "x holds 2 variables"),
            (lambda x, a: x[2], r"x\[2\] but x holds 2 variables"),
            (lambda x, a: x[0:1], r"only x\[0\], x\[:, 0\]"),
            (lambda x, a: x[x[0] > 1], r"only x\[0\], x\[:, 0\]"),
        ],
    )
    def test_refusals(self, f, text) -> None:
        with pytest.raises(TracingError, match=text):
            trace(f, 2, None)

    def test_one_variable_has_no_items(self) -> None:
        for f in (lambda x, a: a * x[0], lambda x, a: [u * a for u in x], lambda x, a: len(x) * a):
            with pytest.raises(TracingError, match=r'name them: x=\("u", "v"\)'):
                trace(f, 1, None)


class TestParameters:
    def test_defaults_are_parameters_and_keywords_are_not(self) -> None:
        def f(x, a, b=2.0, *, c=3.0):
            return a + b * x + c

        traced = trace(f, None, None)
        assert traced.params == ("a", "b")
        np.testing.assert_allclose(values(traced, (X,), (1.0, 5.0))[0], f(X, 1.0, 5.0))

    def test_starred_needs_names(self) -> None:
        def f(x, *p):
            return p[0] * x + sum(p[1:]) + len(p)

        with pytest.raises(TracingError, match=r"\*args.*params="):
            trace(f, 1, None)
        assert agrees(f, (1.0, 2.0, 4.0), params=("u", "v", "w")).params == ("u", "v", "w")

    def test_names_in_another_order_bind_by_name(self) -> None:
        traced = trace(lambda x, a, b: a * x + b, 1, ("b", "a"))
        np.testing.assert_array_equal(values(traced, (X,), (10.0, 2.0))[0], 2.0 * X + 10.0)

    def test_names_may_leave_out_defaults(self) -> None:
        traced = trace(lambda x, a, b=7.0, c=0.5: a * x + b * c, 1, ("a", "c"))
        np.testing.assert_array_equal(values(traced, (X,), (2.0, 3.0))[0], 2.0 * X + 21.0)

    def test_other_names_rename(self) -> None:
        traced = trace(lambda x, a, b: a * x + b, 1, ("slope", "offset"))
        np.testing.assert_array_equal(values(traced, (X,), (2.0, 3.0))[0], 2.0 * X + 3.0)

    @pytest.mark.parametrize(
        ("f", "params", "text"),
        [
            (lambda x, a, b: a, ("p",), r"params names 1 parameters \(p\) but the function takes 2"),
            (lambda x, a: a, ("p", "q"), "params names 2 parameters"),
            (lambda x, a, b: a, ("b", "c"), "params puts 'b' in another place"),
            (lambda x, a, b: a, ("a", "a"), "twice"),
            (lambda: 0, None, "takes no positional argument"),
            (lambda x, *, k: k, None, "keyword-only argument 'k' has no default"),
        ],
    )
    def test_mismatches(self, f, params, text) -> None:
        with pytest.raises(TracingError, match=text):
            trace(f, 1, params)

    def test_partials_and_methods(self) -> None:
        class Shape:
            def line(self, x, a, b):
                return a * x + b

        assert trace(Shape().line, 1, None).params == ("a", "b")
        bound = functools.partial(lambda x, a, b: a * x + b, b=3.0)
        traced = trace(bound, 1, None)
        assert traced.params == ("a",)
        np.testing.assert_array_equal(values(traced, (X,), (2.0,))[0], 2.0 * X + 3.0)

    def test_no_function_no_signature(self) -> None:
        with pytest.raises(TracingError, match="str is not a function"):
            trace("a*x", 1, None)
        assert trace(np.multiply, 1, ("a",)).params == ("a",)


def branches(x, a):
    y = a * x
    if y > 0:
        return y
    return -y


def calls_math(x, a):
    return a * math.exp(x)


def helper(x):
    return np.interp(x, [0, 1], [2, 3])


def calls_helper(x, a):
    return a * helper(x)


def raises(x, a):
    return a * x.undefined


def assigns(x, a):
    y = a * x
    y[x > 1] = 0
    return y


REFUSED = [
    (branches, "neither true nor false.*np.where", "if y > 0"),
    (calls_math, "np.exp instead of math.exp", "math.exp"),
    (calls_helper, "numpy.interp is not traced", "np.interp"),
    (raises, "AttributeError: .undefined of a traced value", "x.undefined"),
    (assigns, "use np.where", "y[x > 1]"),
    (lambda x, a: np.sum(a * x), "np.sum over the points", "np.sum(a"),
]


@pytest.mark.parametrize(("f", "text", "code"), REFUSED)
def test_refusals_name_the_line(f, text, code) -> None:
    with pytest.raises(TracingError, match=text) as caught:
        trace(f, 1, None)
    owner = helper if f is calls_helper else f
    lines, first = inspect.getsourcelines(owner)
    offset = next(k for k, line in enumerate(lines) if code in line)
    message = str(caught.value)
    assert message.startswith(f"line {first + offset} of {__file__}, in {owner.__name__}: ")
    assert "Model.from_callable(f, jac=...)" in message
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("f", "text"),
    [
        (lambda x, a: a // x, r"np.floor\(a / b\)"),
        (lambda x, a: 3 // x, r"np.floor\(a / b\)"),
        (lambda x, a: np.floor_divide(x, a), "NumPy function floor_divide is not traced"),  # noqa: PLW0108
        (lambda x, a: np.fft.fft(x, a), "numpy.fft.fft is not traced"),  # noqa: PLW0108
        (lambda x, a: np.mean(x), "numpy.mean is not traced"),
        (lambda x, a: np.piecewise(x, [x > 0], [a]), "numpy.piecewise is not traced"),
        (lambda x, a: np.add.reduce(x), "function add.reduce is not traced"),
        (lambda x, a: np.add(x, a, out=np.zeros(1)), "option out of add"),
        (lambda x, a: a * special.exprel(x), "function exprel is not traced"),
        (lambda x, a: np.frompyfunc(lambda u: u, 1, 1)(x), "vectorized.* is not traced"),
        (lambda x, a: x @ a, "@ is not traced"),
        (lambda x, a: 0 < x < a, "chained comparisons"),
        (lambda x, a: max(x, a), "np.maximum"),  # noqa: PLW0108
        (lambda x, a: x and a, "neither true nor false"),
        (lambda x, a: [a for _ in range(a)], "range"),
        (lambda x, a: int(a) * x, r"int\(\)"),
        (lambda x, a: x * np.arange(3.0), r"array of shape \(3,\).*one data set"),
        (lambda x, a: np.arange(3.0) * x, r"array of shape \(3,\)"),
        (lambda x, a: np.asarray(x) * a, "an array cannot hold"),
        (lambda x, a: np.array([a * x, a]), "return several outputs as a list"),
        (lambda x, a: np.stack([a * x, a]), "np.stack: an array cannot hold"),
        (lambda x, a: np.sum([a * x, x]), "built-in sum"),
        (lambda x, a: np.ones(x.shape) * a, ".shape of a traced value"),
        (lambda x, a: np.where(x > 0), "np.where needs three arguments"),
        (lambda x, a: np.select([x > 0], [a, x]), "as many choices"),
        (lambda x, a: np.clip(x, 0, 1, out=None), "option out of np.clip"),
        (lambda x, a: np.full_like(x, a, dtype=int), "only float64"),
        (lambda x, a: x & 3, "joins conditions"),
        (lambda x, a: ~x, "joins conditions"),
        (lambda x, a: x * 1j, "complex numbers"),
        (lambda x, a: x + "1", "str cannot be an operand"),
        (lambda x, a: x == None, "NoneType cannot be an operand"),  # noqa: E711
        (lambda x, a: x * 10**400, "OverflowError"),
        (lambda x, a: x * np.inf, "a constant of the model is inf"),
        (lambda x, a: x / 0, "not finite"),
        (lambda x, a: None, "what it returns: None"),
        (lambda x, a: np.zeros(3), "what it returns: ndarray"),
        (lambda x, a: [], "what it returns: an empty list"),
        (lambda x, a: [[a]], "what it returns: list"),
        (lambda x, a: math.nan, "a constant of the model is nan"),
        (lambda x, a: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda x, a: a * deep(x), "RecursionError"),
    ],
)
def test_refusals(f, text) -> None:
    started = time.thread_time()
    with pytest.raises(TracingError, match=text) as caught:
        trace(f, 1, None)
    assert time.thread_time() - started < 0.5
    assert str(caught.value).startswith("line ")


def deep(x):
    return deep(x + 1)


def test_functions_that_change_are_refused() -> None:
    rng = np.random.default_rng(1)
    for f in (lambda x, a: a * x + rng.random(), lambda x, a: a * x + next(COUNTER)):
        with pytest.raises(TracingError, match="two calls gave different formulas"):
            trace(f, 1, None)
    kept = []

    def keeps(x, a):
        kept.append(a)
        return kept[0] * x

    with pytest.raises(TracingError, match="kept from an earlier call"):
        trace(keeps, 1, None)


U = np.linspace(0.5, 5.0, 10)


def by_type(x, a, b):
    return a * x + b if isinstance(x, np.ndarray) else a * x - b


def by_attribute(x, a, b):
    return a * x[0] + b * x[1] if hasattr(x, "dtype") else a * x[0] - b * x[1]


@pytest.mark.parametrize(("f", "x"), [(by_type, U), (by_attribute, np.stack([U, U**2]))], ids=["type", "attribute"])
def test_a_function_that_does_something_else_with_arrays_is_refused(f, x) -> None:
    with pytest.raises(TracingError, match=f"{f.__name__}: with an array as x the function gives other values"):
        as_model(f, x, len(U))


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (lambda x, a: a * np.log(x + 1.0) / x, U - U[0]),  # not finite in the first row
        (lambda x, a, b: a * x[:, 0] + b * x[:, 1], np.stack([U, U**2])),
        (lambda x, a, b: a * x[0] + b * x[1], np.stack([U, U**2], axis=1)),
        (lambda x, a, b: a * x[0] + b * x[1], (U, U**2)),
        (lambda x, a, b: [a * x, b * x], U),
        (lambda x, a: a, U),
        (lambda x, a: a * x**-2, np.arange(1, 11)),  # integers
    ],
)
def test_functions_that_are_right_whatever_they_are_called_with(f, x) -> None:
    assert as_model(f, x, 10).n_params == f.__code__.co_argcount - 1


def test_columns_by_name() -> None:
    table = {"u": U, "v": U**2}
    fitted = curve_fit(lambda x, a, b: a * x["u"] + b * np.sqrt(x["v"] + 1), table, 3 * U - 2 * np.sqrt(U**2 + 1))
    np.testing.assert_allclose(fitted.popt, [3.0, -2.0], rtol=1e-9)
    np.testing.assert_allclose(fitted.predict({"v": [4.0], "u": [2.0]}), 6.0 - 2.0 * np.sqrt(5.0))
    with pytest.raises(TracingError, match=r"x\['w'\] but the variables are u, v"):
        curve_fit(lambda x, a: a * x["w"], table, U)


def test_long_sums_are_fast() -> None:
    started = time.thread_time()
    traced = trace(lambda x, *p: sum(c * np.cos(k * x) for k, c in enumerate(p)), 1, tuple(f"c{k}" for k in range(300)))
    assert time.thread_time() - started < 10.0
    assert len(traced.params) == 300
