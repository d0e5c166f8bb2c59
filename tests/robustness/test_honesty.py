"""Success is claimed only where it is earned: saddles, flat places, functions that mix rows, changed data."""

import json
import logging
import threading

import numpy as np
import pytest

from nlsq_nb import ConvergenceWarning, CovarianceWarning, DataError, Model, ModelError, curve_fit

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
    # A line over time stamps: JᵀJ is singular to working precision, the sse still tells the slope.
    x = 1.7e9 + np.arange(100.0)
    with pytest.warns(CovarianceWarning):
        result = curve_fit("a + b*x", x, 3 + 2 * x + np.random.default_rng(0).normal(size=100), backend="reference")
    assert result.sse < 200
    assert result.popt[1] == pytest.approx(2, abs=0.01)
    assert np.isinf(result.perr).all()


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
