"""Parameters and standard deviations of ill-conditioned problems, against their solutions to 50 digits."""

from contextlib import nullcontext

import numpy as np
import pytest

from nlsq_nb import Model, curve_fit
from nlsq_nb.errors import ConvergenceWarning, CovarianceWarning
from nlsq_nb.phases.state import StopReason

from .conditioning import NOISE, digits, problems

EPS = float(np.finfo(float).eps)
# Rounding of the residuals, eps of y, beside noise of 1e-6 of y, averaged over some rows: what sse and errors can have.
SSE_DIGITS = -np.log10(EPS / NOISE)
MARGIN = 1.3  # digits: the bounds are eps times the condition, which the worst parameter may exceed


def loss(condition):
    """Digits that an error of eps times the condition leaves."""
    return -np.log10(EPS * condition) - MARGIN


@pytest.mark.parametrize("method", ["qr", "auto"])
@pytest.mark.parametrize("number", range(22))
def test_digits_fall_with_the_condition_not_with_its_square(number, method):
    p = problems()[number]
    result = curve_fit(Model(p.model), p.x, p.y, p.start, covariance_method=method)
    assert result.success, result.message
    found = result.streaming_diagnostics["phase_history"][-1]
    assert found["method"] == ("qr" if method == "qr" or p.condition**2 > 1e6 else "normal")
    wanted = loss(p.condition if found["method"] == "qr" else p.condition**2)
    assert digits(result.popt, p.values) >= min(14.0, wanted)
    assert digits(result.perr, p.deviations) >= min(SSE_DIGITS, wanted)
    assert np.isfinite(result.pcov).all()


def test_the_table_reaches_from_easy_to_hopeless():
    assert len(problems()) == 22
    conditions = sorted(p.condition for p in problems())
    assert conditions[0] < 1e2
    assert conditions[-1] > 1e12
    assert max(np.diff(np.log10(conditions))) < 2.0


@pytest.mark.parametrize("number", range(22))
def test_the_normal_matrix_says_what_it_cannot_know(number):
    # Where JᵀJ has lost every digit the errors of what takes part are infinite, never small.
    p = problems()[number]
    lost = p.condition > 2e7
    with pytest.warns(match="could not be estimated") if lost else nullcontext():
        result = curve_fit(Model(p.model), p.x, p.y, p.start, covariance_method="normal")
    if lost:
        assert np.isinf(result.perr).sum() >= 2
    else:
        assert digits(result.perr, p.deviations) >= min(SSE_DIGITS, max(loss(p.condition**2), 2.0))
    assert result.streaming_diagnostics["phase_history"][-1]["corrections"] == 0


def polynomial_fit(**options):
    p = problems()[8]  # condition 7e9: JᵀJ alone stalls
    return p, curve_fit(Model(p.model), p.x, p.y, p.start, **options)


def test_weights():
    p, plain = polynomial_fit()
    weighted = curve_fit(Model(p.model), p.x, p.y, p.start, sigma=np.full(p.y.shape, 3e-7), absolute_sigma=True)
    np.testing.assert_allclose(weighted.popt, plain.popt, rtol=1e-5)
    scale = 3e-7 / np.sqrt(plain.sse / plain.dof)
    np.testing.assert_allclose(weighted.perr, plain.perr * scale, rtol=1e-5)


def test_fixed_parameters():
    p, _ = polynomial_fit()
    lower, upper = np.full(7, -np.inf), np.full(7, np.inf)
    lower[6] = upper[6] = p.values[6]
    result = curve_fit(Model(p.model), p.x, p.y, p.values, bounds=(lower, upper))
    assert result.perr[6] == 0.0
    np.testing.assert_allclose(result.popt, p.values, rtol=1e-5)
    jac = np.stack([p.x**k for k in range(6)], axis=1)
    r = np.linalg.qr(jac, mode="r")
    errors = np.linalg.norm(np.linalg.inv(r), axis=1) * np.sqrt(result.sse / result.dof)
    np.testing.assert_allclose(result.perr[:6], errors, rtol=1e-5)


def test_active_bounds_stay_active():
    p, free = polynomial_fit()
    upper = np.full(7, np.inf)
    upper[0] = p.values[0] - 3.0 * p.deviations[0]
    result = curve_fit(Model(p.model), p.x, p.y, np.minimum(p.values, upper), bounds=(-np.inf, upper))
    assert result.popt[0] == upper[0]
    assert result.active_mask[0] == 1
    # the others are the least-squares solution with this one held
    jac = np.stack([p.x**k for k in range(1, 7)], axis=1)
    rest = np.linalg.lstsq(jac, p.y - upper[0], rcond=None)
    np.testing.assert_allclose(result.popt[1:], rest[0], rtol=1e-4)
    assert result.sse > free.sse


@pytest.mark.parametrize("separable", ["auto", False])
def test_with_and_without_elimination(separable):
    p, result = polynomial_fit(separable=separable)
    assert digits(result.popt, p.values) > 4.0
    assert digits(result.perr, p.deviations) > 5.0


def test_functions_that_are_called_as_they_are():
    p, _ = polynomial_fit()

    def f(x, *c):
        return np.polynomial.polynomial.polyval(x, c)

    def jac(x, *c):
        return np.vander(x, len(c), increasing=True)

    result = curve_fit(f, p.x, p.y, p.start, jac=jac)
    assert digits(result.popt, p.values) > 4.0
    assert digits(result.perr, p.deviations) > 4.5


def test_several_outputs():
    p, _ = polynomial_fit()
    text = p.model
    result = curve_fit([text, f"2*({text})"], p.x, np.array([p.y, 2.0 * p.y]), p.start)
    assert digits(result.popt, p.values) > 4.0
    expected = p.deviations * np.sqrt((len(p.y) - 7) / (2 * len(p.y) - 7))
    assert digits(result.perr, expected) > 4.5


def test_redundant_parameters_are_still_named():
    x = np.linspace(0.0, 3.0, 60)
    y = 2.0 * np.exp(-x) + 0.01 * np.cos(7.0 * x)
    with pytest.warns(match="could not be estimated for a, b"):
        result = curve_fit("(a + b)*exp(-c*x)", x, y, [1.0, 0.5, 0.7], covariance_method="qr")
    assert np.isinf(result.perr[:2]).all()
    assert np.isfinite(result.perr[2])


def test_a_stopped_fit_is_left_as_it_is():
    p = problems()[8]
    with pytest.warns(CovarianceWarning), pytest.warns(ConvergenceWarning, match="stopped by callback"):
        result = curve_fit(Model(p.model), p.x, p.y, p.start, callback=lambda *_: True, callback_frequency=1)
    assert result.status is StopReason.CALLBACK
    assert result.streaming_diagnostics["phase_history"][-1]["method"] == "normal"
