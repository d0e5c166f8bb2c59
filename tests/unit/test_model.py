"""`Model`: what is read off an expression, what it is stored as, and models given as functions."""

import ast
import json
import math
import pickle

import numpy as np
import pytest
import sympy

from nlsq_nb import CovarianceWarning, Model, ModelError, TracingError, curve_fit

X = np.linspace(0.1, 3.0, 30)
THETA = (2.0, 0.7, 0.3)
TEXT = "a*exp(-b*x) + c"


def f(x, a, b, c):
    return a * np.exp(-b * x) + c


def jac(x, a, b, c):
    e = np.exp(-b * x)
    return np.stack([e, -a * x * e, np.ones_like(x)], axis=1)


def point(x, a, b, c):
    return a * math.exp(-b * x) + c


def jac_point(x, a, b, c):
    e = math.exp(-b * x)
    return e, -a * x * e, 1.0


def two(x, a, b):
    return a * x[0] + b * x[1] ** 2


MODELS = {
    "text": Model(TEXT),
    "sympy": Model(sympy.sympify(TEXT)),
    "traced": Model.from_function(f),
    "callable": Model.from_callable(f, jac=jac),
    "kernel": Model.from_kernel(point, jac_point),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_values_and_derivatives(model):
    assert model.params == ("a", "b", "c")
    assert model.x == ("x",)
    assert (model.n_params, model.n_outputs) == (3, 1)
    np.testing.assert_allclose(model(X, *THETA), f(X, *THETA), rtol=1e-14)
    np.testing.assert_allclose(model.jacobian(X, *THETA), jac(X, *THETA), rtol=1e-13)
    assert model(X, *THETA).dtype == np.float64


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_pickle(model):
    again = pickle.loads(pickle.dumps(model))
    assert (again.params, again.x, again.name) == (model.params, model.x, model.name)
    assert again.linear_params == model.linear_params
    np.testing.assert_array_equal(again(X, *THETA), model(X, *THETA))
    np.testing.assert_array_equal(again.jacobian(X, *THETA), model.jacobian(X, *THETA))


ROUND_TRIPS = [
    Model(TEXT, name="decay"),
    Model(["a*x + b", "a*x**2 - where(x < b, c, 1)"]),
    Model("a*u + b*atan2(v, 2)", x=("u", "v"), params=("b", "spare", "a")),
    Model("a*x + 1e-300 + 0.1*b"),
]


@pytest.mark.parametrize("model", ROUND_TRIPS)
@pytest.mark.parametrize("used", [False, True])
def test_json(model, used):
    if used:  # derivatives are no part of what is stored
        _ = model.program
    text = model.to_json()
    again = Model.from_json(text)
    assert again.to_json() == text
    assert (again.params, again.x, again.name, again.n_outputs) == (model.params, model.x, model.name, model.n_outputs)
    assert again.source("cpu") == model.source("cpu")
    assert isinstance(json.loads(text), dict)
    assert "exp(" not in text


def test_functions_have_no_json():
    with pytest.raises(ModelError, match="given as Python functions and has no expression"):
        MODELS["callable"].to_json()
    for model in (MODELS["callable"], MODELS["kernel"]):
        with pytest.raises(ModelError, match="no expression"):
            model.explain()
        assert model.linear_params == ()


def test_explain():
    text = Model(TEXT).explain()
    lines = text.splitlines()
    assert lines[0].startswith("f = ")
    assert any(line.strip().startswith("df/da = exp(") for line in lines)
    assert any(line.strip() == "df/dc = 1" for line in lines)
    assert "linear: a, c; nonlinear: b" in lines
    assert any("operations:" in line and "after sharing" in line for line in lines)
    assert "df/dspare = 0" in Model("a*x", params=("a", "spare")).explain()
    assert "df1/da" in Model(["a*x", "a*x + b"]).explain()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("target", ["cpu", "cuda", "reference"])
@pytest.mark.parametrize("text", [TEXT, "where(x < a, b*x, gamma(c*x))*sinc(d*x)", ["a*x", "b*erf(x*a)"]])
def test_source_is_python(text, target, weighted):
    source = Model(text).source(target, weighted=weighted)
    compile(source, "generated", "exec")
    assert ast.parse(source).body


def test_source_of_functions():
    with pytest.raises(ModelError, match="no code is generated"):
        MODELS["callable"].source()
    with pytest.raises(ModelError):
        MODELS["text"].source("fortran")
    compile(MODELS["kernel"].source("cpu"), "generated", "exec")


def test_sources_of_models_that_differ_in_a_literal_differ():
    one, other = (Model(f"a*x + {literal}*b").source("cpu") for literal in ("0.1", "0.1000000000000001"))
    assert one != other
    # names do not matter: the same algebra is the same kernel
    assert Model("k*t + 0.1*m", x="t").source("cpu") == one


@pytest.mark.parametrize("rule", [jac, "2-point", "3-point", "cs"])
def test_callable_with_every_rule(rule):
    model = Model.from_callable(f, jac=rule)
    tolerance = {"2-point": 1e-6, "3-point": 1e-9, "cs": 1e-14}.get(rule if isinstance(rule, str) else "", 1e-14)
    np.testing.assert_allclose(model.jacobian(X, *THETA), jac(X, *THETA), rtol=tolerance, atol=tolerance)
    zero = model.jacobian(X, 0.0, 0.7, 0.0)
    np.testing.assert_allclose(zero, jac(X, 0.0, 0.7, 0.0), rtol=tolerance, atol=tolerance)


def test_callable_of_two_variables():
    x = np.stack([X, X**2])
    model = Model.from_callable(two, jac="cs", x=("u", "v"))
    np.testing.assert_allclose(model(x, 2.0, 3.0), two(x, 2.0, 3.0))
    np.testing.assert_allclose(model({"v": x[1], "u": x[0]}, 2.0, 3.0), two(x, 2.0, 3.0))
    np.testing.assert_allclose(model.jacobian(x, 2.0, 3.0), np.stack([x[0], x[1] ** 2], axis=1), rtol=1e-14)
    result = curve_fit(model, x, two(x, 2.0, 3.0), [1, 1])
    np.testing.assert_allclose(result.popt, [2.0, 3.0], rtol=1e-9)


def test_callable_that_returns_a_number():
    model = Model.from_callable(lambda x, a: a, jac="3-point")
    np.testing.assert_array_equal(model(X, 3.0), np.full_like(X, 3.0))


def test_parameter_names_of_functions():
    def starred(x, *p):
        return p[0] * x + p[1]

    with pytest.raises(ModelError, match=r"does not name its parameters; pass params="):
        Model.from_callable(starred)
    with pytest.raises(TracingError, match=r"\*args"):
        Model.from_function(starred)
    for build in (Model.from_callable, Model.from_function):
        model = build(starred, params=("slope", "offset"))
        np.testing.assert_allclose(model(X, 2.0, 1.0), 2 * X + 1)
    result = curve_fit(starred, X, 2 * X + 1, [1.0, 1.0])
    assert result.names == ("p0", "p1")
    np.testing.assert_allclose(result.popt, [2.0, 1.0], rtol=1e-9)


@pytest.mark.parametrize("kind", ["text", "kernel", "callable", "traced"])
def test_every_kind_fits_the_same(kind):
    y = f(X, *THETA) + 0.01 * np.random.default_rng(0).normal(size=len(X))
    expected = curve_fit(TEXT, X, y, [1, 1, 0], gauss_newton_tol=1e-12)
    result = curve_fit(MODELS[kind], X, y, [1, 1, 0], gauss_newton_tol=1e-12)
    assert result.success
    np.testing.assert_allclose(result.popt, expected.popt, rtol=1e-9)
    np.testing.assert_allclose(result.pcov, expected.pcov, rtol=1e-7)
    sigma = np.linspace(0.01, 0.02, len(X))
    np.testing.assert_allclose(
        curve_fit(MODELS[kind], X, y, [1, 1, 0], sigma, gauss_newton_tol=1e-12).popt,
        curve_fit(TEXT, X, y, [1, 1, 0], sigma, gauss_newton_tol=1e-12).popt,
        rtol=1e-9,
    )


def test_kernel_of_two_variables():
    model = Model.from_kernel(
        lambda u, v, a, b: a * u + b * v * v, lambda u, v, a, b: (u, v * v), x=("u", "v"), name="plane"
    )
    assert model.params == ("a", "b")
    x = np.stack([X, np.cos(X)])
    result = curve_fit(model, x, 2 * x[0] - 3 * x[1] ** 2, [1, 1])
    np.testing.assert_allclose(result.popt, [2.0, -3.0], rtol=1e-9)


# -- several outputs -----------------------------------------------------------------------------
def test_several_outputs():
    model = Model(["a*cos(w*x)", "a*sin(w*x) + c"])
    assert model.n_outputs == 2
    values, derivatives = model(X, 2.0, 1.5, 0.5), model.jacobian(X, 2.0, 1.5, 0.5)
    np.testing.assert_allclose(values, [2 * np.cos(1.5 * X), 2 * np.sin(1.5 * X) + 0.5], rtol=1e-14)
    assert derivatives.shape == (2, len(X), 3)
    np.testing.assert_allclose(derivatives[0, :, 1], -2 * X * np.sin(1.5 * X), rtol=1e-13)
    np.testing.assert_array_equal(derivatives[0, :, 2], 0.0)
    np.testing.assert_array_equal(derivatives[1, :, 2], 1.0)


def test_several_outputs_fit_as_one_long_problem():
    rng = np.random.default_rng(4)
    y = np.array([2 * np.cos(1.5 * X), 2 * np.sin(1.5 * X) + 0.5]) + 0.01 * rng.normal(size=(2, len(X)))
    result = curve_fit(["a*cos(w*x)", "a*sin(w*x) + c"], X, y, [1, 1.4, 0])
    flag = np.repeat([0.0, 1.0], len(X))
    stacked = curve_fit(
        "where(k < 0.5, a*cos(w*x), a*sin(w*x) + c)", {"x": np.tile(X, 2), "k": flag}, y.ravel(), [1, 1.4, 0]
    )
    assert result.success
    assert result.n_points == 2 * len(X)
    assert result.dof == 2 * len(X) - 3
    np.testing.assert_allclose(result.popt, stacked.popt, rtol=1e-9)
    np.testing.assert_allclose(result.pcov, stacked.pcov, rtol=1e-7)
    assert result.fun.shape == y.shape
    np.testing.assert_allclose(result.fun.ravel(), stacked.fun, atol=1e-9)
    sigma = np.full(y.shape, 0.01)
    sigma[1] = 0.03
    weighted = curve_fit(["a*cos(w*x)", "a*sin(w*x) + c"], X, y, [1, 1.4, 0], sigma, absolute_sigma=True)
    assert weighted.chi2 == pytest.approx(np.sum((weighted.fun / sigma) ** 2), rel=1e-10)


def test_several_outputs_from_a_function():
    model = Model.from_function(lambda x, a, b: [a * x, b * x**2])
    np.testing.assert_allclose(model(X, 2.0, 3.0), [2 * X, 3 * X**2])


# -- structure -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "linear"),
    [
        (TEXT, ("a", "c")),
        ("a*x + b", ("a", "b")),
        ("a*exp(-((x - m)/s)**2) + b*x + c", ("a", "b", "c")),
        ("a*b*x + c", ("a", "c")),
        ("a*x/(b + x)", ("a",)),
        ("(a + b*x)/(1 + c*x)", ("a", "b")),
        ("exp(a*x)", ()),
        ("a**2*x + b", ("b",)),
        ("a*sin(w*x) + b*cos(w*x)", ("a", "b")),
        ("where(x < k, a, b*x)", ("a", "b")),
        ("abs(a)*x + b", ("b",)),
        ("(a + b)**2 - a**2 - b**2 + x*c", ("a", "c")),  # 2*a*b
        (["a*x + b", "a**2*x + c"], ("b", "c")),
    ],
)
def test_linear_parameters(text, linear):
    model = Model(text)
    assert model.linear_params == linear
    # jointly linear: the model is the sum of its parts
    index = [model.params.index(name) for name in linear]
    rng = np.random.default_rng(2)
    theta, one, other = rng.uniform(0.5, 1.5, (3, model.n_params))
    for values in (one, other):
        values[[k for k in range(model.n_params) if k not in index]] = theta[
            [k for k in range(model.n_params) if k not in index]
        ]
    middle = model(X, *(0.3 * one + 0.7 * other))
    np.testing.assert_allclose(middle, 0.3 * model(X, *one) + 0.7 * model(X, *other), rtol=1e-12)


def test_expression_is_sympys():
    a, b, c, x = sympy.symbols("a b c x")
    assert sympy.simplify(Model(TEXT).expr - (a * sympy.exp(-b * x) + c)) == 0
    assert len(Model(["a*x", "b*x"]).expr) == 2


def test_parameters_of_an_expression_are_sorted():
    z, m, a, x = sympy.symbols("z m a x")
    assert Model(z * x + m * x**2 + a).params == ("a", "m", "z")
    assert Model(z * x + m * x**2 + a, params=("z", "m", "a")).params == ("z", "m", "a")


def test_wrong_number_of_parameters():
    with pytest.raises(ModelError, match=r"3 parameters .* needed, 2 given"):
        Model(TEXT)(X, 1.0, 2.0)


def test_repr_is_the_constructor():
    model = Model("a*u + b*v", x=("u", "v"))
    assert repr(model) == "Model('a*u + b*v', x=('u', 'v'), params=('a', 'b'))"
    assert "f" in repr(MODELS["callable"])


def test_fit_of_a_model_keeps_its_names():
    with pytest.warns(CovarianceWarning, match="for spare"):
        result = curve_fit(Model("b*x + a", params=("a", "spare", "b")), X, 2 * X + 1, backend="reference")
    assert result.names == ("a", "spare", "b")
    np.testing.assert_allclose(result.popt, [1.0, 1.0, 2.0], rtol=1e-9)
