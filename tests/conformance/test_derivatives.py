"""Values and derivatives against mpmath at 50 digits, and random expressions against the reference.

mpmath evaluates the model's text itself and differentiates it numerically at a higher precision still: nothing of the
parser, of the differentiation or of the printers is shared.

An error is scaled by max(|value|, root mean square over the points), as in nlsq_nb.testing; 1e-12 leaves room for the
conditioning of the expressions (arguments of exp and sin of some tens, x far out).
"""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nlsq_nb import Model
from nlsq_nb.backends import get_backend
from nlsq_nb.codegen.evaluate import evaluate
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.testing import EXPRESSIONS, TOLERANCE, scaled_error

DIGITS = 50
POINTS = 6


def piecewise(*pairs):
    return next(value for value, condition in pairs if condition)


SAME_NAME = (
    "acos acosh asin asinh atan atan2 atanh cos cosh digamma erf erfc exp expm1 floor gamma loggamma log log1p sign "
    "sin sinc sinh sqrt tan tanh power pi e ln"
)
NAMES = {
    **{
        name: getattr(mpmath, name)
        for name in SAME_NAME.split()
    },
    "abs": abs,
    "Abs": abs,
    "arccos": mpmath.acos,
    "arccosh": mpmath.acosh,
    "arcsin": mpmath.asin,
    "arcsinh": mpmath.asinh,
    "arctan": mpmath.atan,
    "arctan2": mpmath.atan2,
    "arctanh": mpmath.atanh,
    "ceil": mpmath.ceil,
    "gammaln": mpmath.loggamma,
    "lgamma": mpmath.loggamma,
    "log10": lambda u: mpmath.log(u) / mpmath.log(10),
    "log2": lambda u: mpmath.log(u) / mpmath.log(2),
    "Min": min,
    "Max": max,
    "minimum": min,
    "maximum": max,
    "pow": mpmath.power,
    "where": lambda condition, yes, no: yes if condition else no,
    "Piecewise": piecewise,
    "Heaviside": lambda u, at0=0.5: at0 if u == 0 else mpmath.mpf(u > 0),
    "__builtins__": {},
}


def exact(text, variables, params):
    """The text as a function of mpmath numbers: f(x..., theta...)."""
    code = compile(text.replace("~", " not ").strip(), text, "eval")

    def f(*arguments):
        return mpmath.mpmathify(eval(code, NAMES, dict(zip((*variables, *params), arguments, strict=True))))

    return f


def partial(f, arguments, k):
    """The derivative by argument k: central differences, which mpmath takes at more digits."""

    def along(u):
        return f(*arguments[:k], u, *arguments[k + 1 :])

    return mpmath.diff(along, arguments[k])


def real(value):
    """A float of an mpmath number; its imaginary part is nothing but rounding."""
    assert abs(mpmath.im(value)) <= mpmath.mpf(10) ** (10 - DIGITS) * (1 + abs(value))
    return float(mpmath.re(value))


def defined(f, point):
    """Whether the text has a value at the point itself, not only a limit (see test_limits)."""
    try:
        return bool(mpmath.isfinite(f(*point)))
    except (ValueError, ZeroDivisionError):
        return False


def kinked(f, arguments, k):
    """Whether the one-sided derivatives differ: a step or an edge lies at the point."""
    h = mpmath.mpf(10) ** -12
    values = [f(*arguments[:k], arguments[k] + s * h, *arguments[k + 1 :]) for s in (-1, 0, 1)]
    left, right = (values[1] - values[0]) / h, (values[2] - values[1]) / h
    return abs(left - right) > 1e-6 * (1 + abs(left) + abs(right))


@pytest.mark.parametrize("entry", EXPRESSIONS, ids=str)
def test_values_and_derivatives_are_those_of_mpmath(entry):
    model = entry.model()
    x = entry.data(POINTS).x
    texts = (entry.text,) if isinstance(entry.text, str) else entry.text
    columns = x if len(x) > 1 else x[0]
    values = np.reshape(model(columns, *entry.theta), (len(texts), POINTS))
    jacobian = np.reshape(model.jacobian(columns, *entry.theta), (len(texts), POINTS, len(entry.theta)))
    checked = 0
    with mpmath.workdps(DIGITS):
        for o, text in enumerate(texts):
            f = exact(text, model.x, model.params)
            points = [[mpmath.mpf(float(v)) for v in (*row, *entry.theta)] for row in zip(*x, strict=True)]
            known = [i for i, point in enumerate(points) if defined(f, point)]
            wanted = np.array([real(f(*points[i])) for i in known])
            assert scaled_error(values[o, known], wanted) <= 1e-12
            for j, name in enumerate(model.params):
                k = len(x) + j
                smooth = [i for i in known if not kinked(f, points[i], k)]
                derivatives = np.array([real(partial(f, points[i], k)) for i in smooth])
                checked += len(smooth)
                assert scaled_error(jacobian[o, smooth, j], derivatives) <= 1e-12, f"d/d{name}"
    assert checked >= 0.8 * len(texts) * len(entry.theta) * POINTS, "too few smooth points to mean anything"


def test_limits_of_powers_at_zero():
    x = np.array([0.0])
    assert Model("a*x**b")(x, 2.0, 1.7).tolist() == [0.0]
    assert Model("a*x**b").jacobian(x, 2.0, 1.7).tolist() == [[0.0, 0.0]]
    assert Model("a*(x/e0)**b").jacobian(x, 2.0, 1.5, 1.7).tolist() == [[0.0, 0.0, 0.0]]
    assert Model("a*x**b").jacobian(x, 2.0, 0.0)[0, 0] == 1.0  # 0**0 is 1, as in NumPy
    assert Model("(a*x)**1").jacobian(x, 2.0).tolist() == [[0.0]]


# Arguments stay within some hundreds by construction (|leaf| <= 2, three levels), so that 1e-13 holds for sin of them.
LEAVES = st.one_of(st.sampled_from(["x", "y", "a", "b", "c"]), st.sampled_from(["0.37", "-1.25", "2", "pi", "1e-3"]))
UNARY = [
    "sin({})",
    "cos({})",
    "tanh({})",
    "atan({})",
    "erf({})",
    "asinh({})",
    "exp(-({})**2)",
    "sqrt(1 + ({})**2)",
    "log1p(({})**2)",
    "1/(1 + ({})**2)",
    "-({})",
    "({})**2",
    "(1 + ({})**2)**1.3",
    "sinc({})",
]
BINARY = [
    "({} + {})",
    "({} - {})",
    "({} * {})",
    "(({})/(1.5 + cos({})))",
    "Min({}, {})",
    "Max({}, {})",
    "where(x < 0.3711, {}, {})",
    "where(y > x*0.7113 or a*x < -0.3, {}, {})",
    "(1.1 + sin({}))**tanh({})",
    "atan2({}, 1.7 + cos({}))",
]


def grown(smaller):
    one = st.builds(lambda form, u: form.format(u), st.sampled_from(UNARY), smaller)
    two = st.builds(lambda form, u, v: form.format(u, v), st.sampled_from(BINARY), smaller, smaller)
    return st.one_of(one, two, two)


THETA = {"a": 1.3, "b": -0.8, "c": 0.45}
TEXTS = grown(grown(st.one_of(LEAVES, grown(LEAVES))))


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(TEXTS)
def test_random_expressions_are_the_same_on_cpu(text):
    model = Model(f"a*{text} + b*x + c", x=("x", "y"))
    rng = np.random.default_rng(5)
    x = (rng.uniform(-2, 2, 300), rng.uniform(-2, 2, 300))
    theta = np.array([THETA[name] for name in model.params])
    kernel = get_backend("cpu", 1).compile(model.program, np.float64)
    values, derivatives = np.empty((1, 300)), np.empty((1, model.n_params, 300))
    kernel.entry("rows", Chunk(0, x, (np.zeros(300),)), derivatives)(0, 300, theta, values)
    for found, what in ((values, "values"), (derivatives, "derivatives")):
        assert scaled_error(found, evaluate(model.program, what, x, theta)) <= 10 * TOLERANCE, text


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(TEXTS)
def test_derivatives_of_random_expressions(text):
    text = f"a*{text} + b*x + c"
    model = Model(text, x=("x", "y"))
    theta = [THETA[name] for name in model.params]
    point = (-0.71234, 1.31)
    value = model(np.array([[p] for p in point]), *theta)
    jacobian = model.jacobian(np.array([[p] for p in point]), *theta)
    with mpmath.workdps(DIGITS):
        f = exact(text, ("x", "y"), model.params)
        arguments = [mpmath.mpf(v) for v in (*point, *theta)]
        wanted = real(f(*arguments))
        assert math.isclose(value[0], wanted, rel_tol=1e-12, abs_tol=1e-12)
        for j in range(model.n_params):
            if not kinked(f, arguments, 2 + j):
                wanted = real(partial(f, arguments, 2 + j))
                assert math.isclose(jacobian[0, j], wanted, rel_tol=1e-11, abs_tol=1e-11), model.params[j]
