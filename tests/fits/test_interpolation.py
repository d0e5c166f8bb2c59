"""As many parameters as points: all that is left is rounding, and the fit says so; it says so of nothing else."""

import warnings

import numpy as np
import pytest

from nlsq_nb import ConvergenceWarning, CovarianceWarning, Model, curve_fit
from nlsq_nb.phases.state import StopReason

EPS = float(np.finfo(float).eps)
EXACT = (StopReason.ROUNDING, StopReason.EXACT_FIT)
POLYNOMIALS = {n: Model(" + ".join(f"c{k}*x**{k}" for k in range(n))) for n in range(2, 7)}
OTHERS = {
    "exponential": (Model("a*exp(-b*x)"), [2.0, 0.3]),
    "with offset": (Model("a*exp(-b*x) + c"), [2.0, 0.5, 1.0]),
    "peak": (Model("h*exp(-((x - m)/s)**2)"), [3.0, 4.0, 3.0]),
    "saturation": (Model("v*x/(k + x)"), [3.0, 1.5]),
}
WAYS = {
    "native": {},
    "step by step": {"callback": lambda *_: None},
    "all parameters": {"separable": False, "method": "trf"},
}


def polynomial(n, seed):
    """(model, x, y, p0) of any n points."""
    rng = np.random.default_rng([n, seed])
    x = 10.0 / n * (np.arange(n) + rng.uniform(0.0, 0.9, n))
    return POLYNOMIALS[n], x, 5.0 * rng.normal(size=n), rng.normal(size=n)


def other(name, seed):
    """(model, x, y, p0) of points through which a nonlinear model goes."""
    rng, (model, middle) = np.random.default_rng(seed), OTHERS[name]
    truth = middle * rng.uniform(0.7, 1.4, len(middle))
    x = np.linspace(0.5, 6.0, len(middle)) + rng.uniform(-0.2, 0.2, len(middle))
    return model, x, model(x, *truth), truth * rng.uniform(0.8, 1.25, len(middle))


def fitted(problem, **options):
    model, x, y, p0 = problem
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CovarianceWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        return curve_fit(model, x, y, p0=p0, **options)


def is_rounding(problem, result):
    """Whether no residual is larger than what a few units in the last place of each parameter make of it."""
    model, x, y, _ = problem
    theta, size = result.popt, np.abs(y)
    for k, value in enumerate(theta):
        step = np.zeros_like(theta)
        step[k] = 1e-6 * value
        size = size + np.abs(model(x, *(theta + step)) - model(x, *(theta - step))) / 2e-6
    residual = np.linalg.norm(y - model(x, *theta))
    return bool(residual <= 16.0 * EPS * np.linalg.norm(size) and residual <= 2e-9 * np.linalg.norm(y))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n", POLYNOMIALS)
def test_a_polynomial_through_its_points_is_a_success(n, way):
    for seed in range(60):
        problem = polynomial(n, seed)
        result = fitted(problem, **WAYS[way])
        assert result.status in EXACT, seed
        assert is_rounding(problem, result), seed


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OTHERS)
def test_a_curve_through_its_points_is_a_success(name, way):
    for seed in range(60):
        problem = other(name, seed)
        result = fitted(problem, **WAYS[way])
        assert result.status in EXACT, seed
        assert is_rounding(problem, result), seed


def test_points_close_together():
    """Where JᵀWJ has lost its digits, so that the last steps are taken by QR."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x = 5.0 + np.cumsum(rng.uniform(0.1, 0.5, 5))
        problem = POLYNOMIALS[5], x, 5.0 * rng.normal(size=5), rng.normal(size=5)
        result = fitted(problem)
        assert result.success == is_rounding(problem, result), seed


@pytest.mark.parametrize("trials", [1, 2, 3, 6])
def test_what_is_more_than_rounding_is_no_success(trials):
    """Fits that are cut short, at any distance from the solution."""
    unfinished = 0
    for seed in range(12):
        problems = [polynomial(n, seed) for n in (3, 5)] + [other(name, seed) for name in OTHERS]
        for problem, way in zip(problems * 2, ({}, {"callback": lambda *_: None}) * 6, strict=True):
            options = {"method": "trf", "separable": False, "gauss_newton_max_iterations": trials, **way}
            result = fitted(problem, second_opinion=False, **options)
            assert result.success <= is_rounding(problem, result), (seed, problem[0].text)
            unfinished += not result.success
    assert unfinished > 5


@pytest.mark.parametrize("way", WAYS)
def test_small_residuals_that_are_not_rounding_are_fitted(way):
    """Noise of 1e-9 of y, in terms that cancel to a thousandth of their size."""
    model, rng = POLYNOMIALS[4], np.random.default_rng(1)
    x = np.linspace(9.0, 10.0, 12)
    y = model(x, -855.0, 271.0, -28.5, 1.0) + 1e-9 * rng.normal(size=12)
    result = curve_fit(model, x, y, p0=[1, 1, 1, 1], **WAYS[way])
    best = np.linalg.lstsq(np.vander(x - 9.5, 4), y)[1][0]
    assert result.success
    assert result.sse == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_with_more_points_rounding_is_no_excuse(way):
    """Terms that cancel to a millionth hide an optimum that is hundreds of times lower."""
    t = np.linspace(-1.0, 1.0, 10)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        y = np.polynomial.chebyshev.chebval(t, rng.normal(size=5)) + 1e-11 * rng.normal(size=10)
        result = fitted((POLYNOMIALS[5], t + 20.0, y, np.ones(5)), **WAYS[way])
        best = np.linalg.lstsq(np.vander(t, 5), y)[1][0]
        assert not result.success or result.sse <= 1.05 * best, seed
