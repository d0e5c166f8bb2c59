"""Starts and ends where nothing moves: exact fits, bounds, flat models, gradients that underflow."""

from itertools import combinations

import numpy as np
import pytest

from nlsq_nb import ConvergenceWarning, curve_fit

X = np.linspace(0, 10, 200)
CRITERIA = [list(c) for k in range(3) for c in combinations(["plateau", "max_iter", "gradient"], k)]


@pytest.mark.parametrize("criteria", CRITERIA, ids="+".join)
def test_a_vanishing_gradient_ends_the_warmup(criteria):
    held = curve_fit("exp(-b*x)", X, np.exp(-0.1 * X), [0.5], bounds=(0.3, 1), active_switching_criteria=criteria)
    assert held.popt[0] == 0.3
    assert held.success
    with pytest.warns(ConvergenceWarning):
        flat = curve_fit("exp(-b*x)", X + 2, np.ones_like(X), [1e4], active_switching_criteria=criteria)
    assert not flat.success


def test_an_exact_fit_of_relaxed_parameters_is_no_rise():
    x = np.linspace(0, 10, 1000)
    result = curve_fit(
        "a*exp(-(x-b)**2/(2*c**2)) + d", x, np.full(1000, 3.0), [1, 5, 1, 1], warmup_sample_size=100
    )
    assert result.success
    assert result.streaming_diagnostics["telemetry"].layer3_cost_guard_triggers == 0
    np.testing.assert_allclose(result.predict(x), 3.0, rtol=1e-9)


@pytest.mark.parametrize("field", ["gradient_clip_value", "lbfgs_exploration_step_size", "lbfgs_careful_step_size"])
def test_tiny_lengths(field):
    y = 5 * np.exp(-0.5 * X) + 1
    result = curve_fit("a*exp(-b*x) + c", X, y, [4, 0.3, 2], **{field: 1e-300})
    np.testing.assert_allclose(result.popt, [5, 0.5, 1], rtol=1e-6)


def test_conjugate_gradients_from_the_optimum():
    x, y = np.array([0.5, 2, 3]), np.array([1, 3, 3.5])
    best = curve_fit("a*x", x, y).popt
    for start in (best, [0.5]):
        result = curve_fit("a*x", x, y, start, cg_param_threshold=1)
        assert result.success
        assert result.nfev < 100
        np.testing.assert_allclose(result.popt, best, rtol=1e-8)
