"""Success is claimed only where it is earned: saddles, flat places, functions that mix rows, changed data."""

import json
import logging
import re
import threading

import numpy as np
import pytest

from nlsq_nb import ConfigError, ConvergenceWarning, CovarianceWarning, DataError, Model, ModelError, curve_fit

X = np.linspace(0.0, 10.0, 50)


@pytest.mark.parametrize(("n", "step"), [(100, 0.1), (50, 0.1), (200, 0.05), (30, 0.3)])
def test_coinciding_terms_are_a_saddle(n, step):
    # From equal starts both terms stay equal: stationary by symmetry, singular, and not the answer.
    x = np.arange(n) * step
    result = curve_fit("a*exp(-b*x) + c*exp(-d*x)", x, 3 * np.exp(-0.5 * x) + 2 * np.exp(-3 * x), backend="reference")
    assert result.success
    found = sorted(zip(result.popt[::2], result.popt[1::2], strict=True))
    np.testing.assert_allclose(found, [(2, 3), (3, 0.5)], rtol=1e-8)


def test_a_derivative_that_vanishes_by_symmetry():
    result = curve_fit("b**2*x + c", X, 0.5 * X + 1, bounds=([-1, -9], [1, 9]), backend="reference")
    assert result.success
    np.testing.assert_allclose(np.abs(result.popt), [np.sqrt(0.5), 1], rtol=1e-8)
    result = curve_fit("x*cos(b)", X, -X, p0=[0], backend="reference")
    assert np.cos(result.popt[0]) == pytest.approx(-1)


def test_redundant_parameters_are_named_and_the_fit_stands():
    with pytest.warns(CovarianceWarning, match="a, b"):
        result = curve_fit("a*b*x", X, 2 * X, backend="reference")
    assert result.popt.prod() == pytest.approx(2)
    assert np.isinf(result.perr).all()


def test_a_flat_place_is_not_a_solution():
    with pytest.warns(ConvergenceWarning, match="does not change with any free parameter") as told:
        result = curve_fit("exp(-((x - m)/0.5)**2)", X, np.exp(-(((X - 5) / 0.5) ** 2)), p0=[60], backend="reference")
    assert {w.category for w in told} == {ConvergenceWarning, CovarianceWarning}
    assert not result.success
    assert result.status.name == "FLAT"


def test_slope_hidden_by_rounding_is_found():
    # A line over time stamps: JᵀJ is singular to working precision, the sse still tells the slope, and J its error.
    x = 1.7e9 + np.arange(100.0)
    y = 3 + 2 * x + np.random.default_rng(0).normal(size=100)
    with pytest.warns(CovarianceWarning):
        result = curve_fit("a + b*x", x, y, backend="reference", covariance_method="normal")
    assert result.sse < 200
    assert result.popt[1] == pytest.approx(2, abs=0.01)
    assert np.isinf(result.perr).all()
    sure = curve_fit("a + b*x", x, y, backend="reference")
    centred = curve_fit("a + b*x", x - 1.7e9, y - 3.4e9, backend="reference")
    assert sure.popt[1] == pytest.approx(centred.popt[1], rel=1e-8)
    assert sure.perr[1] == pytest.approx(centred.perr[1], rel=1e-6)
    assert sure.perr[0] == pytest.approx(1.7e9 * centred.perr[1], rel=1e-6)


def test_function_that_mixes_rows_is_refused():
    x = np.linspace(0, 10, 5000)

    def g(x, a, b):
        return a * (x - x.mean()) + b

    with pytest.raises(ModelError, match="block by block"):
        curve_fit(g, x, g(x, 2, 3), p0=[1, 1], jac="3-point")


@pytest.mark.parametrize("value", [lambda x: None, lambda x: ["a"] * len(x), lambda x: x + 0j])
def test_function_that_does_not_return_reals(value):
    with pytest.raises(ModelError, match="reals are needed"):
        curve_fit(lambda x, a: value(a * x), X, X, p0=[1], jac="3-point")


def test_squares_that_underflow_are_refused():
    with pytest.raises(DataError, match="underflow"):
        curve_fit("a*x + b", X, 1e-170 * (2 * X + 1), backend="reference")


def test_residuals_of_changed_data_are_refused():
    y = 2 * X + np.sin(X)
    result = curve_fit("a*x + b", X, y, backend="reference")
    y[:] = 0
    with pytest.raises(DataError, match="changed"):
        result.fun  # noqa: B018
    with pytest.raises(ValueError, match="read-only"):
        result.popt[0] = 1


def test_square_x_is_ambiguous_for_predict():
    x = np.random.default_rng(0).uniform(1, 2, (30, 2))
    result = curve_fit("a*x0 + b*x1", x, 2 * x[:, 0] - x[:, 1], backend="reference")
    np.testing.assert_allclose(result.predict(x), 2 * x[:, 0] - x[:, 1])
    with pytest.raises(DataError, match="rows or by columns"):
        result.predict(x[:2])


def test_full_output_with_omitted_rows():
    y = 2 * X + 1 + np.sin(X)
    y[7] = np.nan
    *_, info, _, ier = curve_fit("a*x + b", X, y, sigma=np.full(50, 0.5), nan_policy="omit", full_output=True)
    keep = np.isfinite(y)
    popt = np.polyfit(X[keep], y[keep], 1)
    np.testing.assert_allclose(info["fvec"], (np.polyval(popt, X[keep]) - y[keep]) / 0.5, atol=1e-9)
    assert ier == 1


def test_sigma_of_several_outputs_names_the_output():
    sigma = np.full((2, 50), 0.05)
    sigma[1, 20] = -1
    with pytest.raises(DataError, match=r"sigma is -1\.0 at row 20 of output 1"):
        curve_fit(["a*x", "b*x"], X, np.stack([X, X]), sigma=sigma)


LESS = ["lt", [0, 1], []]


@pytest.mark.parametrize("nodes", [[["and", [1], []]], [LESS, ["add", [2], [0, 1]]], [LESS]])
def test_stored_conditions_are_checked(nodes):
    stored = {"format": 1, "name": None, "x": ["x"], "params": ["a"]}
    listed = [["x", [], [0]], ["p", [], [0]], *nodes]
    with pytest.raises(ModelError):
        Model.from_json(json.dumps({**stored, "nodes": listed, "roots": [len(listed) - 1]}))


def test_options_of_scipy_are_pointed_to_ours():
    with pytest.raises(TypeError, match="gauss_newton_max_iterations"):
        curve_fit("a*x", X, X, maxfev=5)
    with pytest.raises(TypeError, match="cannot be called"):
        curve_fit("a*x", X, X, callback="q")
    assert curve_fit("a*x", X, X, n_threads=np.int64(1), gauss_newton_tol=np.float32(1e-8)).popt[0] == pytest.approx(1)
    assert curve_fit("a*x", X, X, bounds={"a": (0, None)}).success


def test_a_silent_fit_beside_a_verbose_one(capfd):
    inside, done = threading.Event(), threading.Event()

    def callback(*_):
        inside.set()
        done.wait(10)

    arguments = ("a*exp(-b*x) + c", X, 2 * np.exp(-X) + 1, [1, 0.3, 0])
    loud = threading.Thread(target=curve_fit, args=arguments, kwargs={"verbose": 1, "callback": callback})
    loud.start()
    inside.wait(10)
    capfd.readouterr()
    curve_fit(*arguments, verbose=0)
    quiet = capfd.readouterr()
    done.set()
    loud.join()
    assert quiet.err == quiet.out == ""
    assert not [h for h in logging.getLogger("nlsq_nb").handlers if isinstance(h, logging.StreamHandler)]


def test_the_constant_e_is_pointed_out():
    result = curve_fit("a + b*x + e*x**2", X, 1 + X + X**2, backend="reference")
    assert any("2.71828" in note for note in result.notes)
    assert "2.71828" in str(result)
    fitted = curve_fit(Model("a + b*x + e*x**2", params=("a", "b", "e")), X, 1 + X + X**2, backend="reference")
    assert fitted.popt[2] == pytest.approx(1)
    assert fitted.notes == ()


# -- columns that are nothing but rounding, or less -------------------------------------------------
ROUTES = [{}, {"separable": False}, {"cg_param_threshold": 1}]


@pytest.mark.parametrize("options", ROUTES)
def test_derivatives_whose_squares_underflow_count_as_zero(options):
    y = 2 * X + 1 + np.sin(3 * X)
    with pytest.warns(CovarianceWarning, match=r"for a$"):
        result = curve_fit("a*x*1e-200 + c", X, y, **options)
    # the residuals are anything but orthogonal to x, and nobody says so
    assert result.status.name == "PARTLY_FLAT"
    assert result.popt[0] == 1.0
    assert result.popt[1] == pytest.approx(y.mean())
    assert np.isinf(result.perr[0])
    assert result.perr[1] == pytest.approx(y.std(ddof=2) / np.sqrt(50), rel=0.02)
    with pytest.warns(ConvergenceWarning, match="does not change with any free parameter"), pytest.warns(
        CovarianceWarning
    ):
        assert not curve_fit("a*x*1e-200", X, y, **options).success


@pytest.mark.parametrize("options", ROUTES)
@pytest.mark.parametrize("model", ["a*exp(-b*x) + c", "a*sin(b*x) + c"])
def test_constant_y_determines_no_rate(model, options):
    with pytest.warns(CovarianceWarning):
        result = curve_fit(model, X, np.full(50, 3.0), [1, 1, 1], **options)
    assert result.sse < 1e-25
    error = dict(zip(result.names, result.perr, strict=True))
    # either the amplitude is zero and the rate is anything, or the rate is and makes a constant of the term
    assert np.isinf(error["b"]) or (np.isinf(error["a"]) and abs(result.popt[1]) < 1e-12)


@pytest.mark.parametrize("unit", [1e-12, 1e-9, 1.0, 1e9, 1e12])
@pytest.mark.parametrize("options", ROUTES)
def test_small_units_are_not_taken_for_rounding(unit, options):
    y = 3 * np.exp(-0.5 * X) + 1 + 0.1 * np.sin(7 * X)
    plain = curve_fit("a*exp(-b*x) + c", X, y, [2, 1, 0.5], **options)
    scaled = curve_fit("a*exp(-b*x) + c", X / unit, y * unit, [2 * unit, unit, 0.5 * unit], **options)
    np.testing.assert_allclose(scaled.popt / unit, plain.popt, rtol=1e-6)
    np.testing.assert_allclose(scaled.perr / unit, plain.perr, rtol=1e-6)
    assert scaled.status is plain.status


def test_a_linear_parameter_may_be_of_any_size():
    y = 2 * X + 1 + np.sin(3 * X)
    plain = curve_fit("a*x + c", X, y)
    result = curve_fit("a*x*1e-120 + c", X, y)
    np.testing.assert_allclose(result.popt / [1e120, 1], plain.popt)
    np.testing.assert_allclose(result.perr / [1e120, 1], plain.perr)


# -- an optimum on a bound ---------------------------------------------------------------------------
@pytest.mark.parametrize("options", [*ROUTES, {"method": "trf"}])
def test_an_optimum_on_a_bound_is_not_said_to_be_orthogonal(options):
    y = 3 * np.exp(-0.5 * X) + 1 + 0.1 * np.sin(7 * X)
    result = curve_fit("a*exp(-b*x) + c", X, y, [2, 1, 0.5], bounds=([0, 0, 0], [2.5, 9, 9]), **options)
    assert result.success
    assert result.status.name == "BOUNDED"
    assert "orthogonal" not in result.message
    assert result.popt[0] == 2.5
    assert result.active_mask.tolist() == [1, 0, 0]
    assert json.loads(result.to_json())["status"] == "BOUNDED"
    assert result.message in result.report()
    inside = curve_fit("a*exp(-b*x) + c", X, y, [2, 1, 0.5], bounds=([0, 0, 0], [9, 9, 9]), **options)
    assert inside.status.name == "RELATIVE_OFFSET"


# -- penalties that leave nothing of the data --------------------------------------------------------
TIED = {"enable_group_variance_regularization": True, "group_variance_indices": [(0, 2)]}


@pytest.mark.parametrize("options", [{}, {"separable": False}])
@pytest.mark.parametrize("strength", 10.0 ** np.arange(4, 12))
def test_a_strong_penalty_ends_where_the_members_are_equal(strength, options):
    y = 2 * X + 0.7 * X**2 + 1 + np.sin(3 * X)
    tied = curve_fit("a*(x + x**2) + c", X, y)
    result = curve_fit("a*x + b*x**2 + c", X, y, group_variance_lambda=strength, **TIED, **options)
    assert result.success
    np.testing.assert_allclose(result.popt, tied.popt[[0, 0, 1]], rtol=1e-8 + 1e4 / strength)
    assert result.sse == pytest.approx(tied.sse, rel=1e-8 + 1e4 / strength)


@pytest.mark.parametrize("options", ROUTES)
@pytest.mark.parametrize("strength", [1e6, 1e9, 1e11])
def test_a_strong_penalty_on_a_curved_model_ends_there_too(strength, options):
    y = 2 * np.exp(-0.5 * X) + 3 * np.exp(-0.45 * X) + 0.05 * X + 0.05 * np.sin(9 * X)
    every = {"enable_group_variance_regularization": True, "group_variance_indices": [(0, 5)]}
    tied = curve_fit("2*t*exp(-t*x) + t*x", X, y, [0.3])
    result = curve_fit("a*exp(-b*x) + c*exp(-d*x) + k*x", X, y, [1, 0.3, 2, 0.6, 0.1],
                       group_variance_lambda=strength, **every, **options)  # fmt: skip
    assert result.success
    np.testing.assert_allclose(result.popt, tied.popt[0], rtol=1e-6 + 1e4 / strength)


@pytest.mark.parametrize("options", ROUTES)
@pytest.mark.parametrize("strength", [1e16, 1e30, 1e300])
def test_a_penalty_beyond_float64_is_refused(strength, options):
    y = 2 * X + 0.7 * X**2 + 1 + np.sin(3 * X)
    with pytest.raises(ConfigError, match=r"group_variance_lambda=1e\+\d+ is more .* use at most") as told:
        curve_fit("a*x + b*x**2 + c", X, y, group_variance_lambda=strength, **TIED, **options)
    usable = float(re.search(r"at most ([\d.e+]+)", str(told.value))[1])
    assert usable > 1e10
    assert curve_fit("a*x + b*x**2 + c", X, y, group_variance_lambda=usable, **TIED).success


def test_a_poor_start_does_not_make_a_penalty_too_strong():
    y = 5 * np.exp(-((X - 4) ** 2))
    curve_fit("a*exp(-(x - m)**2/s**2)", X, y, [1, 40, 1], bounds=([0, 0, 0.1], [9, 50, 9]),
              group_variance_lambda=1e3, enable_multistart=True, **TIED)  # fmt: skip


# -- functions that write into what they are given ----------------------------------------------------
def shifts(x, a, b):
    x -= 1.0
    return a * x + b


def adds(x, a, b):
    return np.add(a * x, b, out=x)


@pytest.mark.parametrize("f", [shifts, adds])
@pytest.mark.parametrize("jac", ["2-point", "3-point", "cs"])
def test_a_function_that_changes_x_is_told_so(f, jac):
    x = X.copy()
    with pytest.raises(ModelError, match=r"^f changes its argument x in place .*return"):
        curve_fit(f, x, 2 * X + 1, [1, 1], jac=jac)
    np.testing.assert_array_equal(x, X)


def test_a_jacobian_that_changes_x_is_told_so():
    def jac(x, a, b):
        x *= 1.0
        return np.stack([x, np.ones_like(x)], axis=1)

    x = X.copy()
    with pytest.raises(ModelError, match=r"^jac changes its argument x in place"):
        curve_fit(lambda x, a, b: a * x + b, x, 2 * X + 1, [1, 1], jac=jac)
    np.testing.assert_array_equal(x, X)
    table = np.stack([X, X**2])
    with pytest.raises(ModelError, match="x in place"):
        curve_fit(lambda x, a, b: np.multiply(x, a, out=x)[0] + b, table, X, [1, 1], jac="3-point")
    np.testing.assert_array_equal(table, np.stack([X, X**2]))


def test_other_errors_of_a_function_are_its_own():
    def f(x, a):
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing") as told:
        curve_fit(f, X, X, [1], jac="3-point")
    assert not isinstance(told.value, ModelError)
