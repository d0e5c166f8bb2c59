"""popt and pcov equal those of scipy.optimize.curve_fit, however the model is written."""

from functools import partial

import numpy as np
import pytest
from scipy import optimize

from nlsq_nb import Model, curve_fit

from .problems import NAMES, problem

AGREEMENT = 1e-8
SAME = 1e-10
TIGHT = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}


def scipy_fit(f, jac, x, y, start, **options):
    """SciPy at its tightest, started anew from its own answer so that its last step is a rounding error."""
    with np.errstate(all="ignore"):
        for _ in range(3):
            start, pcov = optimize.curve_fit(f, x, y, start, jac=jac, **options, **TIGHT)
    return start, pcov


def assert_same_values(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=0.0)


def assert_same_covariance(found, expected, tolerance):
    # Every entry in units of the two standard errors: correlations near 0 have no relative accuracy in either.
    errors = np.sqrt(np.diag(expected))
    np.testing.assert_allclose(found / np.outer(errors, errors), expected / np.outer(errors, errors), atol=tolerance)
    assert_same_values(np.diag(found), np.diag(expected), tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_hand_written_jacobians_are_right(name):
    p = problem(name)
    assert set(p.params) == {str(s) for s in p.expression.free_symbols} - {"x", "x0", "x1"}
    step = 1e-30j
    for k in range(len(p.params)):
        theta = p.truth.astype(complex)
        theta[k] += step
        np.testing.assert_allclose(p.jac(p.x, *p.truth)[:, k], p.function(p.x, *theta).imag / 1e-30, rtol=1e-12)


@pytest.mark.parametrize("weights", ["none", "relative", "absolute"])
@pytest.mark.parametrize("name", NAMES)
def test_popt_and_pcov(name, weights):
    p = problem(name)
    options = {} if weights == "none" else {"sigma": p.sigma, "absolute_sigma": weights == "absolute"}
    result = curve_fit(p.text, p.x, p.y, dict(zip(p.params, p.start, strict=True)), **options)
    popt, pcov = scipy_fit(p.function, p.jac, p.x, p.y, p.start, **options)
    assert result.success
    assert result.names == p.params
    assert_same_values(result.popt, popt, AGREEMENT)
    assert_same_covariance(result.pcov, pcov, AGREEMENT)


@pytest.mark.parametrize("name", NAMES)
def test_absolute_sigma_scales_by_the_reduced_chi_square(name):
    p = problem(name)
    relative, absolute = (curve_fit(p.text, p.x, p.y, p.start, p.sigma, absolute) for absolute in (False, True))
    np.testing.assert_allclose(relative.pcov, absolute.pcov * relative.reduced_chi2, rtol=1e-12)
    assert 0.5 < relative.reduced_chi2 < 2.0


@pytest.mark.parametrize("side", ["lower", "upper"])
@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
@pytest.mark.parametrize("name", NAMES)
def test_active_bound(name, kind, side):
    p = problem(name)
    x = ("x0", "x1") if p.x.ndim == 2 else "x"
    linear = Model(p.text, x=x).linear_params
    found = [k for k, param in enumerate(p.params) if (param in linear) == (kind == "linear")]
    if not found:
        pytest.skip(f"{name} has no {kind} parameter")
    k = found[0]
    free = curve_fit(p.text, p.x, p.y, p.start)
    bound = free.popt[k] + (5.0 if side == "lower" else -5.0) * free.perr[k]
    bounds = np.full((2, len(p.params)), [[-np.inf], [np.inf]])
    bounds[0 if side == "lower" else 1, k] = bound
    start = p.start.copy()
    start[k] = bound + (0.1 if side == "lower" else -0.1) * abs(bound)
    result = curve_fit(p.text, p.x, p.y, start, bounds=bounds)
    assert result.success
    assert result.popt[k] == bound
    assert result.active_mask[k] == (-1 if side == "lower" else 1)
    assert np.count_nonzero(result.active_mask) == 1

    # SciPy's trf stays a little inside of the bound, so the values are compared with the problem without it.
    others = np.delete(np.arange(len(p.params)), k)
    popt, _ = scipy_fit(
        lambda x, *rest: p.function(x, *np.insert(rest, k, bound)),
        lambda x, *rest: np.delete(p.jac(x, *np.insert(rest, k, bound)), k, axis=1),
        p.x,
        p.y,
        p.start[others],
    )
    assert_same_values(result.popt[others], popt, AGREEMENT)

    # The covariance is SciPy's: that of all parameters, the bound put aside.
    jac = p.jac(p.x, *result.popt)
    residuals = p.y - p.function(p.x, *result.popt)
    pcov = np.linalg.inv(jac.T @ jac) * (residuals @ residuals) / (len(p.y) - len(p.params))
    assert_same_covariance(result.pcov, pcov, AGREEMENT)
    near, near_cov = optimize.curve_fit(p.function, p.x, p.y, start, jac=p.jac, bounds=tuple(bounds), **TIGHT)
    assert_same_values(result.popt, near, 1e-4)
    assert_same_covariance(result.pcov, near_cov, 1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_write_the_model(name):
    p = problem(name)
    by_name = dict(zip(p.params, p.start, strict=True))
    fit = partial(curve_fit, xdata=p.x, ydata=p.y, p0=by_name, backend="reference")  # their kernels are not in question
    text = fit(p.text)
    forms = {
        "SymPy expression": fit(p.expression),
        "NumPy function": fit(p.function),
        "Model of text": fit(Model(p.text, x=("x0", "x1") if p.x.ndim == 2 else "x")),
    }
    for form, result in forms.items():
        values = [result.params[param]["value"] for param in p.params]
        np.testing.assert_allclose(values, text.popt, rtol=SAME, err_msg=form)


@pytest.mark.parametrize("name", ["exponential", "gaussian", "plane", "michaelis"])
def test_jacobian_as_a_function(name):
    p = problem(name)
    # The default tolerance leaves 1e-7 standard errors; the two ways (one eliminates the linear parameters) need less.
    text = curve_fit(p.text, p.x, p.y, p.start, gauss_newton_tol=1e-12)
    given = curve_fit(p.function, p.x, p.y, p.start, jac=p.jac, gauss_newton_tol=1e-12)
    assert given.success
    assert given.names == p.params
    np.testing.assert_allclose(given.popt, text.popt, rtol=SAME)
    assert_same_covariance(given.pcov, text.pcov, AGREEMENT)


@pytest.mark.parametrize("jac", ["2-point", "3-point", "cs"])
def test_jacobian_by_differences(jac):
    p = problem("exponential")
    text = curve_fit(p.text, p.x, p.y, p.start)
    numeric = curve_fit(p.function, p.x, p.y, p.start, jac=jac)
    np.testing.assert_allclose(numeric.popt, text.popt, rtol=1e-6)


def test_full_output_is_scipys():
    p = problem("exponential")
    popt, pcov, info, message, flag = curve_fit(p.text, p.x, p.y, p.start, full_output=True)
    expected = optimize.curve_fit(p.function, p.x, p.y, p.start, full_output=True)
    assert_same_values(popt, expected[0], 1e-6)
    assert_same_values(np.diag(pcov), np.diag(expected[1]), 1e-4)
    # SciPy's fvec is f − y.
    np.testing.assert_allclose(info["fvec"], expected[2]["fvec"], atol=1e-6)
    assert flag in (1, 2, 3, 4)
    assert isinstance(message, str)
