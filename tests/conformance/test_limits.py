"""Values and derivatives where a factor is 0 and another infinite: the limits that mpmath finds close by."""

import math
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest

from nlsq_nb import Model, NumericsError, curve_fit
from nlsq_nb.backends import get_backend
from nlsq_nb.codegen.body import PointBody
from nlsq_nb.core.chunk import Chunk

from .test_derivatives import exact, partial

ALIASES = {"atan2": "arctan2", "atan": "arctan", "pow": "power"}
TINY = mpmath.mpf(10) ** -300
DIGITS = 650  # what x ± 1e-300 and differences around it need

# model, θ in order of appearance, x at the edge, side from which the limit is taken (0: at x itself)
EDGES = [
    # 0·log 0
    ("a*x**b", (2.0, 1.7), 0.0, 1),
    ("a*x**b", (2.0, 0.3), 0.0, 1),
    ("a*(x/e0)**b", (2.0, 1.5, 1.7), 0.0, 1),
    ("a*(x/e0)**b", (2.0, 1.5, 0.4), 0.0, 1),
    ("a*(1 - exp(-(x/t)**b))", (2.0, 1.5, 0.7), 0.0, 1),
    ("a*(1 - exp(-((x - m)/t)**b))", (2.0, 0.5, 1.5, 2.2), 0.5, 1),
    ("a*(x*(x + b))**c", (2.0, 0.5, 1.3), 0.0, 1),
    ("a*(x*(x - b))**c", (2.0, 0.5, 1.3), 0.5, 1),
    ("a*(b*x + c*x**2)**d", (2.0, 0.5, 1.3, 0.6), 0.0, 1),
    ("a*(x - m)**b + c", (2.0, 0.5, 2.3, 1.0), 0.5, 1),
    ("a*(1 - exp(-b*x))**c", (2.0, 0.5, 0.7), 0.0, 1),
    ("a*(cosh(b*x) - 1)**c", (2.0, 0.5, 0.3), 0.0, 1),
    ("a*maximum(x - m, 0)**b + c", (2.0, 0.5, 0.7, 1.0), 0.25, 0),
    ("a*minimum(x, m)**b + c", (2.0, 0.5, 0.7, 1.0), 0.0, 1),
    ("a*x**b*(1 - x)**c", (2.0, 1.7, 0.6), 0.0, 1),
    ("a*x**b*(1 - x)**c", (2.0, 1.7, 0.6), 1.0, -1),
    ("a*x*log(x) + b", (2.0, 0.3), 0.0, 1),
    ("a*x*log(b*x)", (2.0, 0.3), 0.0, 1),
    ("a*x**b*log(x)", (2.0, 0.3), 0.0, 1),
    ("a*sqrt(x)*log10(b*x)", (2.0, 0.3), 0.0, 1),
    ("-a*(1 - x)*log(1 - x) - b*x*log(x)", (2.0, 0.3), 1.0, -1),
    ("-a*(1 - x)*log(1 - x) - b*x*log(x)", (2.0, 0.3), 0.0, 1),
    # 0/0
    ("sqrt(a*x)", (2.0,), 0.0, 1),
    ("exp(-sqrt(a*x) - b*x**1.5)", (2.0, 0.3), 0.0, 1),
    ("a*sqrt(b*x + c*x**2)", (2.0, 0.3, 0.7), 0.0, 1),
    ("(a*x)**1.5 + (b*x)**2.5", (2.0, 0.3), 0.0, 1),
    ("a*sinc(b*x)", (2.0, 0.3), 0.0, 1),
    ("a*sin(b*x)/(b*x)", (2.0, 0.3), 0.0, 1),
    ("a*sin(2*x)/x + b", (2.0, 0.3), 0.0, 1),
    ("a*(sin(b*(x - c))/(x - c))**2", (2.0, 0.3, 0.5), 0.5, 1),
    ("atan2(a*x, b*x)", (2.0, 0.3), 0.0, 0),
    ("(1 - exp(-b*x))/x", (0.7,), 0.0, 1),
    ("a*(1 - exp(-b*x))/(b*x) + c", (2.0, 0.7, 0.1), 0.0, 1),
    ("a*((1 - exp(-x/t))/(x/t) - exp(-x/t)) + c", (2.0, 1.5, 0.1), 0.0, 1),
    ("a*((1 - exp(-b*x))/x)**2", (2.0, 0.7), 0.0, 1),
    ("a*(exp(-c*x) - exp(-b*x))/x", (2.0, 0.7, 0.3), 0.0, 1),
    ("a*log(1 + b*x)/x", (2.0, 0.7), 0.0, 1),
    ("a*log1p(b*x)/x + c*expm1(b*x)/x", (2.0, 0.7, 0.3), 0.0, 1),
    ("a*sinh(b*x)/x + c*tan(b*x)/x", (2.0, 0.7, 0.3), 0.0, 1),
    ("a*tanh(b*x)/x + c*erf(b*x)/x + d*atan(b*x)/x", (2.0, 0.7, 0.3, 0.9), 0.0, 1),
    ("a*(1 - cos(b*x))/x**2", (2.0, 0.7), 0.0, 1),
    ("a*x/(1 - exp(-b*x))", (2.0, 0.7), 0.0, 1),
    ("a*x/(exp(b*x) - 1) + c", (2.0, 0.7, 0.1), 0.0, 1),
    ("a*(1 - exp(-b*x))/log(1 + c*x)", (2.0, 0.7, 0.3), 0.0, 1),
    ("a*(1 - exp(-b*(x - 0.5)))/(x - 0.5)", (2.0, 0.7), 0.5, 1),
    ("a*sin(b*x)/(1 - exp(-c*x))", (2.0, 0.7, 0.3), 0.0, 1),
    # 0·∞ and ∞/∞ of a pole
    ("a*exp(-b/x)", (2.0, 0.3), 0.0, 1),
    ("a*exp(-(b/x)**c) + d", (2.0, 0.3, 1.5, 1.0), 0.0, 1),
    ("a*exp(-b/x)/x**2", (2.0, 0.3), 0.0, 1),
    ("a/(x**5*(exp(b/x) - 1))", (2.0, 0.3), 0.0, 1),
    ("a*exp(-log(x/m)**2/(2*s**2))", (2.0, 0.3, 0.7), 0.0, 1),
    ("a*exp(-log(x/m)**2/(2*s**2))/(x*s)", (2.0, 0.3, 0.7), 0.0, 1),
    ("d + (a - d)/(1 + (x/c)**b)", (1.0, 3.0, 0.7, -1.3), 0.0, 1),
    ("d + (a - d)/(1 + (x/c)**b)**g", (1.0, 3.0, 0.7, -1.3, 0.8), 0.0, 1),
    ("a/(1 + (k/x)**n)", (2.0, 0.3, 1.7), 0.0, 1),
    ("a/(1 + b/x)", (2.0, 0.3), 0.0, 1),
    ("a*(1 + b/x)**-c", (2.0, 0.3, 0.7), 0.0, 1),
    ("a*tanh(b/x) + c*erf(b/x) + d*atan(b/x)", (2.0, 0.3, 0.7, 1.1), 0.0, 1),
    # overflow and underflow
    ("a/(1 + exp(-k*(x - m)))", (2.0, 1.5, 0.3), -2e3, 0),
    ("a/(1 + exp(-k*(x - m)))", (2.0, 1.5, 0.3), 2e3, 0),
    # exp is finite there, exp times x is not
    ("a/(1 + exp(-k*(x - m)))", (2.0, 1.0, 0.0), -709.5, 0),
    ("a*exp(k*x)/(1 + exp(k*x))**2", (2.0, 1.0), 709.5, 0),
    ("a*exp(k*x)/(1 + exp(k*x))**2", (2.0, 1.0), -709.5, 0),
    ("a/sqrt(1 + exp(-k*x))", (2.0, 1.0), -709.5, 0),
    ("a/(1 + exp(-k*x))**c", (2.0, 1.0, 0.7), -709.5, 0),
    ("a/(1 + b*exp(-k*x))**c", (2.0, 1.5, 0.3, 0.7), -5e3, 0),
    ("a*exp(k*x)/(1 + exp(k*x))", (2.0, 1.5), 2e3, 0),
    ("a*exp(k*x)/(b + c*exp(k*x))", (2.0, 1.5, 0.3, 0.7), 2e3, 0),
    ("a*exp(k*x)/(exp(k*x) + exp(m*x))", (2.0, 1.5, 0.7), 2e3, 0),
    ("a*exp(k*x)/(exp(k*x) + exp(m*x))", (2.0, 1.5, 0.7), -2e3, 0),
    ("a*log(1 + exp(k*(x - m)))", (2.0, 1.5, 0.7), 2e3, 0),
    ("a*log1p(exp(k*x)) + log1p(exp(b*x))", (2.0, 1.5, 0.7), 2e3, 0),
    ("a*exp(k*x)/(1 + exp(k*x))**2", (2.0, 1.5), 2e3, 0),
    ("a*exp(k*x)/(1 + exp(k*x))**2", (2.0, 1.5), -2e3, 0),
    ("a*exp(-b*exp(-c*x))", (2.0, 1.5, 0.7), -2e3, 0),
    ("a*exp(-c*x - b*exp(-c*x))", (2.0, 1.5, 0.7), -2e3, 0),
    ("a*exp(-c*x)*exp(-b*exp(-c*x))", (2.0, 1.5, 0.7), -2e3, 0),
    ("a/(exp((x - m)/t) + 1)", (2.0, 1.5, 1e-2), 1e3, 0),
    ("a/cosh((x - m)/s)**2", (2.0, 1.5, 0.7), 1e3, 0),
    ("a*tanh((x - m)/s)", (2.0, 1.5, 0.7), 1e3, 0),
    ("a*exp(-((x - m)/s)**2)", (2.0, 1.5, 0.7), 1e100, 0),
    ("a*erf((x - m)/s)", (2.0, 1.5, 0.7), 1e200, 0),
    # sides that are not taken
    ("where(x > 0, a*log(x), b) + c", (2.0, 1.5, 0.7), 0.0, 0),
    ("where(x > m, a*(x - m)**b, 0) + c", (2.0, 0.5, 0.7, 1.0), 0.25, 0),
    ("a*Heaviside(x - m)*(1 - exp(-(x - m)/s)) + b", (2.0, 1.5, 0.1, 1.0), -1e3, 0),
    ("a*Heaviside(x - m)*sqrt(x - m) + b*Heaviside(x)", (2.0, 1.5, 0.1), -1e3, 0),
]


# at a kink: the mean of both sides, as for |u|
KINKS = [
    ("a*abs(x - m)", (2.0, 0.5), 0.5),
    ("a*sqrt((x - m)**2)", (2.0, 0.5), 0.5),
    ("a*sqrt((x - m)**2 + s**2)", (2.0, 0.5, 0.0), 0.5),
    ("a*sqrt((x - m)**2 + (x - s)**2)", (2.0, 0.5, 0.5), 0.5),
    ("a*exp(-abs(x - m)/s)", (2.0, 0.5, 0.7), 0.5),
]


def compiled(model, x, theta):
    """Values and derivatives of the compiled kernel, (n,) and (n, p)."""
    kernel = get_backend("cpu", 1).compile(model.program, np.float64)
    n, p = len(x), len(theta)
    values, derivatives = np.empty((1, n)), np.empty((1, p, n))
    kernel.entry("rows", Chunk(0, (x,), (np.zeros(n),)), derivatives)(0, n, np.array(theta), values)
    return values[0], derivatives[0].T


@pytest.mark.parametrize(("text", "theta", "edge", "side"), EDGES)
def test_limits_are_those_of_mpmath(text, theta, edge, side):
    model = Model(text)
    x = np.array([edge])
    values, derivatives = model(x, *theta), model.jacobian(x, *theta)
    with mpmath.workdps(DIGITS if side else 50):
        f = exact(text, ("x",), model.params)
        point = [mpmath.mpf(edge) + side * TINY, *map(mpmath.mpf, theta)]
        if "atan2" not in text:  # at 0 mpmath has no angle; NumPy's is 0
            np.testing.assert_allclose(values, float(mpmath.re(f(*point))), rtol=1e-13, atol=1e-13)
            slopes = [float(mpmath.re(partial(f, point, k))) for k in range(1, len(point))]
            np.testing.assert_allclose(derivatives, [slopes], rtol=1e-13, atol=1e-13)
    assert np.isfinite(values).all()
    assert np.isfinite(derivatives).all()


@pytest.mark.parametrize(("text", "theta", "edge"), KINKS)
def test_at_a_kink_the_derivative_is_the_mean_of_both_sides(text, theta, edge):
    model = Model(text)
    (slopes,) = model.jacobian(np.array([edge]), *theta)
    for k, slope in enumerate(slopes):
        step = np.zeros(len(theta))
        step[k] = 1e-6
        sides = [model(np.array([edge]), *(theta + s * step))[0] - model(np.array([edge]), *theta)[0] for s in (-1, 1)]
        assert slope == pytest.approx((sides[1] - sides[0]) / 2e-6, abs=1e-9)


# every sixth as machine code in the fast tests: one compilation each
KERNELS = [pytest.param(*row, marks=[] if k % 6 == 0 else [pytest.mark.slow]) for k, row in enumerate(EDGES)]


@pytest.mark.parametrize(("text", "theta", "edge", "side"), KERNELS)
def test_compiled_kernels_have_the_same_limits(text, theta, edge, side):
    model = Model(text)
    x = np.full(9, edge)
    x[1::2] += 0.25 * (side or 1)
    values, derivatives = compiled(model, x, theta)
    np.testing.assert_allclose(values, model(x, *theta), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(derivatives, model.jacobian(x, *theta), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("text", "theta", "edge", "side"), EDGES[::3])
def test_gpu_text_is_guarded_too(text, theta, edge, side):
    """The scalar text of the CUDA target, run as Python."""
    program = Model(text).program
    body = PointBody(program, "cuda", 1)
    device = {name: getattr(np, ALIASES.get(name, name), None) for name in dir(math)} | {"erf": np.vectorize(math.erf)}
    scope = {"math": SimpleNamespace(**device), "np": np, "sinc": np.sinc, "dsinc": lambda u: 0.0 * u}
    scope |= {"x0": np.float64(edge), **{f"p{i}": np.float64(v) for i, v in enumerate(theta)}}
    with np.errstate(all="ignore"):
        for line in body.prologue + body.lines:
            exec(line, scope)
    found = [scope[d] if d in scope else float(d or 0) for row in body.derivatives for d in row]
    np.testing.assert_allclose(found, Model(text).jacobian([edge], *theta)[0], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    "text",
    ["a*exp(-b*x) + c", "a*exp(-((x - m)/s)**2) + c", "a/(1 + ((x - m)/s)**2)", "v*x/(k + x)", "a*tanh(b*x) + c",
     "a*sqrt(b + x) + c", "a*log(b + c*x)", "(1 + (b*x)**2)**c", "a*sin(w*x + d)*exp(-b*x)", "a*erf((x - m)/s)"],
)  # fmt: skip
def test_other_models_are_not_guarded(text):
    assert not {i.op for i in Model(text).program.body} & {"where", "eq"}


def test_quotients_of_quotients_do_not_grow_without_end():
    text = "x"
    for _ in range(12):
        text = f"(1 - exp(-b*({text})))/x"
    assert len(Model(f"a*{text}").program.body) < 2000


@pytest.mark.parametrize(
    "text", ["a/x", "a*(1 - exp(-b*x))/x**2", "a*cos(b*x)/x", "a*where(x >= 0, 1, 0)/x", "a*x/(x*x)"]
)
def test_a_pole_stays_visible(text):
    model = Model(text)
    with np.errstate(all="ignore"):
        assert not np.isfinite(model(np.array([0.0]), *[2.0, 0.7][: model.n_params])).any()


def test_a_parameter_of_zero_in_a_denominator_stays_visible():
    x = np.array([0.0, 1.0, 2.0])
    assert not np.isfinite(Model("a/(1 + x/k)").jacobian(x, 2.0, 0.0)[1:, 1]).any()
    with np.errstate(all="ignore"):
        guarded = Model("a/(1 + (x/k)**n)").jacobian(x, 2.0, 0.0, 1.0)
    assert not np.isfinite(guarded[1:, 1]).any()
    with pytest.raises(NumericsError, match="derivative by parameter 'k'"):
        curve_fit("a/(1 + (x/k)**n)", x + 1, [3.0, 2.0, 1.0], [2.0, 0.0, 1.0], backend="reference")


FITS = {
    "a*(x/e0)**b + c": ((2.0, 1.5, 1.7, 0.3), (1.0, 1.5, 1.0, 0.0), {"e0": (1.5, 1.5)}),
    "a*(1 - exp(-b*x))**c": ((2.0, 0.7, 0.6), (1.0, 1.0, 1.0), {}),
    "d + (a - d)/(1 + (x/c)**b)": ((1.0, 3.0, 2.0, -1.8), (0.5, 2.0, 1.0, -1.0), {}),
    "a*exp(-b/x) + c": ((2.0, 3.0, 0.4), (1.0, 1.0, 0.0), {}),
    "a*sqrt(b*x + c*x**2) - x": ((1.0, 3.0, 0.4), (1.0, 1.0, 1.0), {"a": (1.0, 1.0)}),
    "a*x*log(b*x) + c": ((1.2, 3.0, 0.4), (1.0, 1.0, 0.0), {}),
    "a*sin(b*x)/(b*x) + c": ((1.2, 3.0, 0.4), (1.0, 2.5, 0.0), {}),
    "a*exp(-log(x/m)**2/(2*s**2))/x + c": ((1.2, 3.0, 0.4, 0.1), (1.0, 2.5, 0.5, 0.0), {}),
}


@pytest.mark.parametrize("text", FITS)
def test_fits_with_x_from_zero(text):
    theta, start, bounds = FITS[text]
    x = np.linspace(0.0, 8.0, 81)
    y = Model(text)(x, *theta)
    result = curve_fit(Model(text), x, y, start, bounds=bounds or (-np.inf, np.inf), backend="reference")
    assert result.success
    np.testing.assert_allclose(result.popt, theta, rtol=1e-7)
    far = curve_fit(Model(text), x[1:], y[1:], theta, bounds=bounds or (-np.inf, np.inf), backend="reference")
    assert far.n_points == result.n_points - 1


def test_a_logistic_curve_is_found_from_a_start_that_overflows():
    x = np.linspace(0.0, 2000.0, 101)
    y = Model("a/(1 + exp(-k*(x - m)))")(x, 2.0, 0.05, 900.0)
    result = curve_fit("a/(1 + exp(-k*(x - m)))", x, y, {"a": 1, "k": 1.0, "m": 950.0}, backend="reference")
    assert result.success
    np.testing.assert_allclose(result.popt, [2.0, 0.05, 900.0], rtol=1e-7)
